"""Range of the structures seen in training: closest pairs of atoms by elements, largest force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ase_biasgrad.units import N_ELEMENTS


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
    """

    closest: dict[tuple[int, int], float]
    largest_force: float | None = None

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
            return cls(closest, None if force is None else _positive(force))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the record of the training range is damaged: {error!r}") from error

    def record(self) -> dict[str, Any]:
        """JSON values: distances by pairs such as `H-C`, and the largest force."""
        named = {
            f"{chemical_symbols[a]}-{chemical_symbols[b]}": distance
            for (a, b), distance in sorted(self.closest.items())
        }
        return {"closest": named, "largest_force": self.largest_force}

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
    return TrainingRange(closest, max(forces) if len(forces) == len(known) else None)


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


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    if not 0 < value < math.inf:
        raise ValueError(f"{value!r} is not above zero")
    return float(value)
