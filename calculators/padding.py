"""Weights filled up with zeros to the widths that kernels work in."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.splines import RadialTable


def single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def widened(array: np.ndarray, *widths: int) -> np.ndarray:
    """The last axes filled up with zeros to `widths`."""
    lead = array.ndim - len(widths)
    room = [(0, 0)] * lead + [
        (0, width - size) for width, size in zip(widths, array.shape[lead:], strict=True)
    ]
    return np.pad(array, room)


def widened_parts(array: np.ndarray, features: int, width: int) -> np.ndarray:
    """The last axis, parts of `features`, with each part filled up with zeros to `width`."""
    split = array.reshape(*array.shape[:-1], -1, features)
    return widened(split, width).reshape(*array.shape[:-1], -1)


def widened_matrix(array: np.ndarray, features: int, width: int) -> np.ndarray:
    """Both of the last axes as in `widened_parts`."""
    turned = np.swapaxes(widened_parts(array, features, width), -1, -2)
    return np.swapaxes(widened_parts(turned, features, width), -1, -2)


def packed_filters(
    table: RadialTable, lead: tuple[int, ...], parts: tuple[int, int], width: int
) -> np.ndarray:
    """Spline coefficients `(*lead, rows, parts × width)`.

    The channels of `table` are lead × parts × features, with `parts` = (parts, features).
    """
    rows = table.rows.reshape(len(table.rows), int(np.prod(lead)), *parts)
    rows = widened(np.moveaxis(rows, 1, 0), width)
    return single(rows.reshape(*lead, len(table.rows), parts[0] * width))
