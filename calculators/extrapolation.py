"""Structures outside of the range that a potential was trained on: found, told, and held together.

Pairs of atoms closer than the closest of their elements in training, and atoms with fewer or more
neighbours than any, are looked for at every evaluation, among candidates that a neighbour list with
a skin keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols

from ase_biasgrad.calculators.engines.base import Evaluation, Structure
from ase_biasgrad.calculators.engines.verlet_list import VerletCache
from ase_biasgrad.calculators.repulsion import repulsion, repulsion_ranges
from ase_biasgrad.neighbours import Edges, neighbour_list
from ase_biasgrad.numerics.native import NativeKernel
from ase_biasgrad.training_range import NONE, WHOLE, TrainingRange, bond_lengths

MEASURE_PAIRS = NativeKernel("ase_biasgrad.calculators.close_pairs", "measure_pairs")
ROUNDING = 1e-9  # relative, of distances that are those of training
FORCE_MARGIN = 1.2  # forces err: only those beyond this times the largest in training count
ADVICE = "Energies and forces are extrapolated; label such structures and train on them"


# strains xx yy zz yz xz xy as symmetric matrices (6, 3, 3), a shear being 2 ε
STRAINS = np.zeros((6, 3, 3))
for _m, (_k, _l) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
    STRAINS[_m, _k, _l] += 0.5
    STRAINS[_m, _l, _k] += 0.5


class ExtrapolationWarning(UserWarning):
    """Structure outside of the range of distances or forces that a potential was trained on."""


class ExtrapolationError(InputError):
    """The same as an error, of a calculator that is strict."""


class Candidates(NamedTuple):
    """Pairs that may come too close or be neighbours, each once."""

    first: np.ndarray  # (p,) int64
    second: np.ndarray  # (p,) int64
    shift: np.ndarray  # (p, 3) float64, cells
    squares: np.ndarray  # (p,) Å², of the closest distance in training
    lengths: np.ndarray  # (p,) Å, of a bond


class Measure:
    """Candidates, and what is outside among them: one compiled call, bound once.

    Attributes
    ----------
    counts, low, high
        Coordination numbers `(n, k)` by elements of neighbours, and their limits; k is 0 where the
        range of training is not known.
    """

    def __init__(
        self, candidates: Candidates, kinds: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> None:
        self.candidates, self.low, self.high = candidates, low, high
        self.counts = np.zeros_like(low)
        self._positions, self._cell = np.empty((len(kinds), 3)), np.empty((3, 3))
        self._found = np.zeros(2, np.int64)
        self._measure = MEASURE_PAIRS.bind(
            self._positions, self._cell, candidates, WHOLE, NONE, kinds, low, high, self.counts,
            self._found,
        )  # fmt: skip

    def of(self, structure: Structure) -> tuple[int, int]:
        """Numbers of pairs that are too close, and of coordination numbers out of their range."""
        self._positions[:], self._cell[:] = structure.positions, structure.cell
        self._measure()
        return int(self._found[0]), int(self._found[1])


@dataclass(frozen=True)
class ClosePairs:
    """Pairs closer than the closest of their elements in training."""

    first: np.ndarray  # (p,)
    second: np.ndarray  # (p,)
    vectors: np.ndarray  # (p, 3) Å, from the first atom to the second
    distances: np.ndarray  # (p,) Å
    closest: np.ndarray  # (p,) Å, in training


class RangeCheck:
    """Checks structures against a training range, and repels what came too close.

    Parameters
    ----------
    seen
        The range.
    cutoff
        Of the potential in Å. Elements of which no pair was seen have never been closer.
    skin
        Of the neighbour list, in Å.
    elements
        Atomic numbers that the potential knows.
    """

    def __init__(
        self, seen: TrainingRange, cutoff: float, skin: float, elements: Collection[int]
    ) -> None:
        self.seen, self.cutoff = seen, cutoff
        self.closest = seen.table(cutoff)  # (elements, elements) Å
        self.ranges = repulsion_ranges(self.closest, cutoff)
        known = np.array(sorted(elements), np.int64)
        self.reach = float(self.closest[np.ix_(known, known)].max()) if len(known) else cutoff
        self._counted = np.array([], np.int64) if seen.coordination is None else known
        self._lengths = bond_lengths(cutoff if not seen.coordination else seen.coordination.cutoff)
        if len(self._counted):
            self.reach = max(self.reach, NONE * float(self._lengths[np.ix_(known, known)].max()))
        self._skin = skin
        self._lists: list[VerletCache[Measure]] = []  # by places

    def fresh(self) -> RangeCheck:
        """Another one without a neighbour list."""
        other = object.__new__(RangeCheck)
        other.__dict__ |= self.__dict__
        other._lists = []
        return other

    def reset(self) -> None:
        """Forget the neighbour lists."""
        self._lists = []

    def outside(
        self, structure: Structure, place: int | None = 0
    ) -> tuple[ClosePairs | None, str | None]:
        """Pairs that are closer than any in training, and what is outside, said; None inside.

        The neighbour list of a place serves the next structure there, too, as in dynamics; with
        `place=None` a list is searched for this structure alone.
        """
        s = structure
        if place is None:
            measure = self._measure(neighbour_list(s.positions, s.cell, s.pbc, self.reach), s)
        else:
            while len(self._lists) <= place:
                self._lists.append(VerletCache(self.reach, self._skin, self._measure))
            measure = self._lists[place].of(s)
        closer, unusual = measure.of(s)
        pairs = self._pairs(measure.candidates, s) if closer else None
        if pairs is not None:
            return pairs, self.told(s.numbers, pairs)
        return None, self._unusual(s.numbers, measure) if unusual else None

    def _pairs(self, candidates: Candidates, s: Structure) -> ClosePairs | None:
        first, second, shift, squares, _ = candidates
        vectors = s.positions[second] - s.positions[first] + shift @ s.cell
        distances = np.linalg.norm(vectors, axis=1)
        close = distances**2 < squares
        closest = self.closest[s.numbers[first], s.numbers[second]]
        found = (first, second, vectors, distances, closest)
        return ClosePairs(*(values[close] for values in found)) if close.any() else None

    def _measure(self, edges: Edges, structure: Structure) -> Measure:
        i, j = edges.centre.astype(np.int64), edges.neighbour.astype(np.int64)
        shift = edges.shift.astype(np.float64)
        sign = np.sign(shift) @ np.array([4.0, 2.0, 1.0])
        once = (i < j) | ((i == j) & (sign > 0))
        i, j, numbers = i[once], j[once], structure.numbers
        squares = (self.closest[numbers[i], numbers[j]] * (1 - ROUNDING)) ** 2
        shift, lengths = np.ascontiguousarray(shift[once]), self._lengths[numbers[i], numbers[j]]
        low = high = np.zeros((len(numbers), 0))
        if self.seen.coordination is not None:
            low, high = self.seen.coordination.limits(numbers, self._counted)
        kinds = np.searchsorted(self._counted, numbers).astype(np.int64)
        return Measure(Candidates(i, j, shift, squares, lengths), kinds, low, high)

    # --- what is said ----------------------------------------------------------------------

    def told(self, numbers: np.ndarray, pairs: ClosePairs) -> str:
        """Say which pair is furthest outside, and by how much."""
        worst = int(np.argmin(pairs.distances / pairs.closest))
        i, j = int(pairs.first[worst]), int(pairs.second[worst])
        names = [f"{k} ({chemical_symbols[numbers[k]]})" for k in (i, j)]
        kind = "-".join(chemical_symbols[z] for z in sorted((numbers[i], numbers[j])))
        closest = pairs.closest[worst]
        training = (
            f"the closest {kind} pair in training was at {closest:.3f} Å"
            if closest < self.cutoff
            else f"no {kind} pair was closer than the cutoff of {closest:g} Å in training"
        )
        more = f"; {len(pairs.distances)} pairs are too close" if len(pairs.distances) > 1 else ""
        return (
            f"the structure is outside of the training range: atoms {names[0]} and {names[1]} are "
            f"{pairs.distances[worst]:.3f} Å apart, and {training}{more}"
        )

    def _unusual(self, numbers: np.ndarray, measure: Measure) -> str:
        """Say which atom has fewer or more neighbours than any in training."""
        beyond = np.maximum(measure.low - measure.counts, measure.counts - measure.high)
        i, k = (int(place) for place in np.unravel_index(np.argmax(beyond), beyond.shape))
        atom, neighbour = int(numbers[i]), int(self._counted[k])
        assert self.seen.coordination is not None
        least, most = self.seen.coordination.ranges[atom, neighbour]
        return (
            f"the structure is outside of the training range: atom {i} ({chemical_symbols[atom]}) "
            f"has {measure.counts[i, k]:.2f} {chemical_symbols[neighbour]} as neighbours (closer "
            f"than {WHOLE:g} to {NONE:g} bond lengths), and {least:.2f} to {most:.2f} in training"
        )

    def too_large(self, numbers: np.ndarray, forces: np.ndarray) -> str | None:
        """Say which of the forces `(n, 3)` is larger than all in training, if one is."""
        largest = self.seen.largest_force
        if largest is None:
            return None
        lengths = np.sqrt(np.einsum("ik,ik->i", forces, forces))
        if not lengths.max(initial=0.0) > FORCE_MARGIN * largest:
            return None
        k = int(np.argmax(lengths))
        return (
            f"the structure is outside of the training range: the force on atom {k} "
            f"({chemical_symbols[numbers[k]]}) is {lengths[k]:.2f} eV/Å, and the largest in "
            f"training was {largest:.2f} eV/Å"
        )

    # --- the repulsion ---------------------------------------------------------------------

    def repelled(self, numbers: np.ndarray, pairs: ClosePairs, found: Evaluation) -> Evaluation:
        """The evaluation with the repulsion of these pairs in each member; half on each atom."""
        first, second = numbers[pairs.first], numbers[pairs.second]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # coincident atoms
            v, slope, _ = repulsion(first, second, pairs.distances, self.ranges[first, second])
            unit = pairs.vectors / pairs.distances[:, None]  # (p, 3)
        energies = found.energies.copy()
        for of_member in energies:
            np.add.at(of_member, pairs.first, v / 2)
            np.add.at(of_member, pairs.second, v / 2)
        if found.forces is None or found.strain_gradient is None:
            return Evaluation(energies, found.forces, found.strain_gradient)
        forces, pull = found.forces.copy(), slope[:, None] * unit  # (p, 3), ∂V/∂(r_j − r_i)
        for of_member in forces:
            np.add.at(of_member, pairs.first, pull)
            np.add.at(of_member, pairs.second, -pull)
        strain = found.strain_gradient + np.einsum("pk,pl->kl", pull, pairs.vectors)
        return Evaluation(energies, forces, strain)

    def hessian(self, numbers: np.ndarray, pairs: ClosePairs, strain: bool) -> np.ndarray:
        """Second derivatives of the repulsion, as in `BiasGradCalculator.get_hessian`."""
        first, second = numbers[pairs.first], numbers[pairs.second]
        _, slope, curvature = repulsion(first, second, pairs.distances, self.ranges[first, second])
        n = len(numbers)
        total = np.zeros((3 * n + 6 * strain, 3 * n + 6 * strain))
        for i, j, vector, distance, s, c in zip(
            pairs.first, pairs.second, pairs.vectors, pairs.distances, slope, curvature, strict=True
        ):
            unit = vector / distance
            along = np.outer(unit, unit)
            second_order = c * along + s / distance * (np.eye(3) - along)  # (3, 3)
            moves = np.zeros((3, len(total)))  # of the vector with every coordinate
            moves[:, 3 * j : 3 * j + 3] += np.eye(3)
            moves[:, 3 * i : 3 * i + 3] -= np.eye(3)
            if strain:
                moves[:, 3 * n :] = np.einsum("k,mkl->lm", vector, STRAINS)
                turned = np.einsum("mkl,l->km", STRAINS, s * unit)  # (3, 6), ∂²V/∂r∂ε of r (1 + ε)
                for atom, sign in ((j, 1), (i, -1)):
                    rows = slice(3 * atom, 3 * atom + 3)
                    total[rows, 3 * n :] += sign * turned
                    total[3 * n :, rows] += sign * turned.T
            total += moves.T @ second_order @ moves
        return total


class Notice:
    """Tells of structures outside: a warning the first time, or an error every time."""

    def __init__(self, strict: bool) -> None:
        self.strict, self.given = strict, False

    def give(self, message: str | None) -> None:
        """Warn of what a message says, or raise `ExtrapolationError`; None says nothing."""
        if message is None:
            return
        if self.strict:
            raise ExtrapolationError(message)
        if not self.given:
            self.given = True
            warnings.warn(f"{message}. {ADVICE}", ExtrapolationWarning, stacklevel=8)
