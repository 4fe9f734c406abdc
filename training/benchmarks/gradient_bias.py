"""Bias by gradient descent, as the original work trained it; kept to be compared with."""

from __future__ import annotations

import numpy as np
import torch

from ase_biasgrad.bias_fits import checked
from ase_biasgrad.potential import Potential
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.bias import fit_bias

STEPS, LEARNING_RATE = 20_000, 1e-3  # eV per step


def gradient_descent(residuals: np.ndarray) -> float:
    """Minimise Σ |r − b| by Adam from 0; residuals `(m,)` in eV.

    The median is the exact minimum. With residuals far from 0 this moves by about `LEARNING_RATE`
    per step and stops on the way.
    """
    residuals = checked(residuals)
    b = first = second = 0.0
    for step in range(1, STEPS + 1):
        gradient = float(np.mean(np.sign(b - residuals)))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        b -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-12)
    return b


def fit_bias_by_gradient(potential: Potential, frames: DeviceFrames) -> None:
    """Fit the bias in place to frames of one composition, by gradient descent from their mean.

    Raises `ValueError` if the frames have several compositions, or no energies.
    """
    compositions = np.unique(frames.compositions(), axis=0)
    if len(compositions) != 1:
        raise ValueError(f"bias by gradient takes one composition, not {len(compositions)}")
    left = fit_bias(potential, frames, "mean")
    numbers = frames.numbers[: frames.atom_counts[0]]
    mean = float(potential.bias(numbers, torch.zeros_like(numbers), 1))
    potential.bias.fit(np.array([mean + gradient_descent(left)]), compositions, "mean")
    potential.bias.fit_report |= {"method": "gradient", "frames": len(left)}
