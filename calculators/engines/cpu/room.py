"""Memory of one network for one structure and its edges, and the calls that evaluate it there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ase_biasgrad.fused.runtime import (
    Candidates,
    CompiledNetwork,
    atoms_at_once,
    empty_edges,
    numbers_needed,
)
from ase_biasgrad.neighbours import Structure
from ase_biasgrad.numerics.native import BoundCall, NativeKernel
from ase_biasgrad.numerics.splines import polynomials, slope_polynomials
from ase_biasgrad.numerics.threads import together
from ase_biasgrad.numerics.vector_memory import aligned

COMPILED = "ase_biasgrad.fused"
EDGES_WITHIN = NativeKernel(f"{COMPILED}.geometry", "edges_within")
EXECUTE = NativeKernel(f"{COMPILED}.execute", "execute")
ADD_FORCES = NativeKernel(f"{COMPILED}.geometry", "add_forces")
Stages = list[list[BoundCall]]


class Workspace:
    """Numbers that one evaluation after another may overwrite, and so find in the cache."""

    def __init__(self) -> None:
        self._numbers = np.empty(0)

    def numbers(self, count: int, dtype: np.dtype) -> np.ndarray:
        """Room for so many numbers `(count,)`, whose values mean nothing."""
        if self._numbers.size < count or self._numbers.dtype != dtype:
            self._numbers = aligned(count, dtype)
        return self._numbers[:count]


class Room:
    """Arrays that are allocated once and filled at every evaluation.

    Attributes
    ----------
    energies, forces, strain
        Of the last evaluation: `(n,)` eV, `(n, 3)` eV/Å, and ∂E/∂ε `(1, 3, 3)` eV.
    """

    def __init__(
        self, network: CompiledNetwork, structure: Structure, candidates: Candidates, blocks: int,
        workspace: Workspace,
    ) -> None:  # fmt: skip
        self.candidates, self.blocks = candidates, blocks
        numbers, n = structure.numbers, len(structure.numbers)
        owner, dtype = np.zeros(n, np.int64), network.program.weights.dtype
        self._positions, self._cells = np.empty((n, 3)), np.empty((1, 3, 3))
        self.energies, self.forces = np.empty(n), np.empty((n, 3))
        self.strain = np.empty((1, 3, 3))
        vectors = np.empty((len(candidates.neighbour), 4))  # r_j − r_i and its length
        edges = empty_edges(numbers, candidates, self.energies, dtype)
        knots, program = network.knots, network.program
        self._find_edges = [
            EDGES_WITHIN.bind(
                block, blocks, self._positions, self._cells, owner, candidates, knots.cutoff,
                knots.spacing, knots.count - 1, polynomials(), slope_polynomials(), vectors, edges,
            )
            for block in range(blocks)
        ]  # fmt: skip
        self._program, self._edges = program, edges
        self._memory = workspace.numbers(numbers_needed(program, n, blocks), dtype)
        self._forward = self._stages(0, program.forward, program.weights)
        self._backward = self._stages(program.forward, program.first_order, program.weights)
        self._add_forces = ADD_FORCES.bind(
            vectors, edges, owner, knots.spacing, self.forces, self.strain
        )
        self._of_readouts: tuple[np.ndarray, Stages, Stages] | None = None

    def evaluate(self, structure: Structure, derivatives: bool) -> None:
        """Fill energies; with `derivatives` forces and the strain gradient, too."""
        self._take(structure)
        _run(self._forward)
        if derivatives:
            self._differentiate(self._backward)

    def readouts(self, structure: Structure, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies `(k, n)` and forces `(k, n, 3)` with each of `rows (k, width)` as last layer.

        All share the forward pass up to the last messages.
        """
        program = self._program
        if self._of_readouts is None:
            weights, last = program.weights.copy(), program.forward - 1
            weights[program.last_bias] = 0
            ahead = self._stages(0, last, weights)
            self._of_readouts = weights, ahead, self._stages(last, program.first_order, weights)
        weights, ahead, again = self._of_readouts
        energies = np.empty((len(rows), *self.energies.shape))
        forces = np.empty((len(rows), *self.forces.shape))
        self._take(structure)
        _run(ahead)
        kept = self._memory[: program.kept * len(self.energies)]
        before = kept.copy()  # the passes that follow overwrite what they need no more
        for k, row in enumerate(rows):
            kept[:] = before
            self._edges.adjoints[:] = 0
            weights[program.last_weights : program.last_weights + len(row)] = row
            self._differentiate(again)
            energies[k], forces[k] = self.energies, self.forces
        return energies, forces

    def _take(self, structure: Structure) -> None:
        self._positions[:], self._cells[0] = structure.positions, structure.cell
        together(self._find_edges)

    def _differentiate(self, stages: Stages) -> None:
        _run(stages)
        self.forces[:] = 0
        self.strain[:] = 0
        self._add_forces()

    def _stages(self, first: int, last: int, weights: np.ndarray) -> Stages:
        """Calls of all blocks, which wait for each other after each segment."""
        ends = [first, last] if self.blocks == 1 else range(first, last + 1)
        program = self._program
        return [
            [
                EXECUTE.bind(
                    block, self.blocks, program.instructions, program.segments[a:b],
                    atoms_at_once(len(self.energies)), program.kept, program.local, self._memory,
                    weights, self._edges,
                )
                for block in range(self.blocks)
            ]
            for a, b in pairwise(ends)
        ]  # fmt: skip


def _run(stages: Stages) -> None:
    for stage in stages:
        together(stage)
