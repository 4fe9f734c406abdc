"""Range of the structures seen in training: closest pairs, neighbours of atoms, largest force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from ase_biasgrad.units import N_ELEMENTS

WHOLE, NONE = 1.2, 1.7  # bond lengths; nearer atoms count whole, farther ones not


@dataclass(frozen=True)
class Coordination:
    """Range of the coordination numbers of atoms.

    n_ib = Σ_j s(d_ij / (R_i + R_j)) over the atoms j of element b, with covalent radii R, and s
    falling smoothly from 1 at 1.2 to 0 at 1.7: how many b the atom i has as neighbours.

    Attributes
    ----------
    cutoff
        Range of the neighbours that were counted in Å.
    ranges
        Smallest and largest number by the element of the atom and that of its neighbours.
    """

    cutoff: float
    ranges: dict[tuple[int, int], tuple[float, float]]

    def limits(self, numbers: np.ndarray, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `(n, elements)` below and above which an atom is outside.

        These lie beyond the range by a quarter of a neighbour and of the width of the range: long
        dynamics go somewhat further than the frames of a training.
        """
        low = np.full((len(numbers), len(elements)), -np.inf)
        high = -low
        for k, b in enumerate(elements.tolist()):
            for a in np.unique(numbers).tolist():
                if (a, b) in self.ranges:
                    least, most = self.ranges[a, b]
                    margin = 0.25 * (1 + most - least)
                    low[numbers == a, k], high[numbers == a, k] = least - margin, most + margin
        return low, high


@dataclass(frozen=True)
class TrainingRange:
    """Range of distances and forces that a potential was trained on.

    Attributes
    ----------
    closest
        Distance in Å of the closest pair of each two elements, by their atomic numbers, the lower
        one first. Elements of which no pair came within the cutoff are not in it.
    largest_force
        Length of the longest force on an atom in eV/Å, None where it is not known.
    coordination
        Range of the coordination numbers, None where it is not known.
    """

    closest: dict[tuple[int, int], float]
    largest_force: float | None = None
    coordination: Coordination | None = None

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> TrainingRange:
        """Read JSON values of `record`.

        Raises
        ------
        ValueError
            If they are none.
        """
        try:
            closest = {_pair(name): _positive(d) for name, d in record["closest"].items()}
            force = record["largest_force"]
            neighbours = record.get("coordination")  # early records have none
            return cls(
                closest,
                None if force is None else _positive(force),
                None if neighbours is None else _coordination(neighbours),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the record of the training range is damaged: {error!r}") from error

    def record(self) -> dict[str, Any]:
        """JSON values: distances by pairs such as `H-C`, and the largest force."""
        named = {
            f"{chemical_symbols[a]}-{chemical_symbols[b]}": distance
            for (a, b), distance in sorted(self.closest.items())
        }
        record = {"closest": named, "largest_force": self.largest_force}
        if self.coordination is None:
            return record
        ranges = {
            f"{chemical_symbols[b]} of {chemical_symbols[a]}": list(limits)
            for (a, b), limits in sorted(self.coordination.ranges.items())
        }
        return {**record, "coordination": {"cutoff": self.coordination.cutoff, "ranges": ranges}}

    def table(self, unseen: float) -> np.ndarray:
        """Closest distances by both atomic numbers, `(N_ELEMENTS, N_ELEMENTS)` Å.

        Pairs that were not seen get `unseen`.
        """
        table = np.full((N_ELEMENTS, N_ELEMENTS), unseen)
        for (a, b), distance in self.closest.items():
            table[a, b] = table[b, a] = min(distance, unseen)
        return table


def joined(ranges: Sequence[TrainingRange | None]) -> TrainingRange | None:
    """Range that the members of a committee saw together, None if one of them does not say."""
    known = [each for each in ranges if each is not None]
    if len(known) < len(ranges) or not known:
        return None
    pairs = {pair for each in known for pair in each.closest}
    closest = {pair: min(r.closest.get(pair, math.inf) for r in known) for pair in pairs}
    forces = [r.largest_force for r in known if r.largest_force is not None]
    force = max(forces) if len(forces) == len(known) else None
    return TrainingRange(closest, force, _joined_coordination([r.coordination for r in known]))


def _joined_coordination(all_: Sequence[Coordination | None]) -> Coordination | None:
    """Range that all saw together, None if they counted in different ways or one did not."""
    known = [each for each in all_ if each is not None]
    if len(known) < len(all_) or len({each.cutoff for each in known}) != 1:
        return None
    ranges: dict[tuple[int, int], tuple[float, float]] = {}
    for each in known:
        for pair, (low, high) in each.ranges.items():
            least, most = ranges.get(pair, (low, high))
            ranges[pair] = min(low, least), max(high, most)
    return Coordination(known[0].cutoff, ranges)


def bond_lengths(cutoff: float) -> np.ndarray:
    """R_a + R_b `(N_ELEMENTS, N_ELEMENTS)` Å of covalent radii, at most `cutoff` / 1.7."""
    radii = covalent_radii[:N_ELEMENTS]
    return np.minimum(radii[:, None] + radii, cutoff / NONE)


def coordination_of_pairs(
    numbers: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    distances: np.ndarray,
    elements: np.ndarray,
    cutoff: float,
) -> Coordination:
    """Range of coordination numbers by `elements`, from pairs in both directions.

    Atomic numbers `(n,)`, atoms `(p,)` of each pair within `cutoff`, and their distances in Å.
    """
    lengths = bond_lengths(cutoff)[numbers[first], numbers[second]]
    t = np.clip((NONE - distances / lengths) / (NONE - WHOLE), 0, 1)
    counts = np.zeros((len(numbers), N_ELEMENTS))
    np.add.at(counts, (first, numbers[second]), t * t * (3 - 2 * t))
    ranges = {}
    for a in np.unique(numbers).tolist():
        found = counts[numbers == a]
        for b in elements.tolist():
            ranges[a, b] = float(found[:, b].min()), float(found[:, b].max())
    return Coordination(cutoff, ranges)


def range_of_pairs(
    first: np.ndarray, second: np.ndarray, distances: np.ndarray, largest_force: float | None
) -> TrainingRange:
    """Range of pairs of atomic numbers `(p,)`, `(p,)` at distances `(p,)` in Å."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    kinds, which = np.unique(low * N_ELEMENTS + high, return_inverse=True)
    closest = np.full(len(kinds), np.inf)
    np.minimum.at(closest, which.ravel(), distances)
    pairs = [(int(kind) // N_ELEMENTS, int(kind) % N_ELEMENTS) for kind in kinds]
    return TrainingRange(dict(zip(pairs, closest.tolist(), strict=True)), largest_force)


def _pair(name: str) -> tuple[int, int]:
    first, second = (atomic_numbers[symbol] for symbol in name.split("-"))
    return min(first, second), max(first, second)


def _coordination(record: dict[str, Any]) -> Coordination:
    ranges = {}
    for name, (low, high) in record["ranges"].items():
        neighbour, centre = name.split(" of ")
        if not all(type(v) in (int, float) and 0 <= v < math.inf for v in (low, high)):
            raise ValueError(f"{name} is from {low!r} to {high!r}")
        ranges[atomic_numbers[centre], atomic_numbers[neighbour]] = float(low), float(high)
    return Coordination(_positive(record["cutoff"]), ranges)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    if not 0 < value < math.inf:
        raise ValueError(f"{value!r} is not above zero")
    return float(value)
