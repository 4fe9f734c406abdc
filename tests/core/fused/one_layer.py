"""Programs of one layer on arbitrary inputs, run in several ways and compared with torch.

Variables are given and read as arrays `(n, parts, components, features)`; in programs each part is
`(features / 8, components, 8)`, filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.fused.dense import Embedding
from ase_biasgrad.fused.execute import execute
from ase_biasgrad.fused.operations import Operation
from ase_biasgrad.fused.program import Program, Variable
from ase_biasgrad.fused.runtime import Compiled, Edges
from ase_biasgrad.numerics.matrix_product import padded
from ase_biasgrad.numerics.simd import WIDTH
from ase_biasgrad.numerics.splines import N_WEIGHTS, polynomials, slope_polynomials

N, KNOTS = 37, 15  # atoms, coefficients of a spline
CHUNKS = (N, 17, 4)  # atoms
BLOCKS = (1, 2, 3)
TOLERANCES = {np.float64: 1e-12, np.float32: 1e-5}  # of the largest number


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def packed(x: np.ndarray) -> np.ndarray:
    """`(n, parts, components, features)` in the order of programs, `(n, width)`."""
    n, parts, components, features = x.shape
    filled = np.pad(x, [(0, 0)] * 3 + [(0, padded(features) - features)])
    blocks = filled.reshape(n, parts, components, -1, WIDTH)
    return np.moveaxis(blocks, 2, 3).reshape(n, -1)


def unpacked(flat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The inverse of `packed`."""
    n, parts, components, features = shape
    blocks = np.moveaxis(flat.reshape(n, parts, -1, components, WIDTH), 3, 2)
    return blocks.reshape(n, parts, components, -1)[..., :features]


class RandomEdges:
    """Directed edges, each with its reverse, at random distances in knots; one atom has none."""

    def __init__(self, pairs: int = 90) -> None:
        rng = np.random.default_rng(3)
        i, j = rng.integers(0, N - 1, (2, pairs))  # an atom may see its own image, and any twice
        distances, unit = rng.uniform(0, KNOTS - N_WEIGHTS + 1, pairs), rng.normal(size=(pairs, 3))
        unit /= np.linalg.norm(unit, axis=1)[:, None]
        self.centre, self.neighbour = np.concatenate([i, j]), np.concatenate([j, i])
        # of pairs, from i to j: variables of the energy
        self.of_pairs = [torch.from_numpy(x).requires_grad_() for x in (distances, unit)]
        self.distances = torch.cat([self.of_pairs[0]] * 2)
        self.unit = torch.cat([self.of_pairs[1], -self.of_pairs[1]])

    def filters(self, coefficients: np.ndarray | Tensor) -> Tensor:
        """Splines `(e, …)` with coefficients `(KNOTS, …)` at the distances."""
        bin = self.distances.detach().long()
        powers = (self.distances - bin)[:, None] ** torch.arange(N_WEIGHTS)
        weights = powers @ torch.from_numpy(polynomials())  # (e, 6)
        near = torch.as_tensor(coefficients)[bin[:, None] + torch.arange(N_WEIGHTS)]
        return torch.einsum("et,et...->e...", weights, near)

    def gathered(self, messages: Tensor) -> Tensor:
        """Σ over the edges of each atom."""
        out = messages.new_zeros((N, *messages.shape[1:]))
        return out.index_add(0, torch.from_numpy(self.centre), messages)

    def placed(self, numbers: np.ndarray, dtype: Any, chunk: int) -> PlacedEdges:
        """The same as programs take them."""
        distances, unit = self.distances.detach().numpy(), self.unit.detach().numpy()
        return placed_edges(numbers, self.centre, self.neighbour, distances, unit, dtype, chunk)


class PlacedEdges(NamedTuple):
    """Edges of a program, and the places of the upper ones among them."""

    edges: Edges
    upper: np.ndarray  # (e / 2,)
    chunk: int
    kept: np.ndarray  # which edges there are, and their places
    place: np.ndarray

    def adjoints(self, edges: Edges) -> np.ndarray:
        """Adjoints `(e / 2, 4)` of the upper edges after a run; all others are untouched."""
        assert np.isnan(np.delete(edges.adjoints, self.upper, axis=0)).all()
        return edges.adjoints[self.upper]


def placed_edges(
    numbers: np.ndarray, centre: np.ndarray, neighbour: np.ndarray, distances: np.ndarray,
    unit: np.ndarray, dtype: Any, chunk: int,
) -> PlacedEdges:  # fmt: skip
    """Edges of which the first half is upper, the second half in the same order their reverses.

    Distances are in knots. What programs must not read is NaN: slopes of lower edges, and room
    for more edges.
    """
    n, upper = len(numbers), np.arange(len(centre)) < len(centre) // 2
    inner = (centre // chunk == neighbour // chunk) & (centre != neighbour)
    kept = np.flatnonzero(upper | ~inner)
    kinds = np.where(inner, 0, np.where(upper, 1, 2))[kept]
    counts = np.bincount(3 * centre[kept] + kinds, minlength=3 * n).reshape(n, 3)
    starts = np.cumsum([0, *(counts.sum(axis=1) + 1 + np.arange(n) % 3)])
    order, place = np.argsort(3 * centre[kept] + kinds, kind="stable"), np.empty(len(kept), int)
    ends = starts[:-1, None] + np.cumsum(counts, axis=1)
    place[order] = np.concatenate(
        [np.empty(0, int), *(np.arange(*pair) for pair in zip(starts, ends[:, 2], strict=False))]
    )
    bin = distances.astype(np.int64)
    powers = (distances - bin)[:, None] ** np.arange(N_WEIGHTS)
    weights = np.stack([powers @ polynomials(), powers[:, :-1] @ slope_polynomials()], axis=1)
    weights[~upper, 1] = np.nan

    def placed(values: np.ndarray, fill: float, kind: Any) -> np.ndarray:
        out = np.full((starts[-1], *values.shape[1:]), fill, kind)
        out[place] = values[kept]
        return out

    adjoints = np.where(upper[:, None], np.zeros((len(upper), 4)), np.nan)
    edges = Edges(
        numbers, starts, *ends.T.copy(), placed(neighbour, 0, np.int32), placed(bin, 0, np.int32),
        placed(weights, np.nan, dtype), placed(unit, np.nan, dtype),
        placed(adjoints, np.nan, np.float64), np.full(n, np.nan), np.ones(n),
    )  # fmt: skip
    return PlacedEdges(edges, place[upper[kept]], chunk, kept, place)


def no_edges(numbers: np.ndarray, dtype: Any, chunk: int) -> PlacedEdges:
    none = np.empty(0, np.int64)
    return placed_edges(numbers, none, none, np.empty(0), np.empty((0, 3)), dtype, chunk)


def run(program: Compiled, placed: PlacedEdges, blocks: int) -> tuple[np.ndarray, Edges]:
    """Memory, NaN before, and edges with adjoints and energies after a run."""
    edges, chunk = placed.edges, placed.chunk
    edges = edges._replace(adjoints=edges.adjoints.copy(), energies=edges.energies.copy())
    needed = program.kept * len(edges.numbers) + program.local * chunk * blocks
    memory = np.full(needed, np.nan, program.weights.dtype)
    stages = program.segments[: program.first_order]
    for stage in np.split(stages, len(stages)):
        for block in range(blocks):
            execute(
                block, blocks, program.instructions, stage, chunk, program.kept, program.local,
                memory, program.weights, edges,
            )  # fmt: skip
    return memory, edges


class GivenAdjoint:
    """A layer after others, by which a variable has an adjoint `(n, width)`."""

    def __init__(self, p: Program, x: Variable, adjoint: np.ndarray) -> None:
        self.x, self.adjoint = x, p.constant(adjoint)
        p.add(self)

    def vjp(self, p: Program) -> None:
        adjoint, more = p.adjoint(self.x)
        assert not more
        p.emit(Operation.EMBED, adjoint, self.adjoint)


class Copies:
    """Copies of results and of the adjoints of inputs that are there when the program ends."""

    def __init__(self, p: Program) -> None:
        self.inputs: list[Variable] = []
        self.results: list[Variable] = []
        p.add(self)  # the first layer, whose VJP is the last

    def input(self, p: Program, values: np.ndarray, active: bool) -> Variable:
        """A variable of these values `(n, width)`."""
        y = Embedding(p, values).y
        y.active = active
        self.inputs.append(y)
        return y

    def vjp(self, p: Program) -> None:
        self.adjoints = [copied(p, x.adjoint) if x.adjoint else None for x in self.inputs]
        for copy in (*self.results, *self.adjoints):
            if copy is not None:  # read in a segment of its own: it lies there for all atoms
                p.emit_messages(Operation.ADD, copy, p.variable(copy.width), 0)


def copied(p: Program, variable: Variable) -> Variable:
    out = p.variable(variable.width)
    p.emit(Operation.ADD, variable, out, 0)
    return out


def as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def assert_agrees(
    build: Callable[..., Any], function: Callable[..., Any], inputs: Sequence[np.ndarray],
    dtype: Any, edges: RandomEdges | None = None, inactive: Sequence[int] = (),
    shared: Sequence[int] = (), idle: Sequence[int] = (),
) -> None:  # fmt: skip
    """Results and all adjoints are those of autograd, the same bits in any number of blocks.

    Parameters
    ----------
    build
        Appends a layer: `build(program, *variables)` gives its result or results.
    function
        The same with tensors.
    inputs
        Arrays `(n, parts, components, features)`.
    dtype
        Of the program.
    edges
        Those that `function` uses.
    inactive
        Inputs that do not depend on positions.
    shared
        Inputs that another layer uses, too, so that the adjoint is added to what is there.
    idle
        Results that nothing uses, without adjoint.
    """
    p = Program()
    copies = Copies(p)
    variables = [copies.input(p, packed(x), k not in inactive) for k, x in enumerate(inputs)]
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    built, expected = as_tuple(build(p, *variables)), as_tuple(function(*tensors))
    copies.results = [copied(p, result) for result in built]
    others = [random(*y.shape, seed=5 + k) for k, y in enumerate(expected)]
    learnt = torch.zeros((), dtype=torch.float64)
    pairs = [(built[k], expected[k], others[k]) for k in range(len(built)) if k not in idle]
    pairs += [(variables[k], tensors[k], random(*inputs[k].shape, seed=9)) for k in shared]
    for variable, tensor, adjoint in pairs:
        GivenAdjoint(p, variable, packed(adjoint))
        learnt = learnt + (tensor * torch.from_numpy(adjoint)).sum()
    leaves = [*tensors, *([] if edges is None else edges.of_pairs)]
    gradients = torch.autograd.grad(learnt, leaves, allow_unused=True, materialize_grads=True)

    program, numbers = p.finish().as_type(dtype), np.arange(N)

    def assert_equal(ours: np.ndarray, theirs: Tensor) -> None:
        theirs = theirs.detach().numpy()
        limit = TOLERANCES[dtype] * max(1.0, np.nanmax(np.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)

    def at(memory: np.ndarray, variable: Variable, shape: Sequence[int]) -> np.ndarray:
        flat = memory[variable.start * N :][: variable.width * N]
        return unpacked(flat.reshape(N, -1), shape)

    for chunk in CHUNKS:
        placed = (edges.placed if edges else no_edges)(numbers, dtype, chunk)
        memory, after = run(program, placed, BLOCKS[0])
        for blocks in BLOCKS[1:]:
            other, again = run(program, placed, blocks)
            np.testing.assert_array_equal(other[: program.kept * N], memory[: program.kept * N])
            np.testing.assert_array_equal(again.adjoints, after.adjoints)
        for copy, result in zip(copies.results, expected, strict=True):
            assert_equal(at(memory, copy, result.shape), result)
        for k, (copy, gradient) in enumerate(zip(copies.adjoints, gradients, strict=False)):
            if k not in inactive:
                ours = at(memory, copy, inputs[k].shape) if copy else np.zeros(inputs[k].shape)
                assert_equal(ours, gradient)
        if edges is not None:
            adjoints = placed.adjoints(after)
            assert_equal(adjoints[:, 0], gradients[-2])
            assert_equal(adjoints[:, 1:], gradients[-1])
