"""Networks in training: forces of programs, and gradients of losses of them.

Autograd sees one function from all weights to energies, forces and strain gradients. What is made
of parameters alone (filters at the knots, tables of elements) are operations of torch, which it
differentiates itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.backbones.radial import shifted_softplus
from ase_biasgrad.fused.batches import add_gradients, add_taken, evaluate, take
from ase_biasgrad.fused.networks import NETWORKS, all_weights
from ase_biasgrad.fused.program import Program
from ase_biasgrad.fused.radial import Functions
from ase_biasgrad.fused.runtime import Compiled
from ase_biasgrad.fused.structures import (
    Evaluated,
    Room,
    SplineConstants,
    Structures,
    room_for,
    shares,
    structures_of,
)
from ase_biasgrad.fused.tangents import TRAINING
from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.numerics.spline_coefficients import NOTHING, spline_coefficients
from ase_biasgrad.numerics.splines import Knots
from ase_biasgrad.numerics.threads import threads_allowed, together
from ase_biasgrad.numerics.vector_memory import WIDTH, aligned

KNOTS_PER_FUNCTION = 3  # fewer than engines take: filters are sampled anew in every step
TORCH = Functions(torch.nn.functional.silu, shifted_softplus, torch.cat)


class TrainingNetwork:
    """The energy of a backbone that has a program, as a function of its parameters.

    Filters are splines through their values at few knots, so that forces differ from the backbone's
    by 1e-5 of the largest one, far less than they err; gradients are exact for what is evaluated.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._parameters = dict(backbone.named_parameters())  # once: it searches all modules
        functions = self._network.radial_functions(backbone.arguments)
        self.knots = Knots(backbone.cutoff, KNOTS_PER_FUNCTION * max(functions, 16) + 1)
        self.splines = SplineConstants.of(self.knots)
        self._prepared: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            shapes = {name: tuple(weight.shape) for name, weight in self.weights().items()}
        self.arrangement = Arrangement.of(backbone.name, backbone.arguments, shapes)
        self.room: Room | None = None
        self.evaluations = 0  # and gradients so far; the room holds what the last of them left

    @property
    def _network(self) -> Any:
        return NETWORKS[self.backbone.name]  # a module, which cannot be pickled

    def weights(self) -> dict[str, Tensor]:
        """All that the program is made of, differentiable in the parameters."""
        arguments, state = self.backbone.arguments, self._parameters
        basis, envelope = self._basis(next(iter(state.values())).dtype)
        filters = self._network.filters(arguments, state, basis, envelope, TORCH)
        coefficients = spline_coefficients(self.knots, filters[1:])
        name = self.backbone.name
        return all_weights(name, arguments, state, coefficients, filters[0], TORCH)

    def _basis(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Radial basis and cutoff function at distance 0 and at the knots."""
        if dtype not in self._prepared:
            distances = np.concatenate([[0.0], self.knots.distances()])
            buffers = {k: v.double().numpy() for k, v in self.backbone.named_buffers()}
            parts = self._network.basis(self.backbone.arguments, buffers, distances)
            parts = [np.where(np.abs(part) > NOTHING, part, 0.0) for part in parts]
            # what is made in inference mode could not be trained with afterwards
            with torch.inference_mode(False):
                basis, envelope = (torch.from_numpy(part).to(dtype) for part in parts)
            self._prepared[dtype] = basis, envelope
        return self._prepared[dtype]

    def evaluate(self, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor]:
        """Energies `(n,)`, forces `(n, 3)` and ∂E/∂ε `(b, 3, 3)` of a batch, in float64.

        Differentiable once, in the parameters.
        """
        weights = self.weights()
        arrays = [weights[name] for name in self.arrangement.names]
        return _Evaluation.apply(self, graph_structures(graph), *arrays)  # type: ignore[no-any-return]

    def run(self, structures: Structures, weights: np.ndarray) -> Evaluated:
        """Evaluate structures, and leave in the room what gradients need."""
        self.evaluations += 1
        p = self.arrangement.program
        self.room = room_for(structures, p, weights.dtype, self.room)
        n, b = len(structures.numbers), len(structures.chunk)
        out = Evaluated(np.empty(n), np.empty((n, 3)), np.empty((b, 3, 3)))
        shared = (
            p.instructions, p.segments[: p.first_order], p.kept, p.local, weights, self.splines,
            structures, self.room, out,
        )  # fmt: skip
        blocks = shares(structures.first_atom, min(threads_allowed(), b))
        together([partial(evaluate, *block, *shared) for block in blocks])
        return out

    def gradients(self, structures: Structures, weights: np.ndarray, of: Evaluated) -> np.ndarray:
        """Gradients of the weights, from those `of` energies, forces and strain gradients.

        They overwrite what the evaluation has left.
        """
        assert self.room is not None
        self.evaluations += 1
        p = self.arrangement.program
        self.room.tangents.cotangents[: len(of.energies)] = of.energies
        strain = 0.5 * (of.strain_gradient + of.strain_gradient.swapaxes(1, 2))
        blocks = shares(structures.first_atom, min(threads_allowed(), len(structures.chunk)))
        row = len(weights) + WIDTH  # the last numbers stay 0
        gradients = aligned(len(blocks) * row, weights.dtype).reshape(len(blocks), row)
        gradients[:] = 0
        shared = (
            p.instructions, p.segments[p.first_order :], p.kept, p.local, weights, self.splines,
            structures, self.room, -of.forces, strain,
        )  # fmt: skip
        calls = [
            partial(add_gradients, *block, *shared, own)
            for block, own in zip(blocks, gradients, strict=True)
        ]
        together(calls)
        return gradients[0] if len(blocks) == 1 else gradients.sum(axis=0)


@dataclass(frozen=True)
class Arrangement:
    """The program of a network in training, and which numbers its weights are.

    Weights are chosen among 0, those of the arrays `names` one after another, and `constants`.
    """

    program: Compiled
    names: list[str]
    source: np.ndarray  # (w,) int32
    constants: np.ndarray  # (c,) float64
    first: np.ndarray  # (numbers,) int32, where each number stands; w if nowhere
    again: list[tuple[np.ndarray, np.ndarray]]  # numbers that stand somewhere else, too, and where
    shapes: list[tuple[int, ...]]  # of the arrays

    @classmethod
    def of(
        cls, name: str, arguments: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> Arrangement:
        """The description of a network on numbers 1, 2, … in place of its weights."""
        ends = dict(zip(shapes, np.cumsum([math.prod(s) for s in shapes.values()]), strict=True))
        numbers = {
            key: np.arange(ends[key] - math.prod(s), ends[key]).reshape(s) + 1.0
            for key, s in shapes.items()
        }
        p = Program(learns=True)
        NETWORKS[name].describe(arguments, numbers, p)
        program = p.finish(TRAINING)
        found = np.where(program.learnt, program.weights, 0).astype(np.int64)
        used = np.zeros(1 + max(ends.values()), bool)
        used[found] = True
        names = [key for key in shapes if used[numbers[key].astype(np.int64)].any()]
        chosen = np.concatenate([numbers[key].ravel() for key in names]).astype(np.int64)
        renumbered = np.zeros(len(used), np.int64)
        renumbered[chosen] = 1 + np.arange(len(chosen))
        source = renumbered[found]
        constants = program.weights[~program.learnt]
        source[~program.learnt] = 1 + len(chosen) + np.arange(len(constants))
        places = _places(source, len(chosen))
        of_names = [shapes[key] for key in names]
        return cls(program, names, source.astype(np.int32), constants, *places, of_names)

    def weights(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Weights of the program from the arrays `names`."""
        kind = arrays[0].dtype
        parts = [np.zeros(1, kind), *(a.ravel() for a in arrays), self.constants.astype(kind)]
        out = aligned(len(self.source), kind)
        take(np.concatenate(parts), self.source, out)
        return out

    def gradients(self, gradients: np.ndarray) -> list[np.ndarray]:
        """Gradients of the arrays, from that of the weights and one 0."""
        found = np.empty(len(self.first), gradients.dtype)
        take(gradients, self.first, found)
        for numbers, places in self.again:
            add_taken(gradients, places, numbers, found)
        parts = np.split(found, np.cumsum([math.prod(shape) for shape in self.shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def _places(
    source: np.ndarray, numbers: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """`first` and `again` of an `Arrangement`: where 1 … `numbers` stand in `source`."""
    order = np.append(np.argsort(source, kind="stable"), len(source))
    starts = np.searchsorted(source, np.arange(1, numbers + 2), sorter=order[:-1])
    times, starts = np.diff(starts), starts[:-1]
    again = [np.flatnonzero(times > k) for k in range(1, times.max(initial=1))]
    first = np.where(times > 0, order[starts], len(source)).astype(np.int32)
    places = [order[starts[which] + k].astype(np.int32) for k, which in enumerate(again, start=1)]
    return first, list(zip(again, places, strict=True))


def graph_structures(graph: AtomGraph) -> Structures:
    """Structures of a batch on the CPU, whose edges come structure by structure."""
    batch, edges = graph.batch.numpy(), graph.edge_index.numpy()
    b = graph.n_structures
    owner = batch[edges[0]]
    if len(owner) and (np.diff(owner) < 0).any():
        raise ValueError("edges of a batch must come structure by structure")
    first_edge = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=b))])
    return structures_of(
        np.bincount(batch, minlength=b), edges, graph.edge_shift.numpy().astype(np.int32),
        first_edge.astype(np.int64), graph.numbers.numpy(),
        graph.positions.detach().numpy().astype(np.float64),
        graph.cell.detach().numpy().astype(np.float64),
    )  # fmt: skip


class _Evaluation(torch.autograd.Function):
    """Energies, forces and strain gradients as a function of all arrays of weights."""

    @staticmethod
    def forward(
        ctx: Any, network: TrainingNetwork, structures: Structures, *arrays: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = network.arrangement.weights([array.detach().numpy() for array in arrays])
        out = network.run(structures, weights)
        ctx.network, ctx.structures, ctx.weights = network, structures, weights
        ctx.evaluation = network.evaluations
        energies, forces, strain_gradient = map(torch.from_numpy, out)
        return energies, forces, strain_gradient

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        network = ctx.network
        if network.evaluations != ctx.evaluation:  # something else came after it
            network.run(ctx.structures, ctx.weights)
        of = Evaluated(*(c.contiguous().numpy() for c in cotangents))
        gradients = network.gradients(ctx.structures, ctx.weights, of)
        return None, None, *map(torch.from_numpy, network.arrangement.gradients(gradients))
