"""Committees of trained potentials, and readouts of one: spreads scaled to errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ase_biasgrad.calibration import Calibration, calibrated
from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.committee_file import StoredCommittee, save_committee
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.potential import Potential
from ase_biasgrad.readouts import Readouts
from ase_biasgrad.training.baseline import made_baseline, run_labels
from ase_biasgrad.training.config import ConfigError
from ase_biasgrad.training.evaluation.predict import Predictions, predict
from ase_biasgrad.training.evaluation.readouts import drawn_readouts, readout_spreads
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.run_folder import RunFolder
from ase_biasgrad.training.stages.levels import at_one_level, levels_by_label

READOUTS = 4  # each costs the backward pass of a step


@dataclass(frozen=True)
class CommitteeErrors:
    """Errors of a committee's mean, or of one potential, beside spreads, on labelled frames.

    Only what has labels is in it. Units eV and Å.
    """

    numbers: np.ndarray  # (a,) of the atoms with forces
    frame: np.ndarray  # (a,) place of the frame of each
    forces: np.ndarray  # (a, 3) errors
    forces_spread: np.ndarray  # (a, 3)
    energy: np.ndarray  # (m,) errors
    energy_spread: np.ndarray  # (m,)
    energy_frame: np.ndarray  # (m,) place of the frame of each
    frames: int

    def of(self, places: np.ndarray) -> CommitteeErrors:
        """Errors of the frames at some places."""
        a, m = np.isin(self.frame, places), np.isin(self.energy_frame, places)
        return CommitteeErrors(
            self.numbers[a],
            self.frame[a],
            self.forces[a],
            self.forces_spread[a],
            self.energy[m],
            self.energy_spread[m],
            self.energy_frame[m],
            len(places),
        )


@dataclass(frozen=True)
class Coverage:
    """Share of errors inside of the 90 % intervals."""

    forces: float
    by_element: dict[str, float]
    energy: float | None


def committee_errors(potentials: Sequence[Potential], frames: DeviceFrames) -> CommitteeErrors:
    """Errors and spreads of a committee on frames.

    Raises `ValueError` if the frames have no forces.
    """
    predictions = [predict(potential, frames) for potential in potentials]
    forces = np.stack([p.forces for p in predictions])  # (members, a, 3)
    energies = np.stack([p.energy for p in predictions])  # (members, m)
    return _beside(
        frames, Predictions(energies.mean(axis=0), forces.mean(axis=0), None),
        energies.std(axis=0, ddof=1), forces.std(axis=0, ddof=1),
    )  # fmt: skip


def errors_of_file(
    stored: StoredCommittee, dataset: Dataset, chosen: Sequence[int] | np.ndarray
) -> CommitteeErrors:
    """Errors and spreads of a committee in a file on frames of a dataset, as `committee_errors`."""
    potentials = [Potential.from_arrays(member.potential) for member in stored.members]
    cutoff = max(p.cutoff for p in potentials)
    return committee_errors(potentials, DeviceFrames(dataset, chosen, cutoff))


def readout_errors(
    potential: Potential, readouts: Readouts, frames: DeviceFrames
) -> CommitteeErrors:
    """Errors of a potential and spreads of its readouts; raises as `committee_errors`."""
    spreads = readout_spreads(potential, readouts, frames)
    return _beside(frames, predict(potential, frames), *spreads)


def _beside(
    frames: DeviceFrames, predicted: Predictions, energy_spread: np.ndarray,
    forces_spread: np.ndarray,
) -> CommitteeErrors:  # fmt: skip
    if frames.forces is None:
        raise ValueError("spreads are compared with errors of forces, and the frames have none")
    reference = frames.forces.cpu().numpy()
    known = np.isfinite(reference).all(axis=1)
    owner = np.repeat(np.arange(len(frames)), frames.atom_counts)
    labels = np.full(len(frames), np.nan)
    if frames.energy is not None:
        labels = frames.energy.cpu().numpy()
    has = np.isfinite(labels)
    return CommitteeErrors(
        frames.numbers.cpu().numpy()[known],
        owner[known],
        (predicted.forces - reference)[known],
        forces_spread[known],
        (predicted.energy - labels)[has],
        energy_spread[has],
        np.flatnonzero(has),
        len(frames),
    )


def calibration_of(errors: CommitteeErrors) -> Calibration:
    """Scales of the spreads; errors are those of `calibration.scale_of`."""
    e = errors
    return calibrated(
        e.numbers, e.forces, e.forces_spread, e.energy, e.energy_spread, frames=e.frames
    )


def coverage(calibration: Calibration, errors: CommitteeErrors) -> Coverage:
    """Share of errors within the intervals of a calibration; on other frames than its own."""
    return _coverage([_inside(calibration, errors)])


def cross_coverage(errors: CommitteeErrors) -> Coverage:
    """Coverage on frames that were left out of the calibration, each once, in five parts.

    Raises `ValueError` if there are fewer frames than two.
    """
    if errors.frames < 2:
        raise ValueError("coverage is that of frames left out of a calibration: two at least")
    order = np.random.default_rng(0).permutation(errors.frames)
    parts = []
    for left_out in np.array_split(order, min(5, errors.frames)):
        rest = np.setdiff1d(order, left_out)
        parts.append(_inside(calibration_of(errors.of(rest)), errors.of(left_out)))
    return _coverage(parts)


Inside = tuple[np.ndarray, np.ndarray, np.ndarray]


def _inside(calibration: Calibration, errors: CommitteeErrors) -> Inside:
    """Atomic numbers `(a,)`, and errors inside their intervals, of forces `(a, 3)`, energies."""
    _, half_width = calibration.of_forces(errors.numbers, errors.forces_spread)
    energy = np.zeros(0, bool)
    if calibration.energy is not None:
        energy = np.abs(errors.energy) <= calibration.energy.interval * errors.energy_spread
    return errors.numbers, np.abs(errors.forces) <= half_width, energy


def _coverage(parts: Sequence[Inside]) -> Coverage:
    numbers, forces, energy = (np.concatenate(of) for of in zip(*parts, strict=True))
    elements = {chemical_symbols[z]: float(forces[numbers == z].mean()) for z in np.unique(numbers)}
    return Coverage(float(forces.mean()), elements, float(energy.mean()) if len(energy) else None)


@dataclass(frozen=True)
class CommitteeReport:
    """A committee in one file, and what its validation frames say of it."""

    path: Path
    errors: CommitteeErrors
    calibration: Calibration
    coverage: Coverage

    def summary(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "frames": self.errors.frames,
            "force_mae": float(np.abs(self.errors.forces).mean()),
            "energy_mae": float(np.abs(self.errors.energy).mean()) if len(self.errors.energy)
            else None,
            "calibration": self.calibration.record(),
            "coverage_left_out": vars(self.coverage),
        }  # fmt: skip


def make_committee(
    runs: Sequence[str | Path],
    output: str | Path,
    note: dict[str, Any] | None = None,
    readouts: int = READOUTS,
) -> CommitteeReport:
    """Join the potentials of finished runs to a committee in one file, calibrated.

    Of a single run it is its potential with as many `readouts`, drawn from its training frames.
    Spreads are scaled to errors on the frames that all runs have in their validation parts, and
    that none was trained on; of energies at the potential's own level of theory, and less the
    baseline, if the runs have one.

    Raises
    ------
    ConfigError
        If a run is not finished, they are of other data, or have no such frames in common.
    ValueError
        If the network of a single run can have no readouts.
    """
    folders = [RunFolder.read(Path(run)) for run in runs]
    if not folders:
        raise ConfigError("a committee is of one run or more")
    for folder in folders:
        if not folder.checkpoint.is_file():
            raise ConfigError(f"{folder.path}: is not finished; go on with it first (--resume)")
    common = _common_validation(folders)
    potentials = [load_checkpoint(folder.checkpoint).potential for folder in folders]
    validation = _frames(folders[0], common, potentials)
    drawn = None
    if len(folders) == 1:
        training = DeviceFrames(folders[0].dataset, folders[0].split["train"], potentials[0].cutoff)
        drawn = drawn_readouts(potentials[0], training, readouts)
        errors = readout_errors(potentials[0], drawn, validation)
    else:
        errors = committee_errors(potentials, validation)
    calibration, covered = calibration_of(errors), cross_coverage(errors)
    members = [folder.checkpoint for folder in folders]
    note = {**(note or {}), "coverage_left_out": vars(covered)}
    save_committee(output, members, calibration, note, drawn)
    return CommitteeReport(Path(output), errors, calibration, covered)


def _frames(run: RunFolder, chosen: np.ndarray, potentials: Sequence[Potential]) -> DeviceFrames:
    """Frames of the validation part whose labels are what the potentials were trained on."""
    first, config = potentials[0], run.config
    frames = DeviceFrames(run.dataset, chosen, max(p.cutoff for p in potentials))
    if config.baseline is not None:
        labels = run_labels(*made_baseline(config.baseline), run)["validation"]
        validation = run.split["validation"]
        counts = run.dataset.compositions()[validation].sum(axis=1)
        frames = frames.less(labels.of(np.searchsorted(validation, chosen), counts))
    if (by := config.bias_stage.by) is not None:
        levels = levels_by_label(run.dataset, by)[chosen]
        frames = at_one_level(first.biases(), first.reference, frames, levels)
    return frames


def _common_validation(folders: Sequence[RunFolder]) -> np.ndarray:
    first: Dataset = folders[0].dataset
    for folder in folders[1:]:
        if folder.dataset.path.resolve() != first.path.resolve():
            raise ConfigError(
                f"{folder.path}: was trained on {folder.dataset.path}, and {folders[0].path} on "
                f"{first.path}; the runs of a committee need the same dataset"
            )
    common = folders[0].split["validation"]
    for folder in folders[1:]:
        common = np.intersect1d(common, folder.split["validation"])
    if len(common) < 2:
        raise ConfigError(
            f"{', '.join(str(f.path) for f in folders)}: have {len(common)} validation frames in "
            "common; train them with the same data.seed, and another seed each"
        )
    return common
