"""Products of 3 × 3 matrices in components, as a trilinear form with all its derivatives.

    P(z, x, y) = Σ_n Σ_f Σ_klm G_klm z_k x_l y_m,    G_klm = tr(Bᵀ_k (B_l B_m + B_m B_l)),

so that ∂P/∂z is XY + YX, and its derivatives are those of P with a cotangent in place of an
argument. G has few entries that are not zero, and is symmetric in l and m.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.backbones.tensornet import matrix_basis


def symmetric_product(x: Tensor, y: Tensor) -> Tensor:
    """XY + YX of components `(n, 9, f)` on the CPU, differentiable any number of times."""
    return _Derivative.apply(0, x.contiguous(), y.contiguous())


class _Derivative(torch.autograd.Function):
    """Derivative of P in argument `k` of (z, x, y), given the other two."""

    @staticmethod
    def forward(ctx: Any, k: int, one: Tensor, two: Tensor) -> Tensor:
        ctx.k = k
        ctx.save_for_backward(one, two)
        total = torch.zeros_like(one)
        indices, values = entries()
        order = [k, *(place for place in range(3) if place != k)]
        arrays = [tensor.detach().numpy() for tensor in (one, two, total)]
        _contract(np.ascontiguousarray(indices[:, order]), values.astype(arrays[0].dtype), *arrays)
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        arguments = list(ctx.saved_tensors)
        arguments.insert(ctx.k, cotangents[0].contiguous())
        places = [place for place in range(3) if place != ctx.k]
        gradients = [
            _Derivative.apply(place, *arguments[:place], *arguments[place + 1 :])
            if needed
            else None
            for place, needed in zip(places, ctx.needs_input_grad[1:], strict=True)
        ]
        return None, *gradients


@cache
def entries() -> tuple[np.ndarray, np.ndarray]:
    """Indices `(e, 3)` and values `(e,)` of G."""
    basis = matrix_basis()
    products = np.einsum("lab,mbc->lmac", basis, basis)
    g = np.einsum("kac,lmac->klm", basis, products + products.swapaxes(0, 1))
    indices = np.argwhere(np.abs(g) > 1e-12)
    return indices, g[tuple(indices.T)]


@numba.njit(cache=True, fastmath=True, nogil=True, boundscheck=False)
def _contract(indices, values, one, two, total):  # type: ignore[no-untyped-def]
    for n in range(total.shape[0]):
        for e in range(len(values)):
            value = values[e]
            out = total[n, indices[e, 0]]
            a, b = one[n, indices[e, 1]], two[n, indices[e, 2]]
            for f in range(len(out)):
                out[f] += value * a[f] * b[f]
