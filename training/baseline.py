"""Labels of a baseline for the frames of a training: computed once, and kept in whole parts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.baseline import Baseline, baseline_results
from ase_biasgrad.data.dataset import DataError, Dataset, Frame
from ase_biasgrad.data.seen import frame_digests
from ase_biasgrad.files import whole_file
from ase_biasgrad.named_calculators import labelling_calculator
from ase_biasgrad.progress import progress_bar
from ase_biasgrad.training.config import BaselineOptions, ConfigError
from ase_biasgrad.training.frames.device_frames import Labels
from ase_biasgrad.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

FOLDER = "baseline"  # in a run folder
FRAMES_IN_PART = 32  # no more are calculated again after an interruption


def made_baseline(options: BaselineOptions) -> tuple[Baseline, BaseCalculator]:
    """The baseline that the options name, and its calculator.

    Raises `ConfigError` if there is no such calculator, its package is missing, or it takes no such
    arguments.
    """
    try:
        calculator = labelling_calculator(options.calculator, options.arguments)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"baseline: {error}") from error
    return Baseline.of(options.calculator, dict(options.arguments), calculator), calculator


def baseline_labels(
    baseline: Baseline,
    calculator: BaseCalculator,
    dataset: Dataset,
    frames: np.ndarray,
    folder: Path | None = None,
    progress: bool = False,
) -> Labels:
    """Energies, forces and stress of the baseline for `frames` of a dataset.

    With a folder they are kept there, in parts that appear when they are whole and have a digest
    of the baseline and of their structures. Parts that are there already are read.

    Raises `DataError` if the calculator fails on a frame, gives no stress where the frame has one,
    or a part is damaged or of something else.
    """
    if folder is not None:
        folder.mkdir(exist_ok=True)
    parts = [frames[k : k + FRAMES_IN_PART] for k in range(0, len(frames), FRAMES_IN_PART)]
    found = []
    for k, chosen in enumerate(progress_bar(parts, f"{baseline.calculator}", progress)):
        path = None if folder is None else folder / f"{k:05d}.npz"
        digest = _digest(baseline, dataset, chosen)
        if path is not None and path.exists():
            found.append(_read(path, digest, dataset, chosen))
            continue
        found.append(_calculated(calculator, dataset, chosen))
        if path is not None:
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, digest=np.array(digest), **vars(found[-1]))
    arrays = zip(*(vars(labels).values() for labels in found), strict=True)
    return Labels(*map(np.concatenate, arrays))


def run_labels(
    baseline: Baseline, calculator: BaseCalculator, run: RunFolder, progress: bool = False
) -> dict[str, Labels]:
    """Labels for each part of a run, kept in its folder; errors as in `baseline_labels`."""
    frames = np.unique(np.concatenate(list(run.split.values())))
    folder = run.path / FOLDER
    labels = baseline_labels(baseline, calculator, run.dataset, frames, folder, progress)
    counts = run.dataset.compositions()[frames].sum(axis=1)
    return {
        part: labels.of(np.searchsorted(frames, chosen), counts)
        for part, chosen in run.split.items()
    }


def _digest(baseline: Baseline, dataset: Dataset, frames: np.ndarray) -> str:
    """SHA-256 of the baseline and of the structures, hexadecimal."""
    content = json.dumps(baseline.record(), sort_keys=True).encode()
    structures = frame_digests(dataset, frames).astype("<u8").tobytes()
    return hashlib.sha256(content + structures).hexdigest()


def _read(path: Path, digest: str, dataset: Dataset, frames: np.ndarray) -> Labels:
    atoms = int(dataset.compositions()[frames].sum())
    shapes = {"energy": (len(frames),), "forces": (atoms, 3), "stress": (len(frames), 6)}
    try:
        with np.load(path, allow_pickle=False) as stored:
            found, arrays = str(stored["digest"]), {name: stored[name] for name in shapes}
        if any(arrays[name].shape != shape for name, shape in shapes.items()) and found == digest:
            raise ValueError("arrays of other shapes")
    except Exception as error:  # whatever a damaged file makes NumPy raise
        raise DataError(f"{path}: damaged ({error}); remove it, and go on") from error
    if found != digest:
        raise DataError(
            f"{path}: holds labels of another baseline, another version of it, or other frames; "
            "remove its folder, or name another for the run"
        )
    return Labels(**arrays)


def _calculated(calculator: BaseCalculator, dataset: Dataset, frames: np.ndarray) -> Labels:
    results = [
        _results(calculator, dataset[int(place)], f"{dataset.path}: frame {place}")
        for place in frames
    ]
    return Labels(
        np.array([of["energy"] for of in results], np.float64),
        np.concatenate([of["forces"] for of in results]),
        np.array([of.get("stress", np.full(6, np.nan)) for of in results]),
    )


def _results(calculator: BaseCalculator, frame: Frame, where: str) -> dict[str, Any]:
    atoms = frame.atoms()
    atoms.calc = None
    try:
        results = baseline_results(calculator, atoms, ("energy", "forces", "stress"))
    except Exception as error:  # whatever a calculator raises
        raise DataError(f"{where}: the baseline fails: {type(error).__name__}: {error}") from error
    if lacking := {"energy", "forces"} - set(results):
        raise DataError(f"{where}: the baseline gives no {min(lacking)}")
    if frame.stress is not None and "stress" not in results:
        raise DataError(
            f"{where}: has a stress, and the baseline gives none; import the data with "
            "`--without stress`"
        )
    return results
