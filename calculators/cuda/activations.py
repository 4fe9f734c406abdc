"""Activation functions with a bias and their derivatives, fused.

Annotations must be objects, not strings, for Triton to see its constants: no `__future__` import.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ase_biasgrad.calculators.cuda.tiles import ROWS, row_grid


def shifted_softplus(rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """log(½ + ½ exp(rows + bias)) and its derivative.

    rows `(members, n, width)` become the value; bias `(members, width)`.
    """
    slopes = torch.empty_like(rows)
    _shifted_softplus[row_grid(rows)](
        rows, bias, slopes, rows.shape[1], bias.stride(0), WIDTH=rows.shape[2], ROWS=ROWS
    )
    return rows, slopes


def silu(rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x σ(x) with x = rows + bias, and its derivative; arguments as in `shifted_softplus`."""
    slopes = torch.empty_like(rows)
    _silu[row_grid(rows)](
        rows, bias, slopes, rows.shape[1], bias.stride(0), WIDTH=rows.shape[2], ROWS=ROWS
    )
    return rows, slopes


@triton.jit
def _logistic(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(−x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _with_bias(  # type: ignore[no-untyped-def]
    rows, bias, n, bias_member, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """rows + bias of this program, where they lie, and which of them are rows."""
    row, f = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    member = tl.program_id(1).to(tl.int64)
    at = (member * n + row)[:, None] * WIDTH + f[None, :]
    inside = row[:, None] < n
    x = tl.load(rows + at, mask=inside, other=0.0)
    return x + tl.load(bias + member * bias_member + f)[None, :], at, inside


@triton.jit(do_not_specialize=["n"])
def _shifted_softplus(  # type: ignore[no-untyped-def]
    rows, bias, slopes, n, bias_member, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    x, at, inside = _with_bias(rows, bias, n, bias_member, WIDTH, ROWS)
    value = tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x))) - 0.6931471805599453
    tl.store(rows + at, value, mask=inside)
    tl.store(slopes + at, _logistic(x), mask=inside)


@triton.jit(do_not_specialize=["n"])
def _silu(  # type: ignore[no-untyped-def]
    rows, bias, slopes, n, bias_member, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    x, at, inside = _with_bias(rows, bias, n, bias_member, WIDTH, ROWS)
    s = _logistic(x)
    tl.store(rows + at, x * s, mask=inside)
    tl.store(slopes + at, s + x * s * (1.0 - s), mask=inside)
