"""Sub-domains: the atoms of one process, and copies of atoms of others that they see.

Nothing is evaluated twice. Rows of memory are the own atoms and, behind them, the copies. Before a
segment that reads other atoms, the copies of what it reads are brought from the processes that
evaluate them. This is enough in both directions, since the adjoint of what an atom sends is
gathered from its neighbours, too: forces on own atoms are complete, and no copy has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ase_biasgrad.calculators.engines.base import Evaluation
from ase_biasgrad.calculators.engines.cpu.room import ADD_FORCES, EDGES_WITHIN, EXECUTE
from ase_biasgrad.fused.operations import Operation
from ase_biasgrad.fused.runtime import (
    Candidates,
    Compiled,
    CompiledNetwork,
    atoms_at_once,
    empty_edges,
    numbers_needed,
)
from ase_biasgrad.numerics.native import BoundCall
from ase_biasgrad.numerics.splines import polynomials, slope_polynomials
from ase_biasgrad.numerics.vector_memory import aligned

# operands of which an instruction reads the rows of other atoms, where no earlier one has
READ: dict[int, tuple[int, ...]] = {
    Operation.CFCONV: (1,),
    Operation.CFCONV_VJP: (1,),
    Operation.TENSOR_MESSAGE: (),
    Operation.TENSOR_MESSAGE_VJP: (1,),
    Operation.TENSOR_CFCONV: (1,),
    Operation.TENSOR_CFCONV_VJP: (1,),
    Operation.VECTOR_MESSAGE: (1, 5),
    Operation.VECTOR_MESSAGE_VJP: (1, 3),
}


class Halo(Protocol):
    """Copies of atoms of other processes."""

    def fill(self, values: np.ndarray) -> None:
        """Write the copies' rows of values `(rows, width)`, and give away those of own atoms."""
        ...


def read_before(program: Compiled) -> list[list[tuple[int, int]]]:
    """Variables, as start and width, that each segment reads of other atoms."""
    firsts = program.segments[: program.first_order, 0]  # only there is something to read
    rows = [program.instructions[first] for first in firsts]
    operands = [READ.get(int(row[0]), ()) for row in rows]
    return [
        sorted({(int(row[k]), int(row[k + 1])) for k in ks})
        for row, ks in zip(rows, operands, strict=True)
    ]


class SubDomain:
    """Evaluates networks for the own atoms, for as long as the candidates of edges hold."""

    def __init__(
        self,
        networks: Sequence[CompiledNetwork],  # one for each member of a committee
        numbers: np.ndarray,  # (rows,) int64, own atoms first
        candidates: Candidates,  # edges whose centres are the own atoms
    ) -> None:
        n = len(candidates.inners)
        self.positions, self.cell = np.empty((len(numbers), 3)), np.empty((1, 3, 3))
        # without atoms there is nothing to evaluate, and no process needs anything of this one
        self._members = [
            _Member(network, numbers, candidates, self.positions, self.cell)
            for network in networks
            if n
        ]
        shape = (len(networks), n)
        self._nothing = Evaluation(
            np.empty(shape), np.empty((*shape, 3)), np.zeros((*shape[:1], 3, 3))
        )

    def evaluate(self, own: np.ndarray, cell: np.ndarray, halo: Halo) -> Evaluation:
        """Energies and forces of own atoms, and this process' share of ∂E/∂ε.

        Parameters
        ----------
        own, cell
            `(n, 3)` and `(3, 3)` in Å, which the shifts of the candidates count in.
        halo
            Brings the copies; all processes that share atoms must evaluate at the same time.
        """
        self.positions[: len(own)], self.cell[0] = own, cell
        halo.fill(self.positions)
        if not self._members:
            return self._nothing
        for member in self._members:
            member.evaluate(halo)
        return Evaluation(
            np.stack([member.energies for member in self._members]),
            np.stack([member.forces for member in self._members]),
            np.stack([member.strain[0] for member in self._members]),
        )


class _Member:
    """Memory of one network, and the calls that evaluate it."""

    def __init__(
        self, network: CompiledNetwork, numbers: np.ndarray, candidates: Candidates,
        positions: np.ndarray, cell: np.ndarray,
    ) -> None:  # fmt: skip
        n, rows = len(candidates.inners), len(numbers)
        program, knots, dtype = network.program, network.knots, network.program.weights.dtype
        self.energies, self.forces = np.empty(n), np.empty((n, 3))
        self.strain = np.empty((1, 3, 3))
        vectors, owner = np.empty((len(candidates.neighbour), 4)), np.zeros(n, np.int64)
        edges = empty_edges(numbers, candidates, self.energies, dtype)
        self._find_edges = EDGES_WITHIN.bind(
            0, 1, positions, cell, owner, candidates, knots.cutoff, knots.spacing, knots.count - 1,
            polynomials(), slope_polynomials(), vectors, edges,
        )  # fmt: skip
        memory = aligned(numbers_needed(program, n, 1) + program.kept * (rows - n), dtype)
        self._stages: list[tuple[list[np.ndarray], BoundCall]] = []
        for k, variables in enumerate(read_before(program)):
            read = [
                memory[start * rows : (start + width) * rows].reshape(rows, width)
                for start, width in variables
            ]
            call = EXECUTE.bind(
                0, 1, program.instructions, program.segments[k : k + 1], atoms_at_once(n),
                program.kept, program.local, memory, program.weights, edges,
            )  # fmt: skip
            self._stages.append((read, call))
        self._add_forces = ADD_FORCES.bind(
            vectors, edges, owner, knots.spacing, self.forces, self.strain
        )

    def evaluate(self, halo: Halo) -> None:
        """Fill energies, forces and strain."""
        self._find_edges()
        for read, call in self._stages:
            for values in read:
                halo.fill(values)
            call()
        self.forces[:] = 0
        self.strain[:] = 0
        self._add_forces()
