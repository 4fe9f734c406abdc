"""The training range in a sub-domain: pairs that are too close, their repulsion, and what is said.

The same as in `BiasGradCalculator`. Pairs of two processes are found by both of them.
"""

from __future__ import annotations

import numpy as np

from ase_biasgrad.calculators.engines.base import Evaluation, Structure
from ase_biasgrad.calculators.extrapolation import ROUNDING, ClosePairs, RangeCheck
from ase_biasgrad.neighbours import Edges


class DomainRange:
    """Checks the own atoms, for as long as a neighbour list holds."""

    def __init__(
        self,
        check: RangeCheck,  # of the potential
        structure: Structure,  # own atoms and, behind them, copies of others
        tags: np.ndarray,  # (rows,) LAMMPS' ids
        edges: Edges,  # of the own atoms to all within cutoff and skin
        own: int,  # number of own atoms
        skin: float,  # Å that pairs may come closer before another list
        repels: bool,  # repel pairs that are too close
    ) -> None:
        self.check, self.numbers, self.tags = check, structure.numbers, tags
        self.own, self.repels = own, repels
        i, j = edges.centre, edges.neighbour
        once = (i < j) | ((i == j) & (np.sign(edges.shift) @ [4, 2, 1] > 0))
        closest = check.closest[self.numbers[i], self.numbers[j]]
        lengths = np.linalg.norm(edges.vectors(structure.positions, structure.cell), axis=1)
        near = once & (lengths < closest + skin)
        self.pairs, self.closest = edges.select(near), closest[near]

    def applied(
        self, positions: np.ndarray, cell: np.ndarray, found: Evaluation
    ) -> tuple[Evaluation, str | None]:
        """The evaluation of own atoms with the repulsion, and how they are outside, or None."""
        assert found.forces is not None
        vectors = self.pairs.vectors(positions, cell)
        squares = np.einsum("pk,pk->p", vectors, vectors)
        close = squares < (self.closest * (1 - ROUNDING)) ** 2
        if not close.any():
            return found, self._too_large(found.forces.mean(axis=0))
        pairs = ClosePairs(
            self.pairs.centre[close], self.pairs.neighbour[close], vectors[close],
            np.sqrt(squares[close]), self.closest[close],
        )  # fmt: skip
        message = self._told(pairs)
        return (self._repelled(pairs, found) if self.repels else found), message

    def _repelled(self, pairs: ClosePairs, found: Evaluation) -> Evaluation:
        assert found.forces is not None
        assert found.strain_gradient is not None
        n, rows = self.own, len(self.numbers)
        energies = np.pad(found.energies, ((0, 0), (0, rows - n)))
        forces = np.pad(found.forces, ((0, 0), (0, rows - n), (0, 0)))
        nothing = np.zeros_like(found.strain_gradient)
        all_pairs = self.check.repelled(self.numbers, pairs, Evaluation(energies, forces, nothing))
        shared = pairs.second >= n  # half of their strain is that of the other process
        across = ClosePairs(
            pairs.first[shared], pairs.second[shared], pairs.vectors[shared],
            pairs.distances[shared], pairs.closest[shared],
        )  # fmt: skip
        of_shared = self.check.repelled(self.numbers, across, Evaluation(energies, forces, nothing))
        assert all_pairs.forces is not None
        assert all_pairs.strain_gradient is not None
        assert of_shared.strain_gradient is not None
        strain = all_pairs.strain_gradient - of_shared.strain_gradient / 2
        return Evaluation(
            all_pairs.energies[:, :n], all_pairs.forces[:, :n], found.strain_gradient + strain
        )

    def _told(self, pairs: ClosePairs) -> str:
        named = dict(zip(self.tags.tolist(), self.numbers.tolist(), strict=True))
        first, second = self.tags[pairs.first], self.tags[pairs.second]
        by_id = ClosePairs(first, second, pairs.vectors, pairs.distances, pairs.closest)
        return self.check.told(named, by_id)  # type: ignore[arg-type]

    def _too_large(self, forces: np.ndarray) -> str | None:
        if self.check.too_large(self.numbers[: self.own], forces) is None:
            return None
        by_id = np.zeros((self.tags.max() + 1, 3)), np.zeros(self.tags.max() + 1, np.int64)
        by_id[0][self.tags[: self.own]], by_id[1][self.tags] = forces, self.numbers
        return self.check.too_large(by_id[1], by_id[0])
