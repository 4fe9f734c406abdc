"""Teachers: forces of an accurate potential on frames that are made with it, for a faster one.

The data of the run becomes the file `taught.h5` in its folder: the frames of its parts as they
are, and frames of Langevin dynamics with the teacher, which begin at training frames and join the
training part. These have the teacher's forces, and no energies: the energy zero stays that of the
labelled frames.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.data.dataset import DataError, Dataset, Frame
from ase_biasgrad.data.sampling import dynamics_frames
from ase_biasgrad.data.splits import PARTS, split_dataset
from ase_biasgrad.data.writer import DatasetAppender, DatasetWriter
from ase_biasgrad.files import write_whole
from ase_biasgrad.training.config import ConfigError, TeacherOptions, TrainConfig

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

FILE, SPLIT = "taught.h5", "taught.json"


def taught(config: TrainConfig, folder: Path, teacher: Calculator | None) -> TrainConfig:
    """Make the data of a run with a teacher, and return options that name it.

    A trajectory is appended when it is whole. An interrupted call with the same options goes on
    behind the last one.

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
        folder.mkdir(parents=True, exist_ok=True)
        with DatasetWriter(path, {**history, "provenance_of_data": dataset.provenance}) as writer:
            for k in np.concatenate([split[part] for part in PARTS]):
                writer.append_frame(replace(dataset[int(k)], labels={}))
    _check_history(path, history)
    known = sum(len(split[part]) for part in PARTS)
    _teach(path, known, dataset, split["train"], options, teacher, config.seed)
    count, parts = 0, {}
    for part in PARTS:
        parts[part] = list(range(count, count + len(split[part])))
        count += len(split[part])
    parts["train"] += range(count, len(Dataset(path)))
    write_whole(folder / SPLIT, json.dumps(parts))
    used: dict[str, Path | int] = {part: folder / SPLIT for part in PARTS if parts[part]}
    used["path"] = path
    if not parts["test"]:
        used["test"] = 0
    return config.model_copy(update={"data": data.model_copy(update=used)})


def _teach(
    path: Path,
    known: int,
    dataset: Dataset,
    training: np.ndarray,
    options: TeacherOptions,
    teacher: Calculator,
    seed: int,
) -> None:
    """Append the trajectories from random training frames that are not there.

    The first `known` frames of the file are of no trajectory.
    """
    random = np.random.default_rng([seed, 7])
    starts = random.choice(training, options.trajectories, len(training) < options.trajectories)
    each = -(-options.frames // (options.trajectories * len(options.temperatures)))
    with DatasetAppender(path) as writer:
        done = (writer.frames - known) // (each * len(options.temperatures))
        for k, start in enumerate(starts[done:], done):
            atoms = dataset[int(start)].atoms()
            atoms.calc = None
            try:
                frames = dynamics_frames(
                    atoms,
                    teacher,
                    temperatures=options.temperatures,
                    frames=each,
                    interval=options.interval,
                    timestep=options.timestep,
                    equilibration=options.equilibration,
                    seed=seed + 1000 * k,
                )
                _append(writer, list(frames))
            except DataError as error:
                raise DataError(
                    f"teacher: trajectory {k} from frame {start} of {dataset.path}: {error}"
                ) from error


def _append(writer: DatasetAppender, frames: list[Frame]) -> None:
    """Append the forces and stresses of a trajectory, all of them or none."""
    columns: dict[str, Any] = {
        name: np.stack([getattr(frame, name) for frame in frames])
        for name in ("positions", "forces", "stress", "cell", "pbc")
        if getattr(frames[0], name) is not None
    }
    writer.append(frames[0].numbers, **columns)


def _check_history(path: Path, history: dict[str, Any]) -> None:
    found = Dataset(path).provenance
    for key, value in history.items():
        if found.get(key) != json.loads(json.dumps(value)):
            raise ConfigError(
                f"{path}: is of another {key} than this run; remove it, or name another folder"
            )
