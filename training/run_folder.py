"""A run folder's inputs: written before the training begins, read when it goes on.

`config.yaml` as used, with absolute paths; `data.json` with the digest of the dataset; `split.json`
with the frames of each part; `parent.json` with the digest of the checkpoint that is fine-tuned.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.seen import frame_digests, seen_record, with_more
from ase_biasgrad.data.splits import PARTS, split_dataset
from ase_biasgrad.files import write_whole
from ase_biasgrad.training.config import (
    ConfigError,
    TrainConfig,
    config_from,
    read_options,
    with_files,
)
from ase_biasgrad.training.fine_tuning import Parent, parent_of, with_parent

CHECKPOINT_NAME = "potential.safetensors"
INPUTS = {  # keys of each
    "data.json": {"sha256", "frames"},
    "split.json": set(PARTS),
    "parent.json": {"checkpoint", "sha256"},
}
RESULTS = ("metrics.csv", "states", CHECKPOINT_NAME, "evaluation.json", "report", "test")


def refuse_used(folder: Path) -> None:
    """Raise `FileExistsError` on a folder with a run, or with files that a new run would write."""
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
        raise ValueError("is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is damaged: {error}") from error


@dataclass(frozen=True)
class RunFolder:
    """A training run: where it lives, its options, its frames.

    `split` has the frames `(k,)` of `train`, `validation` and `test`; runs of earlier versions
    have no `test`. `parent` is the checkpoint that it begins from, if any. `notes` are what a user
    should read before it begins.
    """

    path: Path
    config: TrainConfig
    dataset: Dataset
    split: dict[str, np.ndarray]
    parent: Parent | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def new(cls, config: TrainConfig, path: Path) -> RunFolder:
        """Split the data for a run that nothing is written of yet.

        Errors are those of `split_dataset`, `parent_of` and `with_parent`.
        """
        if (parent := parent_of(config)) is not None:
            config = with_parent(config, parent)
        dataset, data = Dataset(config.data.path), config.data
        sizes = {part: getattr(data, part) for part in PARTS}
        split, notes = split_dataset(len(dataset), sizes, data.seed, data.contiguous)
        run = cls(path, config, dataset, split, parent, notes)
        if parent is not None:
            notes += run._check_parent(parent)
        own = np.isin(frame_digests(dataset, split["test"]), run.digests)
        if copies := int(own.sum()):
            notes.append(
                f"{copies} of the {len(split['test'])} test frames have the structure of a "
                "training or validation frame; leave copies out of the data"
            )
        return run

    def _check_parent(self, parent: Parent) -> list[str]:
        """Notes on frames that the parent was trained on; it must know all elements."""
        parent.check_elements(self.dataset.compositions(), self.dataset.path)
        notes = []
        for part in ("validation", "test"):
            digests = frame_digests(self.dataset, self.split[part])
            if seen := int(np.isin(digests, parent.seen()).sum()):
                notes.append(
                    f"{parent.loaded.path} was trained on {seen} of the {len(digests)} {part} "
                    "frames, and their errors are flattered; leave them out"
                )
        return notes

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """The run in the folder `path`.

        Raises `ConfigError` if there is no run, or its data has changed since it began.
        """
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path}: is not a run folder (it has no config.yaml)")
        config = config_from(read_options(path / "config.yaml"), str(path / "config.yaml"))
        dataset = Dataset(config.data.path)
        if _read_json(path / "data.json").get("sha256") != dataset.hash():
            raise ConfigError(f"{config.data.path}: has changed since the run in {path} began")
        parent = parent_of(config)
        if parent is not None:
            known = _read_json(path / "parent.json").get("sha256")
            if known != parent.loaded.sha256:
                raise ConfigError(
                    f"{parent.loaded.path}: has changed since the run in {path} began"
                )
        stored = _read_json(path / "split.json")
        # an empty part, of no type of its own, is one
        split = {k: np.array(v, np.int64 if v == [] else None) for k, v in stored.items()}
        frames = np.concatenate([np.zeros(0, np.int64), *map(np.ravel, split.values())])
        own = frames.dtype.kind == "i" and np.isin(frames, np.arange(len(dataset))).all()
        if not own or not {"train", "validation"} <= set(split):
            raise ConfigError(f"{path / 'split.json'}: does not list frames of {config.data.path}")
        return cls(path, config, dataset, split, parent)

    def write(self) -> None:
        """Write the inputs; `config.yaml` last, because its presence makes the folder a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        split = {part: frames.tolist() for part, frames in self.split.items()}
        write_whole(self.path / "split.json", json.dumps(split))
        content = {"sha256": self.dataset.hash(), "frames": len(self.dataset)}
        write_whole(self.path / "data.json", json.dumps(content))
        if self.parent is not None:
            known = {key: self.parent.record[key] for key in INPUTS["parent.json"]}
            write_whole(self.path / "parent.json", json.dumps(known))
        given = self.config.model_dump(mode="json")
        options = with_files(given, lambda name: str(Path(name).resolve()))
        write_whole(self.path / "config.yaml", yaml.safe_dump(options, sort_keys=False))

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

    def seen(self, frames: np.ndarray) -> np.ndarray:
        """Mask of `frames` whose structure was in training or validation, `(m,)` bool.

        That is the parent's training, too.
        """
        found = frame_digests(self.dataset, frames)
        before = np.zeros(0, np.uint64) if self.parent is None else self.parent.seen()
        return np.isin(found, self.digests) | np.isin(found, before)

    def seen_record(self) -> dict[str, Any]:
        """Record of all frames that were seen, for the checkpoint."""
        before = None if self.parent is None else self.parent.loaded.training.get("seen")
        return seen_record(self.digests) if before is None else with_more(before, self.digests)

    def origin(self) -> dict[str, Any]:
        """Options and data of the run as JSON values, without paths of this machine."""
        given = self.config.model_dump(mode="json", exclude={"data": {"path"}})
        options = with_files(given, lambda name: Path(name).name)
        content = {"sha256": self.dataset.hash(), "frames": len(self.dataset), "parts": self.sizes}
        if self.config.teacher is not None:
            content["teacher"] = self.dataset.provenance.get("teacher")
        origin = {"config": options, "data": content}
        return origin if self.parent is None else {**origin, "parent": self.parent.record}
