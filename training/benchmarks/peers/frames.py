"""Frames of a dataset file for peers: one molecule, split into parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ase_biasgrad.data.dataset import DataError, Dataset, formula
from ase_biasgrad.data.seen import frame_digests
from ase_biasgrad.data.splits import split_dataset
from ase_biasgrad.training.benchmarks.peers.protocol import Frames


def parts(
    data: Path, tests: Path | None, train: int, validation: int, test: int, seed: int
) -> tuple[Frames, Frames, Frames]:
    """Frames to train on, to choose by and to test on.

    `tests` is a file with frames to test on, of which the first `test` count; without it they are
    drawn from `data`, too.

    Raises
    ------
    DataError, ValueError
        If the frames are not of one molecule with energies and forces, or too few; or if one to
        test on has the structure of one to train on.
    """
    sizes = {"train": train, "validation": validation, "test": 0 if tests is not None else test}
    every = _frames(data)
    split, _ = split_dataset(len(every), sizes, seed)
    own = [_part(every, split[part]) for part in ("train", "validation")]
    tested, places = every, split["test"]
    if tests is not None:
        tested, places = _frames(tests), np.arange(test)
        if not np.array_equal(tested.numbers, every.numbers):
            raise DataError(f"{tests}: its atoms are not those of {data}, in the same order")
        if len(tested) < test:
            raise DataError(f"{tests}: has {len(tested)} frames, and {test} are to be tested on")
    seen = frame_digests(Dataset(data), np.concatenate([split["train"], split["validation"]]))
    copies = np.isin(frame_digests(Dataset(tests or data), places), seen)
    if copies.any():
        raise DataError(
            f"{tests or data}: frame {places[copies][0]}, to test on, has the structure of a frame "
            "to train on; leave copies out of the data"
        )
    return own[0], own[1], _part(tested, places)


def _frames(path: Path) -> Frames:
    with Dataset(path) as dataset:
        groups = dataset.groups()
        if len(groups) != 1:
            found = sorted({formula(np.bincount(g.numbers)) for g in groups})
            raise DataError(
                f"{path}: holds {len(groups)} kinds of frames ({', '.join(found[:5])}); peers are "
                "compared on one molecule, its atoms in one order and every frame with all labels"
            )
        group = groups[0]
        for label in ("energy", "forces"):
            if not group.has(label):
                raise DataError(f"{path}: its frames have no {label}")
        pbc = group.read("pbc")
        if pbc is not None and pbc.any():
            raise DataError(f"{path}: its frames are periodic; peers are compared on a molecule")
        arrays = [group.read(name) for name in ("positions", "energy", "forces")]
    found_arrays = [np.asarray(array, np.float64) for array in arrays]
    return Frames(np.asarray(group.numbers, np.int64), *found_arrays)


def _part(frames: Frames, places: np.ndarray) -> Frames:
    assert frames.energy is not None
    assert frames.forces is not None
    return Frames(
        frames.numbers, frames.positions[places], frames.energy[places], frames.forces[places]
    )
