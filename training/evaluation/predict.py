"""Predictions for many frames in batches, as NumPy arrays in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ase_biasgrad.potential import Potential
from ase_biasgrad.progress import progress_bar
from ase_biasgrad.training.frames.device_frames import DeviceFrames, Labels


@dataclass(frozen=True)
class Predictions:
    """Predictions for `m` frames with `a` atoms altogether, in the order of the frames."""

    energy: np.ndarray  # (m,) eV, bias included
    forces: np.ndarray  # (a, 3) eV/Å
    stress: np.ndarray | None  # (m, 6) eV/Å³, NaN for cells without volume

    def plus(self, labels: Labels) -> Predictions:
        """Sums with labels, of a baseline."""
        stress = None if self.stress is None else self.stress + labels.stress
        return Predictions(self.energy + labels.energy, self.forces + labels.forces, stress)


def predict(
    potential: Potential,
    frames: DeviceFrames,
    stress: bool = False,
    atoms_per_batch: int = 2000,
    progress: bool = False,
) -> Predictions:
    """Evaluate every frame; batches hold about `atoms_per_batch` atoms."""
    wanted = ("energy", "forces", "stress") if stress else ("energy", "forces")
    parts: list[dict[str, np.ndarray]] = []
    batches = batches_of_atoms(frames.atom_counts, atoms_per_batch)
    for places in progress_bar(batches, "predict", progress):
        values = potential.evaluate(frames.batch(places).graph, wanted)
        parts.append({name: value.detach().cpu().numpy() for name, value in values.items()})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
    return Predictions(joined["energy"], joined["forces"], joined.get("stress"))


def batches_of_atoms(counts: np.ndarray, atoms_per_batch: int) -> list[np.ndarray]:
    """Places of consecutive frames `(k,)` with about `atoms_per_batch` atoms, from their counts."""
    which = (np.cumsum(counts) - counts) // atoms_per_batch
    return np.split(np.arange(len(counts)), np.flatnonzero(np.diff(which)) + 1)


def largest_per_frame(errors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Largest absolute component `(m,)` of errors `(a, 3)` in each of the frames."""
    start = np.cumsum(counts) - counts
    return np.maximum.reduceat(np.abs(errors).max(axis=1), start)
