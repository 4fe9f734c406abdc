"""Errors of predicted energies and forces, and what they say about each other.

Energies in eV, forces in eV/Å, all in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ase_biasgrad.bias_fits import ENERGY_WITHIN, FORCE_WITHIN
from ase_biasgrad.units import ENERGY

EV_TO_KCAL_MOL = 1 / ENERGY["kcal/mol"]
FEWEST_FRAMES = 10  # for a verdict on energies
LEARNED_WITHIN = 0.3  # RMS force error over RMS force, above which a model says little of data


@dataclass(frozen=True)
class ErrorNorms:
    """Mean absolute, root mean square and largest absolute error of `count` numbers."""

    mae: float
    rmse: float
    largest: float
    count: int


def error_norms(errors: np.ndarray) -> ErrorNorms:
    """Norms of an array of errors of any shape."""
    errors = np.asarray(errors, np.float64).ravel()
    if len(errors) == 0:
        return ErrorNorms(np.nan, np.nan, np.nan, 0)
    absolute = np.abs(errors)
    return ErrorNorms(
        float(absolute.mean()),
        float(np.sqrt(np.mean(errors**2))),
        float(absolute.max()),
        len(errors),
    )


@dataclass(frozen=True)
class EFwT:
    """Share of frames with energy and forces within threshold, and its two halves.

    Open Catalyst Project (Chanussot et al. 2021, ACS Catal. 11, 6059): the energy of a frame
    is off by less than 0.02 eV, and its largest force component by less than 0.03 eV/Å.
    """

    both: float
    energy: float
    forces: float


def forces_within(largest_component_errors: np.ndarray) -> np.ndarray:
    """`(m,)` bool: the largest force component error of a frame < 0.03 eV/Å, strictly."""
    return np.abs(largest_component_errors) < FORCE_WITHIN


def efwt(energy_errors: np.ndarray, largest_force_errors: np.ndarray) -> EFwT:
    """EFwT of frames with energy errors `(m,)` and largest force component errors `(m,)`."""
    energy, forces = np.abs(energy_errors) < ENERGY_WITHIN, forces_within(largest_force_errors)
    return EFwT(float(np.mean(energy & forces)), float(np.mean(energy)), float(np.mean(forces)))


@dataclass(frozen=True)
class EnergyRelation:
    """Regression of E_ref on E_model within compositions (each centred on its mean).

    A bias can mend an offset only. A slope far from 1 is a unit error, a slope near −1 a sign
    error, and a low correlation means that the forces are no gradient of the energy: all of it only
    if the model reproduces the forces. A model that is too soft by a share has that slope, too.
    """

    slope: float
    correlation: float
    verdict: str


def energy_relation(
    reference: np.ndarray, predicted: np.ndarray, groups: np.ndarray, force_error: float = 0.0
) -> EnergyRelation:
    """Relate energies `(m,)` in eV within the compositions labelled by `groups (m,)`.

    `force_error` is the RMS error of the model's forces over the RMS of those of the reference.
    """
    for name, energies in (("reference", reference), ("predicted", predicted)):
        if not np.isfinite(energies).all():
            frame = int(np.argmin(np.isfinite(energies)))
            verdict = f"not finite: the {name} energy of frame {frame} is {energies[frame]}"
            return EnergyRelation(np.nan, np.nan, verdict)
    x, y = centred(predicted, groups), centred(reference, groups)
    spread = float(np.sqrt(np.sum(x**2) * np.sum(y**2)))
    if spread == 0.0:
        return EnergyRelation(np.nan, np.nan, "energies do not vary within a composition")
    slope, correlation = float(np.sum(x * y) / np.sum(x**2)), float(np.sum(x * y) / spread)
    if len(x) < FEWEST_FRAMES:
        verdict = f"no verdict from {len(x)} frames ({FEWEST_FRAMES} are needed)"
    elif not force_error < LEARNED_WITHIN:
        verdict = f"no verdict: the model's forces are off by {100 * force_error:.0f} % themselves"
    else:
        verdict = _verdict(slope, correlation, force_error)
    return EnergyRelation(slope, correlation, verdict)


def _verdict(slope: float, correlation: float, force_error: float) -> str:
    if abs(correlation) < 0.9:
        return (
            "energies hardly follow: the forces may be no gradient of the energy, or undertrained"
        )
    if slope < 0:
        return "sign error: reference energies fall where the potential rises"
    for name, factor in {
        "kcal/mol": EV_TO_KCAL_MOL,
        "kJ/mol": 1 / ENERGY["kJ/mol"],
        "Hartree": 1 / ENERGY["Hartree"],
    }.items():
        if abs(slope / factor - 1) < 0.1:
            return f"unit error: reference energies look like {name}, not eV"
    if abs(slope - 1) > max(0.1, 2 * force_error):
        return "scale error: energies and forces of the reference do not belong together"
    return "consistent: a bias is all that the energies need"


def centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values `(m,)` less the mean of their group `(m,)`."""
    _, group = np.unique(groups, return_inverse=True)
    group = group.ravel()
    means = np.bincount(group, weights=values) / np.bincount(group)
    return np.asarray(values, np.float64) - means[group]
