"""What TensorNet does with tensors of one atom, on the CPU, with both derivatives written out.

    symmetric_product:  XY + YX,               P(z, x, y) = tr Zᵀ(XY + YX),
    normalised:         X / (|X|² + 1),        N(g, x) = tr Gᵀ X / (|X|² + 1),
    mixed:              one matrix over features for each irreducible part.

Tensors are components `(n, 9, f)` in the basis of `tensornet.matrix_basis`. Derivatives of P are
products once more, with transposed matrices. Loops run over features with all of an atom's
components at hand; they are compiled for each number of features, because the compiler can only
use vector instructions where it knows how far components are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_biasgrad.backbones.wanted import is_wanted

ENDS = ((0, 1), (1, 4), (4, 9))  # of the irreducible parts among the components


def symmetric_product(x: Tensor, y: Tensor) -> Tensor:
    """XY + YX of components `(n, 9, f)`; twice differentiable."""
    return _Product.apply(x.contiguous(), y.contiguous())


def normalised(x: Tensor) -> Tensor:
    """X / (|X|² + 1) of components `(n, 9, f)`, with the Frobenius norm; twice differentiable."""
    return _Normalised.apply(x.contiguous())


def mixed(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """x_p Wᵀ_p of the three irreducible parts of components `(n, 9, f)`, with W_p `(f, f)`.

    Differentiable twice, of that once in the weights.
    """
    # the engine says for views, but not for leaves, whether a backward pass leads there
    return _Mixed.apply(x.contiguous(), *(weight.view_as(weight) for weight in weights))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return _filled(product_loops, [x, y], 1)[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _ProductSlopes.apply(cotangents[0].contiguous(), *ctx.saved_tensors)


class _ProductSlopes(torch.autograd.Function):
    """∂P/∂x and ∂P/∂y."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(z, x, y)
        return _filled(product_slope_loops, [z, x, y], 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        tangents = [cotangent.contiguous() for cotangent in cotangents]
        return _filled(_product_curvature_loops, [*ctx.saved_tensors, *tangents], 3)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _filled(normalised_loops, [x], 1)[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _NormalisedSlopes.apply(cotangents[0].contiguous(), *ctx.saved_tensors)


class _NormalisedSlopes(torch.autograd.Function):
    """∂N/∂x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return _filled(normalised_slope_loops, [g, x], 1)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        arguments = [*ctx.saved_tensors, cotangents[0].contiguous()]
        return _filled(_normalised_curvature_loops, arguments, 2)


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        return _by_parts(x, [weight.t() for weight in weights])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        g = cotangents[0].contiguous()
        x, *weights = ctx.saved_tensors
        of_x = _MixedSlopes.apply(g, *weights)
        if not is_wanted(ctx, 1):
            return of_x, None, None, None
        if torch.is_grad_enabled():
            raise RuntimeError("mixed has no second derivatives in its weights")
        return of_x, *_outer_products(g, x)


class _MixedSlopes(torch.autograd.Function):
    """The cotangent of x from that of what it was mixed to."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(g, *weights)
        return _by_parts(g, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        g, *weights = ctx.saved_tensors
        outer = cotangents[0].contiguous()
        return _by_parts(outer, [weight.t() for weight in weights]), *_outer_products(g, outer)


def _by_parts(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    out = torch.empty_like(x)
    for (start, end), matrix in zip(ENDS, matrices, strict=True):
        part = x[:, start:end]  # (n, c, f)
        # rows of one matrix, because torch sums others differently with and without gradients
        out[:, start:end] = (part.flatten(0, 1) @ matrix).view_as(part)
    return out


def _outer_products(g: Tensor, x: Tensor) -> list[Tensor]:
    return [g[:, a:b].flatten(0, 1).t() @ x[:, a:b].flatten(0, 1) for a, b in ENDS]


def filled(
    loops: Callable[[int], Callable[..., None]], arguments: Sequence[np.ndarray], results: int = 1
) -> list[np.ndarray]:
    """What the loops for so many features make of contiguous `(n, 9, f)`; all are of one shape."""
    made = [np.empty_like(arguments[0]) for _ in range(results)]
    loops(arguments[0].shape[2])(*(array.reshape(-1) for array in (*arguments, *made)))
    return made


def _filled(
    loops: Callable[[int], Callable[..., None]], arguments: Sequence[Tensor], results: int
) -> tuple[Tensor, ...]:
    arrays = [argument.detach().numpy() for argument in arguments]
    return tuple(torch.from_numpy(array) for array in filled(loops, arrays, results))


_loop = numba.njit(cache=True, fastmath=True, nogil=True, boundscheck=False, error_model="numpy")
_inline = numba.njit(fastmath=True, inline="always", boundscheck=False)


@_inline
def _inverse_norms(dtype):  # type: ignore[no-untyped-def]
    """Of the basis: that of the unit matrix, of most others, and of the last."""
    return dtype.type(np.sqrt(1 / 3)), dtype.type(np.sqrt(1 / 2)), dtype.type(np.sqrt(1 / 6))


@_inline
def _matrix(x, o, step, norms):  # type: ignore[no-untyped-def]
    """The matrix, row by row, whose components lie `step` apart from `o` on."""
    one, a, b, c = norms[0] * x[o], x[o + step], x[o + 2 * step], x[o + 3 * step]
    p, q, r = x[o + 4 * step], x[o + 5 * step], x[o + 6 * step]
    s, t, h = norms[1] * x[o + 7 * step], norms[2] * x[o + 8 * step], norms[1]
    return (
        one + s - t, h * (p - c), h * (r + b),
        h * (p + c), one - s - t, h * (q - a),
        h * (r - b), h * (q + a), one + t + t,
    )  # fmt: skip


@_inline
def _put(m, out, o, step, norms):  # type: ignore[no-untyped-def]
    """Components of a matrix; the transpose of `_matrix`, and its inverse."""
    h = norms[1]
    out[o] = norms[0] * (m[0] + m[4] + m[8])
    out[o + step] = h * (m[7] - m[5])
    out[o + 2 * step] = h * (m[2] - m[6])
    out[o + 3 * step] = h * (m[3] - m[1])
    out[o + 4 * step] = h * (m[1] + m[3])
    out[o + 5 * step] = h * (m[5] + m[7])
    out[o + 6 * step] = h * (m[2] + m[6])
    out[o + 7 * step] = h * (m[0] - m[4])
    out[o + 8 * step] = norms[2] * (m[8] + m[8] - m[0] - m[4])


@_inline
def _transposed(m):  # type: ignore[no-untyped-def]
    return m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]


@_inline
def _sum(a, b):  # type: ignore[no-untyped-def]
    return (
        a[0] + b[0], a[1] + b[1], a[2] + b[2],
        a[3] + b[3], a[4] + b[4], a[5] + b[5],
        a[6] + b[6], a[7] + b[7], a[8] + b[8],
    )  # fmt: skip


@_inline
def _times(a, b):  # type: ignore[no-untyped-def]
    return (
        a[0] * b[0] + a[1] * b[3] + a[2] * b[6],
        a[0] * b[1] + a[1] * b[4] + a[2] * b[7],
        a[0] * b[2] + a[1] * b[5] + a[2] * b[8],
        a[3] * b[0] + a[4] * b[3] + a[5] * b[6],
        a[3] * b[1] + a[4] * b[4] + a[5] * b[7],
        a[3] * b[2] + a[4] * b[5] + a[5] * b[8],
        a[6] * b[0] + a[7] * b[3] + a[8] * b[6],
        a[6] * b[1] + a[7] * b[4] + a[8] * b[7],
        a[6] * b[2] + a[7] * b[5] + a[8] * b[8],
    )


@_inline
def _both_ways(a, b):  # type: ignore[no-untyped-def]
    """ab + ba."""
    return _sum(_times(a, b), _times(b, a))


@_inline
def _dot(x, y, o, step):  # type: ignore[no-untyped-def]
    total = x[o] * y[o]
    for c in range(1, 9):
        total += x[o + c * step] * y[o + c * step]
    return total


@cache
def product_loops(features: int) -> Callable[..., None]:
    @_loop
    def product(x, y, out):  # type: ignore[no-untyped-def]
        norms = _inverse_norms(x.dtype)
        for n in range(len(out) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                a, b = _matrix(x, o, features, norms), _matrix(y, o, features, norms)
                _put(_both_ways(a, b), out, o, features, norms)

    return product


@cache
def product_slope_loops(features: int) -> Callable[..., None]:
    @_loop
    def slopes(z, x, y, of_x, of_y):  # type: ignore[no-untyped-def]
        norms = _inverse_norms(x.dtype)
        for n in range(len(z) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                c = _matrix(z, o, features, norms)
                a = _transposed(_matrix(x, o, features, norms))
                b = _transposed(_matrix(y, o, features, norms))
                _put(_both_ways(c, b), of_x, o, features, norms)
                _put(_both_ways(c, a), of_y, o, features, norms)

    return slopes


@cache
def _product_curvature_loops(features: int) -> Callable[..., None]:
    @_loop
    def curvature(z, x, y, dx, dy, of_z, of_x, of_y):  # type: ignore[no-untyped-def]
        """Derivatives in (z, x, y) of the change of P along (dx, dy)."""
        norms = _inverse_norms(x.dtype)
        for n in range(len(z) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                a, da = _matrix(x, o, features, norms), _matrix(dx, o, features, norms)
                b, db = _matrix(y, o, features, norms), _matrix(dy, o, features, norms)
                c = _matrix(z, o, features, norms)
                _put(_sum(_both_ways(da, b), _both_ways(a, db)), of_z, o, features, norms)
                _put(_both_ways(c, _transposed(db)), of_x, o, features, norms)
                _put(_both_ways(c, _transposed(da)), of_y, o, features, norms)

    return curvature


@cache
def normalised_loops(features: int) -> Callable[..., None]:
    @_loop
    def normalised(x, out):  # type: ignore[no-untyped-def]
        for n in range(len(out) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                factor = 1 / (1 + _dot(x, x, o, features))
                for c in range(9):
                    out[o + c * features] = factor * x[o + c * features]

    return normalised


@cache
def normalised_slope_loops(features: int) -> Callable[..., None]:
    @_loop
    def slopes(g, x, out):  # type: ignore[no-untyped-def]
        for n in range(len(out) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                factor = 1 / (1 + _dot(x, x, o, features))
                along = 2 * factor * factor * _dot(g, x, o, features)
                for c in range(9):
                    k = o + c * features
                    out[k] = factor * g[k] - along * x[k]

    return slopes


@cache
def _normalised_curvature_loops(features: int) -> Callable[..., None]:
    @_loop
    def curvature(g, x, dx, of_g, of_x):  # type: ignore[no-untyped-def]
        """Derivatives in (g, x) of the change of N along dx."""
        for n in range(len(g) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                factor = 1 / (1 + _dot(x, x, o, features))
                square = 2 * factor * factor
                gx, gd = _dot(g, x, o, features), _dot(g, dx, o, features)
                xd = _dot(x, dx, o, features)
                along = square * (4 * factor * gx * xd - gd)
                for c in range(9):
                    k = o + c * features
                    of_g[k] = factor * dx[k] - square * xd * x[k]
                    of_x[k] = along * x[k] - square * (gx * dx[k] + xd * g[k])

    return curvature


@cache
def by_part_loops(features: int) -> Callable[..., None]:
    """x times one factor `(n, 3, f)`, or `(3, f)` for all atoms, for each part; added to `out`."""

    @_loop
    def by_part(x, factors, out):  # type: ignore[no-untyped-def]
        n = len(x) // (9 * features)
        step = 0 if len(factors) == 3 * features else 3 * features
        for k in range(n):
            for c in range(9):
                part = (c > 0) + (c > 3)
                at, of = (9 * k + c) * features, k * step + part * features
                for f in range(features):
                    out[at + f] += factors[of + f] * x[at + f]

    return by_part


@cache
def dot_by_part_loops(features: int) -> Callable[..., None]:
    """Sums `(n, 3, f)` of xy over the components of each part."""

    @_loop
    def dot_by_part(x, y, out):  # type: ignore[no-untyped-def]
        for n in range(len(x) // (9 * features)):
            for f in range(features):
                o, at = 9 * features * n + f, 3 * features * n + f
                k = o + 4 * features
                out[at] = x[o] * y[o]
                second, third = x[o + features] * y[o + features], x[k] * y[k]
                for c in range(2, 4):
                    second += x[o + c * features] * y[o + c * features]
                for c in range(5, 9):
                    third += x[o + c * features] * y[o + c * features]
                out[at + features], out[at + 2 * features] = second, third

    return dot_by_part
