"""The bias stage: fit b on energy residuals, in float64, with the forces left alone."""

from __future__ import annotations

import numpy as np
import torch

from ase_biasgrad.bias import BiasMethod
from ase_biasgrad.metrics import forces_within
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.evaluation.predict import largest_per_frame, predict
from ase_biasgrad.training.frames.resident import ResidentFrames


def fit_bias(
    potential: Potential, frames: ResidentFrames, method: BiasMethod | str = "auto"
) -> np.ndarray:
    """Fit the bias of `potential` in place; return the energy residuals left, `(m,)` eV.

    Parameters
    ----------
    method
        One of `BiasMethod`, or `auto`: `mean` where all frames have one composition,
        `least-squares` over elements where they have several.

    Raises
    ------
    ValueError
        If the frames have no energies.
    """
    if frames.energy is None:
        raise ValueError("the bias stage needs reference energies, and the data has none")
    freeze_energy_shifts(potential)
    energy = frames.energy.cpu().numpy()
    predictions = predict(potential, frames)
    without_bias = predictions.energy - _present_bias(potential, frames)
    counts = frames.compositions()
    if method == "auto":
        method = "mean" if len(np.unique(counts, axis=0)) == 1 else "least-squares"
    within = None
    if method == "efwt" and frames.forces is not None:
        errors = predictions.forces - frames.forces.cpu().numpy()
        within = forces_within(largest_per_frame(errors, frames.atom_counts))
    potential.bias.fit(energy - without_bias, counts, method, within)  # type: ignore[arg-type]
    return energy - without_bias - _present_bias(potential, frames)


def _present_bias(potential: Potential, frames: ResidentFrames) -> np.ndarray:
    """b of each frame `(m,)` eV as it stands now."""
    owner = np.repeat(np.arange(len(frames)), frames.atom_counts)
    batch = torch.from_numpy(owner).to(frames.device)
    return potential.bias(frames.numbers, batch, len(frames)).detach().cpu().numpy()
