"""L-BFGS steps of many functions at once, each with coordinates and a history of its own.

J. Nocedal, Math. Comput. 35, 773 (1980).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled


@compiled()
def two_loops(step, s, y, starts, curvature):  # type: ignore[no-untyped-def]
    """Replace gradients by −H g, where H is the inverse Hessian that the history tells of.

    step `(n,)`, g of all functions; s and y `(m, n)`, changes of coordinates and of gradients,
    the last one last; starts `(functions + 1,)`.
    """
    m = len(s)
    weights, inverse = np.empty(m), np.empty(m)
    for k in range(len(starts) - 1):
        own = slice(starts[k], starts[k + 1])
        q = step[own]
        for i in range(m - 1, -1, -1):
            product = np.sum(y[i, own] * s[i, own])
            inverse[i] = 0.0 if product == 0.0 else 1.0 / product  # no change tells nothing
            weights[i] = inverse[i] * np.sum(s[i, own] * q)
            q -= weights[i] * y[i, own]
        q /= curvature
        for i in range(m):
            q += (weights[i] - inverse[i] * np.sum(y[i, own] * q)) * s[i, own]
        q *= -1.0


class ManyLBFGS:
    """Histories of functions of `sizes` coordinates each, which take their steps together.

    Parameters
    ----------
    sizes
        Number of coordinates of each function.
    curvature
        First guess of the Hessian, times the unit matrix.
    memory
        Steps that are remembered.
    """

    def __init__(self, sizes: Sequence[int], curvature: float, memory: int) -> None:
        self.curvature = curvature
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._s, self._y = np.empty((2, memory, self.starts[-1]))
        self._count = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def step(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Steps `(n,)` from coordinates and gradients `(n,)` of all functions."""
        if self._last is not None:
            if self._count == len(self._s):
                for history in (self._s, self._y):
                    history[:-1] = history[1:].copy()
                self._count -= 1
            self._s[self._count] = x - self._last[0]
            self._y[self._count] = gradient - self._last[1]
            self._count += 1
        self._last = x.copy(), gradient.copy()
        step, m = gradient.astype(np.float64), self._count
        two_loops(step, self._s[:m], self._y[:m], self.starts, self.curvature)
        return step

    def keep(self, functions: Sequence[int]) -> None:
        """Forget all functions but these, which come in this order."""
        sizes = np.diff(self.starts)[functions]
        of_each = [np.arange(self.starts[k], self.starts[k + 1]) for k in functions]
        columns = np.concatenate([*of_each, np.empty(0, np.int64)])  # also of none
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        memory, m = len(self._s), self._count
        for name in ("_s", "_y"):
            history = np.empty((memory, len(columns)))
            history[:m] = getattr(self, name)[:m, columns]
            setattr(self, name, history)
        if self._last is not None:
            self._last = self._last[0][columns], self._last[1][columns]
