"""Tangents of programs of one layer, and gradients of its weights, compared with autograd.

With a layer y = f(x, edges, θ), adjoints ȳ and P = y · ȳ, everything moves along a direction:

    ẏ = ∂/∂ȳ (∂P/∂x · ẋ),    tangents of the adjoints of x = ∂/∂x (∂P/∂x · ẋ + y · dȳ),

where x stands for the edges, too, and gradients of θ are ∂/∂θ of the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from one_layer import (
    CHUNKS,
    TOLERANCES,
    Copies,
    GivenAdjoint,
    N,
    PlacedEdges,
    RandomEdges,
    as_tuple,
    copied,
    no_edges,
    packed,
    random,
    run,
    unpacked,
)

from ase_biasgrad.fused.execute_tangents import execute_tangents
from ase_biasgrad.fused.operations import Operation
from ase_biasgrad.fused.program import Program, Variable
from ase_biasgrad.fused.runtime import Compiled, EdgeTangents
from ase_biasgrad.fused.tangents import HESSIAN, TRAINING, add
from ase_biasgrad.numerics.splines import N_WEIGHTS, polynomials


def edge_tangents(
    edges: RandomEdges, placed: PlacedEdges, along: Sequence[np.ndarray]
) -> EdgeTangents:
    """Tangents of placed edges whose pairs `(distances, unit)` move `along` `(p,)`, `(p, 3)`."""
    e, kept, place = placed.edges, placed.kept, placed.place
    distances = edges.distances.detach().numpy()
    moved = np.tile(along[0], 2)[:, None]
    t = distances - distances.astype(int)
    slopes, bends = ((t[:, None] ** np.arange(N_WEIGHTS - k)) @ derivative(k) for k in (1, 2))
    weights = np.full(e.weights.shape, np.nan, e.weights.dtype)
    unit = np.full(e.unit.shape, np.nan, e.unit.dtype)
    weights[place] = np.stack([slopes * moved, bends * moved], axis=1)[kept]
    unit[place] = np.concatenate([along[1], -along[1]])[kept]
    adjoints = np.where(np.isnan(e.adjoints), np.nan, 0.0)
    still = np.zeros(len(unit), bool)
    still[place] = np.tile((along[0] == 0) & (along[1] == 0).all(axis=1), 2)[kept]
    return EdgeTangents(still, weights, unit, adjoints, np.zeros(N))


def derivative(order: int) -> np.ndarray:
    """Polynomials of a derivative of the weights of splines by the distance in knots."""
    p = polynomials()
    for _ in range(order):
        p = p[1:] * np.arange(1, len(p))[:, None]
    return p


def run_tangents(
    program: Compiled, placed: PlacedEdges, tangents: EdgeTangents, blocks: int, times: int
) -> tuple[np.ndarray, EdgeTangents, np.ndarray]:
    """Memory, tangents and gradients after a run of everything, of tangents so many times."""
    memory, edges = run(program, placed, blocks)
    memory = memory.copy()
    for _ in range(times):
        moved = tangents._replace(adjoints=tangents.adjoints.copy())
        gradients = np.zeros((blocks, len(program.weights)), program.weights.dtype)
        stages = program.segments[program.first_order :]
        for stage in np.split(stages, len(stages)):
            for block in range(blocks):
                execute_tangents(
                    block, blocks, program.instructions, stage, placed.chunk, program.kept,
                    program.local, memory, program.weights, edges, moved, gradients[block],
                )  # fmt: skip
    return memory, moved, gradients.sum(axis=0)


def assert_tangents_agree(
    build: Callable[..., Any], function: Callable[..., Any], inputs: Sequence[np.ndarray],
    weights: Sequence[np.ndarray], dtype: Any, edges: RandomEdges | None = None,
    inactive: Sequence[int] = (), idle: Sequence[int] = (),
) -> None:  # fmt: skip
    """Tangents of results and of adjoints of inputs and edges, and gradients, against autograd.

    `build(program, *variables, *weights)` and `function(*tensors, *weights)` are the layer with
    these `weights`, arrays of any shape; the rest as in `one_layer.assert_agrees`.
    """
    expected = _by_autograd(function, inputs, weights, edges, inactive, idle)
    for learns in (False, True):
        p, copies = _program(build, inputs, weights, learns, inactive, expected)
        program = p.program.as_type(dtype)
        zeros = [np.zeros_like(x) for x in inputs]
        numbered = _program(build, zeros, _numbered(weights), learns, inactive, expected)[0].program
        ids = np.where(numbered.learnt, numbered.weights, 0).astype(int)
        for chunk in CHUNKS:
            placed = (edges.placed if edges else no_edges)(np.arange(N), dtype, chunk)
            tangents = EdgeTangents(
                np.empty(0, bool), np.empty((0, 2, N_WEIGHTS), dtype), np.empty((0, 3), dtype),
                np.empty((0, 4)), np.zeros(N),
            )  # fmt: skip
            if edges:
                tangents = edge_tangents(edges, placed, expected.along_edges)
            for blocks in (1, 3):
                # Hessians have several directions
                times = 1 if learns else 2
                found = run_tangents(program, placed, tangents, blocks, times)
                _compare(found, program, copies, expected, placed, learns, ids, dtype)


def _numbered(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Numbers 1, 2, … in place of the numbers of all weights; 0 is none of them."""
    ends = np.cumsum([0, *(w.size for w in weights)])
    return [
        1.0 + np.arange(end - w.size, end).reshape(w.shape)
        for w, end in zip(weights, ends[1:], strict=True)
    ]


class _Expected:
    results: list[Any]
    inputs: list[Any]
    edges: list[Any]
    weights: list[Any]
    along: list[np.ndarray]
    along_edges: list[np.ndarray]
    adjoints: list[np.ndarray | None]
    along_adjoints: list[np.ndarray]


def _by_autograd(function, inputs, weights, edges, inactive, idle) -> _Expected:
    out = _Expected()
    x = [torch.from_numpy(v).requires_grad_() for v in inputs]
    theta = [torch.from_numpy(v).requires_grad_() for v in weights]
    results = as_tuple(function(*x, *theta))
    used = [k for k in range(len(results)) if k not in idle]
    given = [random(*y.shape, seed=5 + k) for k, y in enumerate(results)]
    out.adjoints = [given[k] if k in used else None for k in range(len(results))]
    out.along_adjoints = [random(*y.shape, seed=25 + k) for k, y in enumerate(results)]
    adjoints = [torch.from_numpy(v).requires_grad_() for v in given]
    moving = [v for k, v in enumerate(x) if k not in inactive]
    out.along = [
        np.zeros_like(v) if k in inactive else random(*v.shape, seed=40 + k)
        for k, v in enumerate(inputs)
    ]
    directions = [v for k, v in enumerate(out.along) if k not in inactive]
    pairs = [] if edges is None else edges.of_pairs
    out.along_edges = [random(*v.shape, seed=60 + k) for k, v in enumerate(pairs)]
    for moved in out.along_edges:
        moved[::3] = 0  # pairs that are still
    directions += out.along_edges
    kind = {"allow_unused": True, "materialize_grads": True}
    leaves = [*moving, *pairs]
    total = sum((y * a).sum() for y, a in zip(results, adjoints, strict=True))
    first = torch.autograd.grad(total, leaves, create_graph=True, **kind)
    change = sum((g * torch.from_numpy(v)).sum() for g, v in zip(first, directions, strict=True))
    moved = torch.autograd.grad(change, adjoints, retain_graph=True, **kind)
    out.results = [v.detach().numpy() for v in moved]
    total_used = sum((results[k] * adjoints[k]).sum() for k in used)
    first = torch.autograd.grad(total_used, leaves, create_graph=True, **kind)
    change = sum(
        (g * torch.from_numpy(v)).sum() for g, v in zip(first, directions, strict=True)
    ) + sum((results[k] * torch.from_numpy(out.along_adjoints[k])).sum() for k in used)
    second = torch.autograd.grad(change, [*x, *pairs, *theta], **kind)
    out.inputs = [v.detach().numpy() for v in second[: len(x)]]
    out.edges = [v.detach().numpy() for v in second[len(x) : len(x) + len(pairs)]]
    out.weights = [v.detach().numpy() for v in second[len(x) + len(pairs) :]]
    return out


class _Finished:
    program: Compiled


def _program(build, inputs, weights, learns, inactive, expected) -> tuple[_Finished, Copies]:
    p = Program(learns=learns)
    copies = Copies(p)
    moved: dict[int, int] = {}  # place of a table → that of its tangents

    def table(values: np.ndarray, tangents: np.ndarray) -> int:
        place = p.constant(values)
        moved[place] = p.constant(tangents)
        return place

    variables: list[Variable] = []
    for k, (x, along) in enumerate(zip(inputs, expected.along, strict=True)):
        y = p.variable(packed(x).shape[1], active=learns or k not in inactive)
        place = table(packed(x), packed(along))
        if k in inactive:
            del moved[place]
        p.emit(Operation.EMBED, y, place)
        copies.inputs.append(y)
        variables.append(y)
    built = as_tuple(build(p, *variables, *weights))
    copies.results = [copied(p, result) for result in built]
    for result, adjoint, along in zip(
        built, expected.adjoints, expected.along_adjoints, strict=True
    ):
        if adjoint is not None:
            given = GivenAdjoint(p, result, packed(adjoint))
            moved[given.adjoint] = p.constant(packed(along))

    def embed(p: Program, y: Variable, table: int) -> None:
        if table in moved:
            p.emit(Operation.EMBED, p.tangent(y, 0), moved[table])

    def add_apart(p: Program, x: Variable, y: Variable, more: int) -> None:
        """ADD in a segment of its own: what is read at the end lies there for all atoms."""
        if x.tangent is not None:
            p.emit_messages(Operation.ADD, x.tangent, p.tangent(y, more), more)

    rules = {**(TRAINING if learns else HESSIAN), Operation.EMBED: embed}
    assert rules[Operation.ADD] is add
    rules[Operation.ADD] = add_apart
    finished = _Finished()
    finished.program = p.finish(rules)
    return finished, copies


def _compare(found, program, copies, expected, placed, learns, ids, dtype) -> None:
    memory, moved, gradients = found

    def assert_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
        limit = 10 * TOLERANCES[dtype] * max(1.0, np.abs(theirs).max(initial=0))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)

    def at(variable: Variable | None, shape: Sequence[int]) -> np.ndarray:
        if variable is None or variable.tangent is None:
            return np.zeros(shape)
        start, width = variable.tangent.start, variable.width
        assert start >= 0
        return unpacked(memory[start * N :][: width * N].reshape(N, -1), shape)

    for copy, result in zip(copies.results, expected.results, strict=True):
        assert_equal(at(copy, result.shape), result)
    for x, copy, theirs in zip(copies.inputs, copies.adjoints, expected.inputs, strict=True):
        if x.active:
            assert_equal(at(copy, theirs.shape), theirs)
    if expected.edges and not learns:
        ours = moved.adjoints[placed.upper]
        assert_equal(ours[:, 0], expected.edges[0])
        assert_equal(ours[:, 1:], expected.edges[1])
    if learns:
        sums = np.bincount(ids, gradients, minlength=1 + sum(w.size for w in expected.weights))
        theirs = np.concatenate([[], *(w.ravel() for w in expected.weights)])
        assert_equal(sums[1:], theirs)
