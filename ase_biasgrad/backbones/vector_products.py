"""PaiNN's products of vector features, with first and second derivatives written out.

`v` and `w` are the halves of mixed vectors `(n, 3, 2f)`: products of their components summed over
the three directions, and what they add to the features of an atom.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def norms(mixed: Tensor, epsilon: float) -> Tensor:
    """√(v·v + ε) `(n, f)` of mixed vectors `(n, 3, 2f)`; twice differentiable."""
    if mixed.device.type == "cpu":
        # contiguous here, because what a function saves must be its own input
        return _Norms.apply(mixed.contiguous(), epsilon)
    v = mixed[:, :, : mixed.shape[2] // 2]
    return (v.square().sum(dim=1) + epsilon).sqrt()


def updates(factors: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """a⁰ + a² v·w `(n, f)` and a¹ w `(n, 3, f)` of factors a `(n, 3, f)`; twice differentiable."""
    if mixed.device.type == "cpu":
        return _Updates.apply(factors.contiguous(), mixed.contiguous())
    v, w = mixed.chunk(2, dim=2)
    return factors[:, 0] + factors[:, 2] * (v * w).sum(dim=1), factors[:, 1:2] * w


class _Norms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, epsilon: float) -> Tensor:
        norm = mixed.new_empty((len(mixed), mixed.shape[2] // 2))
        _norms(*_arrays(mixed, norm), epsilon)
        ctx.save_for_backward(mixed, norm)
        return norm

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _NormSlopes.apply(cotangents[0].contiguous(), *ctx.saved_tensors), None


class _NormSlopes(torch.autograd.Function):
    """g v/|v| for a cotangent g of the norm."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, mixed: Tensor, norm: Tensor) -> Tensor:
        ctx.save_for_backward(g, mixed, norm)
        slopes = torch.empty_like(mixed)
        _norm_slopes(*_arrays(g, mixed, norm, slopes))
        return slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        g, mixed, norm = ctx.saved_tensors
        slopes = torch.empty_like(g), torch.empty_like(mixed)
        _norm_curvature(*_arrays(g, mixed, norm, cotangents[0].contiguous(), *slopes))
        return *slopes, None  # the norm is a function of the vectors, and counted there


class _Updates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factors: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(factors, mixed)
        n, _, features = factors.shape
        scalar, vector = factors.new_empty((n, features)), torch.empty_like(factors)
        _updates(*_arrays(factors, mixed, scalar, vector))
        return scalar, vector

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        s, m = (cotangent.contiguous() for cotangent in cotangents)
        return _UpdateSlopes.apply(s, m, *ctx.saved_tensors)


class _UpdateSlopes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, s: Tensor, m: Tensor, factors: Tensor, mixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(s, m, factors, mixed)
        slopes = torch.empty_like(factors), torch.empty_like(mixed)
        _update_slopes(*_arrays(s, m, factors, mixed, *slopes))
        return slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        arguments = ctx.saved_tensors
        tangents = [cotangent.contiguous() for cotangent in cotangents]
        slopes = [torch.empty_like(argument) for argument in arguments]
        _update_curvature(*_arrays(*arguments, *tangents, *slopes))
        return tuple(slopes)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


_loop = numba.njit(cache=True, fastmath=True, nogil=True, boundscheck=False)


@_loop
def _norms(mixed, norm, epsilon):  # type: ignore[no-untyped-def]
    added = norm.dtype.type(epsilon)
    for n in range(norm.shape[0]):
        for f in range(norm.shape[1]):
            square = mixed[n, 0, f] ** 2 + mixed[n, 1, f] ** 2 + mixed[n, 2, f] ** 2
            norm[n, f] = np.sqrt(square + added)


@_loop
def _norm_slopes(g, mixed, norm, slopes):  # type: ignore[no-untyped-def]
    features = norm.shape[1]
    for n in range(norm.shape[0]):
        for c in range(3):
            for f in range(features):
                slopes[n, c, f] = g[n, f] / norm[n, f] * mixed[n, c, f]
            slopes[n, c, features:] = 0


@_loop
def _norm_curvature(g, mixed, norm, tangent, of_g, of_mixed):  # type: ignore[no-untyped-def]
    features = norm.shape[1]
    for n in range(norm.shape[0]):
        v, dv = mixed[n], tangent[n]
        for f in range(features):
            along = v[0, f] * dv[0, f] + v[1, f] * dv[1, f] + v[2, f] * dv[2, f]
            of_g[n, f] = along / norm[n, f]
        for c in range(3):
            for f in range(features):
                change = dv[c, f] - of_g[n, f] / norm[n, f] * v[c, f]
                of_mixed[n, c, f] = g[n, f] / norm[n, f] * change
            of_mixed[n, c, features:] = 0


@_loop
def _updates(factors, mixed, scalar, vector):  # type: ignore[no-untyped-def]
    features = scalar.shape[1]
    for n in range(len(scalar)):
        a, v, w = factors[n], mixed[n, :, :features], mixed[n, :, features:]
        for f in range(features):
            dot = v[0, f] * w[0, f] + v[1, f] * w[1, f] + v[2, f] * w[2, f]
            scalar[n, f] = a[0, f] + a[2, f] * dot
        for c in range(3):
            for f in range(features):
                vector[n, c, f] = a[1, f] * w[c, f]


@_loop
def _update_slopes(s, m, factors, mixed, of_factors, of_mixed):  # type: ignore[no-untyped-def]
    features = s.shape[1]
    for n in range(len(s)):
        a, v, w = factors[n], mixed[n, :, :features], mixed[n, :, features:]
        for f in range(features):
            dot = v[0, f] * w[0, f] + v[1, f] * w[1, f] + v[2, f] * w[2, f]
            of_factors[n, 0, f] = s[n, f]
            of_factors[n, 1, f] = m[n, 0, f] * w[0, f] + m[n, 1, f] * w[1, f] + m[n, 2, f] * w[2, f]
            of_factors[n, 2, f] = s[n, f] * dot
        for c in range(3):
            for f in range(features):
                both = s[n, f] * a[2, f]
                of_mixed[n, c, f] = both * w[c, f]
                of_mixed[n, c, features + f] = both * v[c, f] + a[1, f] * m[n, c, f]


@_loop
def _update_curvature(  # type: ignore[no-untyped-def]
    s, m, factors, mixed, dfactors, dmixed, of_s, of_m, of_factors, of_mixed
):
    features = s.shape[1]
    for n in range(len(s)):
        a, v, w = factors[n], mixed[n, :, :features], mixed[n, :, features:]
        da, dv, dw = dfactors[n], dmixed[n, :, :features], dmixed[n, :, features:]
        for f in range(features):
            dot = v[0, f] * w[0, f] + v[1, f] * w[1, f] + v[2, f] * w[2, f]
            ddot = (
                dv[0, f] * w[0, f] + dv[1, f] * w[1, f] + dv[2, f] * w[2, f]
                + v[0, f] * dw[0, f] + v[1, f] * dw[1, f] + v[2, f] * dw[2, f]
            )  # fmt: skip
            of_s[n, f] = da[0, f] + da[2, f] * dot + a[2, f] * ddot
            of_factors[n, 0, f] = 0
            of_factors[n, 1, f] = (
                m[n, 0, f] * dw[0, f] + m[n, 1, f] * dw[1, f] + m[n, 2, f] * dw[2, f]
            )
            of_factors[n, 2, f] = s[n, f] * ddot
        for c in range(3):
            for f in range(features):
                both, change = s[n, f] * a[2, f], s[n, f] * da[2, f]
                of_m[n, c, f] = da[1, f] * w[c, f] + a[1, f] * dw[c, f]
                of_mixed[n, c, f] = change * w[c, f] + both * dw[c, f]
                of_mixed[n, c, features + f] = (
                    change * v[c, f] + both * dv[c, f] + da[1, f] * m[n, c, f]
                )
