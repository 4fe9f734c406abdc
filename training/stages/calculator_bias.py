"""Bias of any ASE calculator, fitted to its energies of labelled frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ase_biasgrad.bias import Bias, BiasMethod
from ase_biasgrad.composition_fit import Anchors
from ase_biasgrad.data.dataset import Dataset, formula
from ase_biasgrad.files import file_hash
from ase_biasgrad.metrics import forces_within
from ase_biasgrad.neighbours import is_isolated
from ase_biasgrad.progress import progress_bar
from ase_biasgrad.training.stages.bias import fit_residuals

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

FEW = 5  # failures that stop nothing
SHARE = 0.1  # of the frames tried; more failures than both stop the fit


@dataclass(frozen=True)
class CalculatorFit:
    """A bias fitted to the energies of a calculator."""

    bias: Bias  # for `BiasedCalculator`, or `save_bias`
    left: np.ndarray  # (k,) eV, energy residuals
    failed: dict[int, str]  # why a calculation failed, by the frame's place in the dataset


def fit_calculator_bias(
    calculator: BaseCalculator,
    dataset: Dataset,
    frames: Sequence[int] | np.ndarray | None = None,
    method: BiasMethod | str = "auto",
    anchors: Anchors | None = None,
    progress: bool = False,
) -> CalculatorFit:
    """Fit b to E_ref − E, with the calculator's energies E of labelled frames.

    Frames without an energy are left out. So are those whose calculation fails, each with a warning
    in the log that names it.

    Parameters
    ----------
    calculator
        Any of ASE's interface.
    frames
        Places in the dataset, all by default.
    method, anchors
        As in `fit_bias`.

    Raises
    ------
    ValueError
        If no frame has an energy, the method is unknown, or more than 5 frames and more than a
        tenth of those tried fail.
    """
    chosen = range(len(dataset)) if frames is None else frames
    failed: dict[int, str] = {}
    rows, tried = [], 0
    for place in progress_bar(chosen, "calculating", progress):
        frame = dataset[int(place)]
        if frame.energy is None or not np.isfinite(frame.energy):
            continue
        tried += 1
        atoms = frame.atoms()
        try:
            predicted = _energy(calculator, atoms)
            off = _largest_error(calculator, atoms, frame.forces) if method == "efwt" else np.nan
        except Exception as error:  # whatever a calculator raises
            failed[int(place)] = f"{type(error).__name__}: {error}"
            _report(dataset, int(place), atoms, failed, tried)
            continue
        isolated = is_isolated(atoms.positions, atoms.cell.array, atoms.pbc)
        rows.append((place, frame.energy, frame.energy - predicted, isolated, off))
    if not rows:
        why = f"the calculator failed on all {tried}" if tried else "the data has none"
        raise ValueError(f"{dataset.path}: the fit needs frames with energies: {why}")
    places, energies, residuals, single, errors = (np.array(column) for column in zip(*rows))  # noqa: B905
    counts, bias = dataset.compositions()[places], Bias()
    within = forces_within(errors) if method == "efwt" else None
    fit_residuals(bias, energies, residuals, counts, single, method, within, anchors)
    kind = type(calculator)
    bias.fit_report["calculator"] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    bias.fit_report["data"] = data_record(dataset, len(rows))
    return CalculatorFit(bias, residuals - bias.arrays()(counts), failed)


def data_record(dataset: Dataset, frames: int) -> dict[str, str | int]:
    """Data of a fit in JSON values: file, digest, and number of frames."""
    return {"file": dataset.path.name, "sha256": file_hash(dataset.path), "frames": frames}


def _energy(calculator: BaseCalculator, atoms: Atoms) -> float:
    energy = np.asarray(calculator.get_property("energy", atoms), np.float64).item()
    if not np.isfinite(energy):
        raise ValueError(f"its energy is {energy}")
    return energy


def _largest_error(calculator: BaseCalculator, atoms: Atoms, forces: np.ndarray | None) -> float:
    if forces is None:
        return np.inf
    return float(np.abs(calculator.get_property("forces", atoms) - forces).max())


def _report(dataset: Dataset, place: int, atoms: Atoms, failed: dict[int, str], tried: int) -> None:
    """Log the last failure; raise `ValueError` if there are too many."""
    where = f"{dataset.path}: frame {place} ({formula(np.bincount(atoms.numbers))})"
    logging.getLogger(__name__).warning("%s is left out: %s", where, failed[place])
    if len(failed) > max(FEW, SHARE * tried):
        raise ValueError(
            f"{dataset.path}: the calculator failed on {len(failed)} of {tried} frames, the last "
            f"of them frame {place} ({failed[place]}); mend it, or leave frames out with --frames"
        )
