"""Coefficients of splines whose values at the knots are tensors that learn.

They are the solution of a banded system, with its derivative. On the CPU loops solve it, in time
linear in the number of knots; elsewhere the inverse matrix does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.splines import DEGREE, N_WEIGHTS, Knots, collocation, interpolation

COLUMNS = 192  # that are solved for at once, so that all rows of them stay in the cache
# relative to the largest number: a solution falls off by 0.43 per knot, soon to subnormal numbers,
# with which processors compute ten times as slowly
NOTHING = 1e-20


def spline_coefficients(knots: Knots, values: Tensor) -> Tensor:
    """Coefficients from values at `knots.distances()`, both `(n_coefficients, ...)`.

    Differentiable any number of times.
    """
    columns = values.flatten(1)
    if values.device.type == "cpu":
        return _Solution.apply(columns, knots.count, False).view_as(values)
    inverse = _inverse(knots, values.device, values.dtype)
    return (inverse @ columns).view_as(values)


class _Solution(torch.autograd.Function):
    """x of Ax = b or Aᵀx = b, where A takes coefficients to values."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, count: int, transposed: bool) -> Tensor:
        ctx.count, ctx.transposed = count, transposed
        x = b.detach().clone(memory_format=torch.contiguous_format)
        largest = float(torch.linalg.vector_norm(x, torch.inf)) if x.numel() else 0.0
        _solve(*_factors(count, transposed, x.numpy().dtype), NOTHING * largest, x.numpy())
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _Solution.apply(cotangents[0], ctx.count, not ctx.transposed), None, None


@cache
def _factors(count: int, transposed: bool, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Factors of A = LU or its transpose for `_solve`: rows r ∓ 1 … r ∓ 5, scale, `(n, 6)`.

    B-splines need no pivoting: A is totally positive (de Boor and Pinkus 1977, Numer. Math. 27).
    """
    bin, weights = collocation(count)
    n = len(weights)
    a = np.zeros((n, n))
    a[np.arange(n)[:, None], bin[:, None] + np.arange(N_WEIGHTS)] = weights
    for k in range(n):
        below = slice(k + 1, k + 1 + DEGREE)
        a[below, k] /= a[k, k]
        a[below, k + 1 :] -= a[below, k, None] * a[k, k + 1 :]
    scales = 1 / np.diag(a)
    if transposed:  # UᵀLᵀ
        a, scales_before, scales_after = a.T, scales, np.ones(n)
    else:
        scales_before, scales_after = np.ones(n), scales
    before, after = np.zeros((n, DEGREE + 1)), np.zeros((n, DEGREE + 1))
    for k in range(1, DEGREE + 1):
        before[k:, k - 1], after[:-k, k - 1] = np.diag(a, -k), np.diag(a, k)
    before[:, DEGREE], after[:, DEGREE] = scales_before, scales_after
    return before.astype(dtype), after.astype(dtype)


@cache
def _inverse(knots: Knots, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(interpolation(knots.count)).to(device, dtype)


# what is not a number stays so
_loop = compiled(fastmath={"reassoc", "contract"}, error_model="numpy")


@_loop
def _row(x, r, start, stop):  # type: ignore[no-untyped-def]
    return x[min(max(r, 0), len(x) - 1), start:stop]


@_loop
def _eliminate(x, r, step, factors, nothing, start, stop):  # type: ignore[no-untyped-def]
    """Row r minus the five that `step` leads to, each times its factor; then scaled.

    Factors are 0 where there is no such row. Numbers up to `nothing` become 0.
    """
    y, f, scale = x[r, start:stop], factors, factors[DEGREE]
    a, b = _row(x, r + step, start, stop), _row(x, r + 2 * step, start, stop)
    c, d = _row(x, r + 3 * step, start, stop), _row(x, r + 4 * step, start, stop)
    e = _row(x, r + 5 * step, start, stop)
    for k in range(len(y)):
        total = f[0] * a[k] + f[1] * b[k] + f[2] * c[k] + f[3] * d[k] + f[4] * e[k]
        value = scale * (y[k] - total)
        y[k] = 0.0 if abs(value) <= nothing else value


@_loop
def _solve(before, after, nothing, x):  # type: ignore[no-untyped-def]
    """Solve in place: rows before each one, then rows after it; factors `(n, 6)`, scales last."""
    for start in range(0, x.shape[1], COLUMNS):
        for r in range(len(x)):
            _eliminate(x, r, -1, before[r], nothing, start, start + COLUMNS)
        for r in range(len(x) - 1, -1, -1):
            _eliminate(x, r, 1, after[r], nothing, start, start + COLUMNS)
