"""Weights in the form that the kernels read: padded to whole panels, packed, float32."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.calculators.cpu.matrix_product import COLUMNS, packed, padded
from ase_biasgrad.calculators.padding import single, widened
from ase_biasgrad.calculators.sampled_weights import Readout


def transposed(weights: np.ndarray) -> np.ndarray:
    return np.swapaxes(weights, -1, -2)


def packed_readout(readout: Readout, width: int) -> tuple[np.ndarray, ...]:
    """panels, readout, readout_t, readout_bias, last_weight, last_bias of the kernels."""
    hidden = widened(readout.hidden, width, width)
    return (
        np.array([padded(w) // COLUMNS for w in readout.widths], np.int64),
        packed(hidden),
        packed(transposed(hidden)),
        single(widened(readout.hidden_bias, width)),
        single(widened(readout.last, width)),
        np.asarray(readout.last_bias, np.float64),
    )
