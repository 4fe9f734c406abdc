"""Weights in the form that the kernels read: padded to whole panels, packed, float32."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.calculators.cpu.matrix_product import COLUMNS, packed, padded
from ase_biasgrad.calculators.sampled_weights import Readout
from ase_biasgrad.splines import RadialTable


def single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def transposed(weights: np.ndarray) -> np.ndarray:
    return np.swapaxes(weights, -1, -2)


def widened(array: np.ndarray, *widths: int) -> np.ndarray:
    """The last axes filled up with zeros to `widths`."""
    lead = array.ndim - len(widths)
    room = [(0, 0)] * lead + [
        (0, width - size) for width, size in zip(widths, array.shape[lead:], strict=True)
    ]
    return np.pad(array, room)


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


def packed_filters(
    table: RadialTable, lead: tuple[int, ...], parts: tuple[int, int], width: int
) -> np.ndarray:
    """Cubics `(*lead, intervals, 4, parts × width)`.

    The channels of `table` are lead × parts × features, with `parts` = (parts, features).
    """
    intervals = len(table.values) - 1
    cubics = table.coefficients.reshape(intervals, 4, int(np.prod(lead)), *parts)
    cubics = widened(np.moveaxis(cubics, 2, 0), width)
    return single(cubics.reshape(*lead, intervals, 4, parts[0] * width))
