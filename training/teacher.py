"""Teachers: forces of an accurate potential on frames that are made with it, for a faster one.

The data of the run becomes the file `taught.h5` in its folder: the frames of its parts as they
are, and frames of Langevin dynamics with the teacher, which begin at training frames and join the
training part. These have the teacher's forces, and no energies: the energy zero stays that of the
labelled frames.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.data.dataset import DataError, Dataset, Frame
from ase_biasgrad.data.sampling import sample
from ase_biasgrad.data.splits import PARTS, split_dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.files import whole_file
from ase_biasgrad.training.config import ConfigError, TeacherOptions, TrainConfig

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

FILE, SPLIT, TRAJECTORIES = "taught.h5", "taught.json", "taught"


def taught(config: TrainConfig, folder: Path, teacher: Calculator | None) -> TrainConfig:
    """Make the data of a run with a teacher, and return options that name it.

    Trajectories appear when they are whole. Those of an interrupted call with the same options are
    used again.

    Raises
    ------
    ConfigError
        If there is no teacher, or the files are those of another one, or of other data.
    DataError
        If the dynamics leave what the teacher can describe.
    """
    if (options := config.teacher) is None:
        return config
    if teacher is None:
        raise ConfigError("teacher: hand train() its calculator, or use `biasgrad train --teacher`")
    dataset, data = Dataset(config.data.path), config.data
    sizes = {part: getattr(data, part) for part in PARTS}
    split, _ = split_dataset(len(dataset), sizes, data.seed, data.contiguous)
    history = {"data": dataset.hash(), "teacher": options.record(teacher), "seed": config.seed}
    path = folder / FILE
    if not path.exists():
        (folder / TRAJECTORIES).mkdir(parents=True, exist_ok=True)
        files = _trajectories(dataset, split["train"], options, teacher, folder, history)
        _join(path, dataset, split, files, history)
    _check_history(path, history)
    count, parts = 0, {}
    for part in PARTS:
        parts[part] = list(range(count, count + len(split[part])))
        count += len(split[part])
    parts["train"] += range(count, len(Dataset(path)))
    with whole_file(folder / SPLIT) as temporary:
        temporary.write_text(json.dumps(parts), encoding="utf-8")
    used: dict[str, Path | int] = {part: folder / SPLIT for part in PARTS if parts[part]}
    used["path"] = path
    if not parts["test"]:
        used["test"] = 0
    return config.model_copy(update={"data": data.model_copy(update=used)})


def _trajectories(
    dataset: Dataset,
    training: np.ndarray,
    options: TeacherOptions,
    teacher: Calculator,
    folder: Path,
    history: dict[str, Any],
) -> list[Path]:
    """Files of trajectories from random training frames, those made anew that are not there."""
    random, files = np.random.default_rng([history["seed"], 7]), []
    starts = random.choice(training, options.trajectories, len(training) < options.trajectories)
    each = -(-options.frames // (options.trajectories * len(options.temperatures)))
    for k, start in enumerate(starts):
        path = folder / TRAJECTORIES / f"{k:05d}.h5"
        files.append(path)
        if path.exists():
            _check_history(path, history)
            continue
        atoms = dataset[int(start)].atoms()
        atoms.calc = None
        try:
            sample(
                atoms,
                teacher,
                path,
                temperatures=options.temperatures,
                frames=each,
                interval=options.interval,
                timestep=options.timestep,
                equilibration=options.equilibration,
                seed=history["seed"] + 1000 * k,
                provenance=history,
                progress=False,
            )
        except DataError as error:
            raise DataError(
                f"teacher: trajectory {k} from frame {start} of {dataset.path}: {error}"
            ) from error
    return files


def _join(
    path: Path,
    dataset: Dataset,
    split: dict[str, np.ndarray],
    files: list[Path],
    history: dict[str, Any],
) -> None:
    with DatasetWriter(path, {**history, "provenance_of_data": dataset.provenance}) as writer:
        for part in PARTS:
            for k in split[part]:
                frame = dataset[int(k)]
                _append(writer, frame, frame.energy)
        for file in files:
            for frame in Dataset(file):
                _append(writer, frame, None)


def _append(writer: DatasetWriter, frame: Frame, energy: float | None) -> None:
    writer.append(
        frame.numbers,
        frame.positions,
        energy=energy,
        forces=frame.forces,
        stress=frame.stress,
        cell=frame.cell,
        pbc=frame.pbc,
    )


def _check_history(path: Path, history: dict[str, Any]) -> None:
    found = Dataset(path).provenance
    for key, value in history.items():
        if found.get(key) != json.loads(json.dumps(value)):
            raise ConfigError(
                f"{path}: is of another {key} than this run; remove it, or name another folder"
            )
