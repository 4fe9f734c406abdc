"""Task and answer of a row of the ladder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.sets.qm7 import column, folds_of
from ase_biasgrad.dense.coulomb_matrix import PaddedMolecules, padded


@dataclass(frozen=True)
class Molecules:
    """A dataset of molecules with energies, in memory."""

    dataset: Dataset
    energies: np.ndarray  # (m,) eV
    folds: np.ndarray  # (m,)

    @cached_property
    def digest(self) -> str:
        """Digest of the dataset."""
        return self.dataset.hash()

    @cached_property
    def padded(self) -> PaddedMolecules:
        """Charges and positions of all molecules, padded to the largest."""
        return padded([(frame.numbers, frame.positions) for frame in self.dataset])

    @cached_property
    def counts(self) -> np.ndarray:
        """Compositions `(m, N_ELEMENTS)`."""
        return self.dataset.compositions()


def molecules_of(dataset: Dataset) -> Molecules:
    """Energies and folds of a dataset.

    Raises
    ------
    DataError
        On periodic frames, which Coulomb matrices cannot describe, and as in `folds_of`.
    """
    for group in dataset.groups():
        periodic = group.read("pbc")
        if periodic is not None and periodic.any():
            raise DataError(
                f"{dataset.path}: {group.name} is periodic; this benchmark is for molecules"
            )
    folds = folds_of(dataset)
    return Molecules(dataset, column(dataset, "energy"), folds)


@dataclass(frozen=True)
class Task:
    """Learn from the molecules `train`, predict those of `test`."""

    molecules: Molecules
    train: np.ndarray  # indices into the dataset
    test: np.ndarray
    seed: int = 0
    minutes: float = 20.0  # budget of rows that learn in steps
    say: Callable[[str], None] = lambda text: None
    device: torch.device | str = "cpu"  # of torch networks
    file: Path | None = None  # for the network that is trained
    per_element: dict[int, float] = field(default_factory=dict)  # eV, taken off the energies

    @property
    def train_energies(self) -> np.ndarray:
        """eV, `(train,)`."""
        return self.molecules.energies[self.train]

    def without(self, per_element: np.ndarray) -> Task:
        """The same task for what energies per element `(N_ELEMENTS,)` eV leave."""
        left = self.molecules.energies - self.molecules.counts @ per_element
        kept = {int(z): float(per_element[z]) for z in np.flatnonzero(per_element)}
        molecules = replace(self.molecules, energies=left)
        return replace(self, molecules=molecules, per_element=kept)


@dataclass(frozen=True)
class Answer:
    """Predicted energies of the test molecules, and how far the training came."""

    energies: np.ndarray  # (test,) eV
    note: str = ""
    cpu_seconds: float | None = None  # of a training in steps, interruptions left out


def task_of_fold(
    molecules: Molecules, fold: int, size: int | None = None, seed: int = 0, minutes: float = 20.0
) -> Task:
    """Test on one fold, train on the others, or on `size` molecules of them drawn at random.

    Raises
    ------
    ValueError
        If there are not as many.
    """
    train = np.flatnonzero(molecules.folds != fold)
    if size is not None:
        if not 1 <= size <= len(train):
            raise ValueError(f"there are {len(train)} training molecules, and {size} are wanted")
        train = np.sort(np.random.default_rng(seed).permutation(train)[:size])
    return Task(molecules, train, np.flatnonzero(molecules.folds == fold), seed, minutes)
