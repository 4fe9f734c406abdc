"""A run folder's inputs: written before the training begins, read when it goes on.

`config.yaml` as used, with absolute paths; `data.json` with the digest of the dataset; `split.json`
with the frames of each part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.seen import frame_digests
from ase_biasgrad.data.splits import PARTS, split_dataset
from ase_biasgrad.files import whole_file
from ase_biasgrad.training.config import ConfigError, TrainConfig, config_from, read_options

CHECKPOINT_NAME = "potential.safetensors"
INPUTS = {"data.json": {"sha256", "frames"}, "split.json": set(PARTS)}  # keys of each
RESULTS = ("metrics.csv", "states", CHECKPOINT_NAME, "evaluation.json", "report", "test")


def refuse_used(folder: Path) -> None:
    """Refuse a folder that holds a run, or something of a name that a new run would write.

    Raises
    ------
    FileExistsError
        Naming it.
    """
    if (folder / "config.yaml").exists():
        raise FileExistsError(
            f"{folder}: holds a run already; go on with `biasgrad train --resume {folder}` "
            "or name another folder"
        )
    for file in (folder / name for name in (*INPUTS, *RESULTS)):
        # what an own beginning left that was cut short may be replaced
        if file.exists() and not (file.name in INPUTS and _is_own(file)):
            raise FileExistsError(f"{file}: exists, and a run would write it; name another folder")


def _is_own(file: Path) -> bool:
    """Test that an input file of a run has the keys that we write."""
    try:
        return set(json.loads(file.read_text(encoding="utf-8"))) == INPUTS[file.name]
    except (OSError, ValueError, TypeError):
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if isinstance(content := json.loads(path.read_text(encoding="utf-8")), dict):
            return content
        raise ValueError("holds no keys")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is damaged: {error}") from error


@dataclass(frozen=True)
class RunFolder:
    """A training run: where it lives, its options, its frames.

    `split` has the frames `(k,)` of `train`, `validation` and `test`; runs of earlier versions
    have no `test`. `notes` are what a user should read before it begins.
    """

    path: Path
    config: TrainConfig
    dataset: Dataset
    split: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()

    @classmethod
    def new(cls, config: TrainConfig, path: Path) -> RunFolder:
        """Split the data for a run that nothing is written of yet; errors as in `split_dataset`."""
        dataset, data = Dataset(config.data.path), config.data
        sizes = {part: getattr(data, part) for part in PARTS}
        split, notes = split_dataset(len(dataset), sizes, data.seed, data.contiguous)
        run = cls(path, config, dataset, split)
        if copies := int(run.seen(dataset, split["test"]).sum()):
            notes.append(
                f"{copies} of the {len(split['test'])} test frames have the structure of a "
                "training or validation frame; leave copies out of the data"
            )
        return cls(path, config, dataset, split, tuple(notes))

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """The run in the folder `path`.

        Raises
        ------
        ConfigError
            If there is no run, or its data has changed since it began.
        """
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path}: is no run folder (it has no config.yaml)")
        config = config_from(read_options(path / "config.yaml"), str(path / "config.yaml"))
        dataset = Dataset(config.data.path)
        if _read_json(path / "data.json").get("sha256") != dataset.hash():
            raise ConfigError(f"{config.data.path}: has changed since the run in {path} began")
        stored = _read_json(path / "split.json")
        # an empty part, of no type of its own, is one
        split = {k: np.array(v, np.int64 if v == [] else None) for k, v in stored.items()}
        frames = np.concatenate([np.zeros(0, np.int64), *map(np.ravel, split.values())])
        own = frames.dtype.kind == "i" and np.isin(frames, np.arange(len(dataset))).all()
        if not own or not {"train", "validation"} <= set(split):
            raise ConfigError(f"{path / 'split.json'}: holds no frames of {config.data.path}")
        return cls(path, config, dataset, split)

    def write(self) -> None:
        """Write the inputs; `config.yaml` last, because its presence makes the folder a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        split = {part: frames.tolist() for part, frames in self.split.items()}
        self._write("split.json", json.dumps(split))
        content = {"sha256": self.dataset.hash(), "frames": len(self.dataset)}
        self._write("data.json", json.dumps(content))
        options = self.config.model_dump(mode="json")
        for name in ("path", *PARTS):
            if isinstance(given := getattr(self.config.data, name), Path):
                options["data"][name] = str(given.resolve())
        self._write("config.yaml", yaml.safe_dump(options, sort_keys=False))

    def _write(self, name: str, text: str) -> None:
        with whole_file(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @property
    def checkpoint(self) -> Path:
        """The finished potential, when the run has ended."""
        return self.path / CHECKPOINT_NAME

    @property
    def sizes(self) -> dict[str, int]:
        """Number of frames in each part."""
        return {part: len(frames) for part, frames in self.split.items()}

    @cached_property
    def digests(self) -> np.ndarray:
        """Digests of all training and validation frames, uint64."""
        frames = np.concatenate([self.split["train"], self.split["validation"]])
        return frame_digests(self.dataset, frames)

    def seen(self, dataset: Dataset, frames: np.ndarray) -> np.ndarray:
        """Mask of `frames` with the structure of a training or validation frame, `(m,)` bool."""
        return np.isin(frame_digests(dataset, frames), self.digests)

    def origin(self) -> dict[str, Any]:
        """Options and data of the run as JSON values, without paths of this machine."""
        options = self.config.model_dump(mode="json", exclude={"data": {"path"}})
        for part in PARTS:
            if isinstance(given := getattr(self.config.data, part), Path):
                options["data"][part] = given.name
        content = {"sha256": self.dataset.hash(), "frames": len(self.dataset), "parts": self.sizes}
        return {"config": options, "data": content}
