"""The folder of active learning: options, structures, labelled frames, and its rounds.

`learn.json` and `structures.traj` are its inputs. Each label is appended to `data.h5` when it is
known, with the round and the place of its structure there. `rounds/003/` holds `chosen.traj`, the
structures to label; `failed/`, a file for each that has no label; `split.json`, of all frames up to
this round; `member0/`, …, run folders; `committee.safetensors`; `explored.json`; and
`summary.json`. Files appear whole, so whatever is there needs not be done again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.labelling import Label
from ase_biasgrad.data.writer import DatasetAppender
from ase_biasgrad.files import whole_file, write_whole
from ase_biasgrad.training.active.options import LearnOptions

ROUND, PLACE = "round", "place"  # labels of each frame
VALIDATE_EVERY = 5  # frames, of which the last one is for validation; a frame never changes sides


class LearnError(ValueError):
    """Active learning that cannot begin or go on; the message says why, and what to do."""


@dataclass(frozen=True)
class LearnFolder:
    """Folder of an active learning."""

    path: Path

    @classmethod
    def new(cls, path: Path, structures: Sequence[Atoms], options: LearnOptions) -> LearnFolder:
        """Write the inputs, the options last: they make it a folder of ours.

        Raises
        ------
        FileExistsError
            If the folder holds something.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(
                f"{path}: exists; go on with `biasgrad learn --resume {path}`, or name another "
                "folder"
            )
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        write_structures(path / "structures.traj", structures)
        write_whole(path / "learn.json", options.as_json())
        return folder

    @classmethod
    def existing(cls, path: Path) -> LearnFolder:
        """The folder at `path`.

        Raises
        ------
        LearnError
            If it is none.
        """
        if not (path / "learn.json").is_file():
            raise LearnError(f"{path}: is no folder of `biasgrad learn` (it has no learn.json)")
        return cls(path)

    def options(self) -> LearnOptions:
        """Options that it began with."""
        path = self.path / "learn.json"
        try:
            return LearnOptions.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LearnError(f"{path}: is damaged: {error}") from error

    def structures(self) -> list[Atoms]:
        """Structures that it began with."""
        return read_structures(self.path / "structures.traj")

    def round(self, number: int) -> Round:
        """Round `number`, counted from 0."""
        return Round(self.path / "rounds" / f"{number:03d}", number)

    def rounds(self) -> list[Round]:
        """Rounds that have begun."""
        found: list[Round] = []
        while self.round(len(found)).chosen_file.exists():
            found.append(self.round(len(found)))
        return found

    @property
    def data(self) -> Path:
        """All labelled frames, in the order of rounds and of structures in each."""
        return self.path / "data.h5"

    def appender(self) -> DatasetAppender:
        """Writer of labels as they come; `keep` hands them over."""
        options = self.options()
        origin = {"calculator": options.calculator, "arguments": options.arguments}
        return DatasetAppender(self.data, {**origin, "made_by": "learn"}, (ROUND, PLACE))

    def labelled(self, number: int) -> set[int]:
        """Structures of a round that have a label."""
        found: set[int] = set()
        if self.data.exists():
            with Dataset(self.data) as dataset:
                for group in dataset.groups():
                    rounds, places = (np.asarray(group.read(name)) for name in (ROUND, PLACE))
                    found |= {int(place) for place in places[rounds == number]}
        return found

    def frames(self) -> list[Atoms]:
        """Labelled structures.

        Raises
        ------
        LearnError
            If there is none.
        """
        if not self.data.exists():
            raise LearnError(f"{self.path}: no structure has a label")
        with Dataset(self.data) as dataset:
            return [Atoms(f.numbers, f.positions, cell=f.cell, pbc=f.pbc) for f in dataset]


@dataclass(frozen=True)
class Round:
    """One round: structures to label, their labels, and what was learnt of them."""

    path: Path
    number: int

    @property
    def chosen_file(self) -> Path:
        return self.path / "chosen.traj"

    @property
    def split(self) -> Path:
        return self.path / "split.json"

    @property
    def committee(self) -> Path:
        return self.path / "committee.safetensors"

    @property
    def explored(self) -> Path:
        return self.path / "explored.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def member(self, k: int) -> Path:
        """Run folder of a member of the committee."""
        return self.path / f"member{k}"

    def choose(self, structures: Sequence[Atoms]) -> None:
        """Write the structures to label, with which the round begins."""
        (self.path / "failed").mkdir(parents=True, exist_ok=True)
        write_structures(self.chosen_file, structures)

    def chosen(self) -> list[Atoms]:
        """Structures to label."""
        return read_structures(self.chosen_file)

    def keep(self, writer: DatasetAppender, k: int, atoms: Atoms, label: Label) -> None:
        """Append the label of structure `k`."""
        writer.append(
            atoms.numbers,
            atoms.positions,
            energy=label.energy,
            forces=label.forces,
            stress=label.stress,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
            labels={ROUND: self.number, PLACE: k},
            source=f"{self.chosen_file}: structure {k}",
        )

    def fail(self, k: int, reason: str) -> None:
        """Write why structure `k` has no label; the structure is in `chosen.traj`."""
        write_whole(self._failure(k), json.dumps({"structure": k, "reason": reason}))

    def failures(self) -> dict[int, str]:
        """Reasons of the structures that have no label."""
        found = {}
        for k in range(len(self.chosen())):
            if self._failure(k).exists():
                found[k] = str(read_json(self._failure(k))["reason"])
        return found

    def _failure(self, k: int) -> Path:
        return self.path / "failed" / f"{k:04d}.json"


def split_of(frames: int, every: int = VALIDATE_EVERY) -> dict[str, list[int]]:
    """Training and validation frames: of every so many the last one validates."""
    validation = [k for k in range(frames) if k % every == every - 1]
    return {"train": [k for k in range(frames) if k % every != every - 1], "validation": validation}


def write_json(path: Path, content: Any) -> None:
    """Write JSON values, whole or not at all."""
    write_whole(path, json.dumps(content, indent=1))


def read_json(path: Path) -> Any:
    """Read JSON values.

    Raises
    ------
    LearnError
        If the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LearnError(f"{path}: is damaged: {error}") from error


def write_structures(path: Path, structures: Sequence[Atoms]) -> None:
    """Write structures exactly, in ASE's own format, whole or not at all."""
    from ase.io import write

    path.parent.mkdir(parents=True, exist_ok=True)
    bare = [atoms.copy() for atoms in structures]
    for atoms in bare:
        atoms.calc = None
    with whole_file(path) as temporary:
        write(temporary, bare, format="traj")


def read_structures(path: Path) -> list[Atoms]:
    """Structures of `write_structures`."""
    from ase.io import read

    found = read(path, index=":", format="traj")
    return found if isinstance(found, list) else [found]
