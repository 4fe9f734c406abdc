"""Scales that turn the spread of a committee into standard deviations and 90 % intervals.

Spreads are standard deviations over the members. They are compared with errors on labelled frames
that no member was trained on:

- by *variance scaling*, √(Σ e² / Σ s²) turns them into standard deviations of the error
  (D. Levi et al., arXiv:1905.11659). The median over groups of errors counts, so that a few frames
  far out, where both are a hundred times as large, do not decide for the others. Groups must not
  be of like spread: that of few members is mostly noise, and the small ones would be too small;
- a *conformal* quantile of |e| / s turns them into half widths of intervals that hold 90 % of the
  errors, whatever their distribution (H. Papadopoulos et al., ECML 2002).

Forces are scaled by element. Their intervals are of the spread of the atom, the root mean square of
its three components, since that of one component over few members is mostly noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ase_biasgrad.units import N_ELEMENTS

LEVEL = 0.9  # share of the errors inside of an interval
LEAST = 10  # errors of an element; of fewer those of all elements count
GROUPS, IN_GROUP = 12, 10  # groups of errors at most, and errors in each unless there is one


@dataclass(frozen=True)
class Scale:
    """Factors of a spread: to a standard deviation, and to the half width of a 90 % interval."""

    std: float
    interval: float


@dataclass(frozen=True)
class Calibration:
    """Scales of the spreads of a committee."""

    # by atomic number; 0 stands for all elements, and serves those of few errors
    forces: dict[int, Scale]
    energy: Scale | None  # None where the frames had no energies
    frames: int  # number of frames that they come from

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Calibration:
        """Read JSON values of `record`.

        Raises `ValueError` if they are none.
        """
        try:
            forces = {_number(name): _scale(s) for name, s in record["forces"].items()}
            energy = record["energy"]
            if 0 not in forces or type(record["frames"]) is not int:
                raise ValueError("incomplete")
            return cls(forces, None if energy is None else _scale(energy), record["frames"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the calibration is damaged: {error!r}") from error

    def record(self) -> dict[str, Any]:
        """JSON values: factors by element, `all` for all of them."""
        return {
            "forces": {_name(z): vars(scale) for z, scale in sorted(self.forces.items())},
            "energy": None if self.energy is None else vars(self.energy),
            "frames": self.frames,
            "level": LEVEL,
        }

    def calibrate(self, results: dict[str, Any], numbers: np.ndarray) -> None:
        """Turn spreads in `results` into standard deviations of the error, and add intervals."""
        if "forces_std" in results:
            scaled = self.of_forces(numbers, results["forces_std"])
            results["forces_std"], results["forces_interval"] = scaled
        if self.energy is not None:
            spread = results["energy_std"]
            results["energy_std"] = self.energy.std * spread
            results["energy_interval"] = self.energy.interval * spread

    def of_forces(self, numbers: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standard deviations and half widths of 90 % intervals of forces, both `(n, 3)` eV/Å."""
        std, interval = self._tables()[:, numbers]  # (n,) each
        half_width = interval * atom_spread(spread)
        return std[:, None] * spread, np.repeat(half_width[:, None], 3, axis=1)

    def _tables(self) -> np.ndarray:
        tables = np.empty((2, N_ELEMENTS))
        tables[:] = np.array([[self.forces[0].std], [self.forces[0].interval]])
        for z, scale in self.forces.items():
            tables[:, z] = scale.std, scale.interval
        return tables


def atom_spread(spread: np.ndarray) -> np.ndarray:
    """Spread of each atom `(n,)`, the root mean square of its components `(n, 3)`."""
    return np.sqrt(np.mean(np.square(spread), axis=1))


def scale_of(error: np.ndarray, spread: np.ndarray) -> Scale:
    """Scale of the spreads `(k,)` of errors `(k,)`, in the order of their frames.

    Raises `ValueError` if there are none, or all spreads or most errors are zero.
    """
    if not len(error) or not (spread > 0).any():
        raise ValueError("a calibration needs errors, and members that differ")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(error == 0, 0.0, np.abs(error) / spread)
    rank = min(math.ceil((len(error) + 1) * LEVEL), len(error))
    interval = float(np.sort(ratios)[rank - 1])
    squares = np.stack([error**2, spread**2])
    groups = np.array_split(squares, min(GROUPS, max(1, len(error) // IN_GROUP)), axis=1)
    of_errors, of_spreads = np.array([group.sum(axis=1) for group in groups]).T
    known = of_spreads > 0
    std = float(np.median(np.sqrt(of_errors[known] / of_spreads[known])))
    if not std > 0:
        raise ValueError("a calibration needs errors that are not zero")
    return Scale(std, interval)


def calibrated(
    numbers: np.ndarray,
    force_errors: np.ndarray,
    force_spreads: np.ndarray,
    energy_errors: np.ndarray,
    energy_spreads: np.ndarray,
    frames: int,
) -> Calibration:
    """Scales of errors and spreads of forces `(a, 3)`, `(a, 3)` and of energies `(m,)`, `(m,)`.

    numbers: atomic numbers `(a,)`. Errors are in eV/Å and eV, and of frames without labels left
    out. Errors are those of `scale_of`.
    """
    spreads = np.repeat(atom_spread(force_spreads)[:, None], 3, axis=1)
    forces = {0: scale_of(force_errors.ravel(), spreads.ravel())}
    for z in np.unique(numbers).tolist():
        own = numbers == z
        if own.sum() >= LEAST:
            forces[z] = scale_of(force_errors[own].ravel(), spreads[own].ravel())
    few = len(energy_errors) < LEAST
    energy = None if few else scale_of(energy_errors, energy_spreads)
    return Calibration(forces, energy, frames)


def _name(number: int) -> str:
    return chemical_symbols[number] if number else "all"


def _number(name: str) -> int:
    return 0 if name == "all" else int(atomic_numbers[name])


def _scale(record: Any) -> Scale:
    scale = Scale(float(record["std"]), float(record["interval"]))
    if not (math.isfinite(scale.std + scale.interval) and scale.std > 0 and scale.interval >= 0):
        raise ValueError(f"{record} is no scale")
    return scale
