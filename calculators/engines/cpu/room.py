"""Memory of one network on one list of candidate edges, and the calls that evaluate it there."""

from __future__ import annotations

from collections.abc import Sequence
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

COMPILED = "ase_biasgrad.fused"
EDGES_WITHIN = NativeKernel(f"{COMPILED}.geometry", "edges_within")
EXECUTE = NativeKernel(f"{COMPILED}.execute", "execute")
ADD_FORCES = NativeKernel(f"{COMPILED}.geometry", "add_forces")


class Workspace:
    """Numbers that one evaluation after another may overwrite, and so find in the cache."""

    def __init__(self) -> None:
        self._numbers = np.empty(0)

    def numbers(self, count: int, dtype: np.dtype) -> np.ndarray:
        """Room for so many numbers `(count,)`, whose values mean nothing."""
        if self._numbers.size < count or self._numbers.dtype != dtype:
            self._numbers = np.empty(count, dtype)
        return self._numbers[:count]


class Room:
    """Arrays that are allocated once and filled at every evaluation.

    Attributes
    ----------
    energies, forces, strain
        Of the last evaluation: `(n,)` eV, `(n, 3)` eV/Å, and ∂E/∂ε `(structures, 3, 3)` eV.
    """

    def __init__(
        self, network: CompiledNetwork, structures: Sequence[Structure], candidates: Candidates,
        blocks: int, workspace: Workspace,
    ) -> None:  # fmt: skip
        self.candidates, self.blocks = candidates, blocks
        numbers = np.concatenate([s.numbers for s in structures])
        owner = np.repeat(np.arange(len(structures)), [len(s.numbers) for s in structures])
        n, dtype = len(numbers), network.program.weights.dtype
        self._positions, self._cells = np.empty((n, 3)), np.empty((len(structures), 3, 3))
        self.energies, self.forces = np.empty(n), np.empty((n, 3))
        self.strain = np.empty((len(structures), 3, 3))
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
        memory = workspace.numbers(numbers_needed(program, n, blocks), dtype)

        def stages(first: int, last: int) -> list[list[BoundCall]]:
            """Calls of all blocks, which wait for each other after each segment."""
            ends = [first, last] if blocks == 1 else range(first, last + 1)
            return [
                [
                    EXECUTE.bind(
                        block, blocks, program.instructions, program.segments[a:b],
                        atoms_at_once(n), program.kept, program.local, memory, program.weights,
                        edges,
                    )
                    for block in range(blocks)
                ]
                for a, b in pairwise(ends)
            ]  # fmt: skip

        self._forward = stages(0, program.forward)
        self._backward = stages(program.forward, program.first_order)
        self._add_forces = ADD_FORCES.bind(
            vectors, edges, owner, knots.spacing, self.forces, self.strain
        )

    def evaluate(self, structures: Sequence[Structure], derivatives: bool) -> None:
        """Fill energies; with `derivatives` forces and the strain gradient, too."""
        np.concatenate([s.positions for s in structures], out=self._positions)
        np.stack([s.cell for s in structures], out=self._cells)
        together(self._find_edges)
        for stage in self._forward:
            together(stage)
        if derivatives:
            for stage in self._backward:
                together(stage)
            self.forces[:] = 0
            self.strain[:] = 0
            self._add_forces()
