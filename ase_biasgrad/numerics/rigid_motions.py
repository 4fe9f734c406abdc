"""Motions of points as a whole."""

from __future__ import annotations

import numpy as np


def shifts(count: int) -> np.ndarray:
    """Motions of so many points along the axes, `(3 count, 3)`."""
    return np.tile(np.eye(3), (count, 1))


def turns(vectors: np.ndarray) -> np.ndarray:
    """e × v of vectors `(n, 3)` for the axes e, `(3n, 3)`: rotations, if these are positions."""
    return np.cross(np.eye(3)[:, None], vectors).reshape(3, -1).T
