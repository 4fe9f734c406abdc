"""TensorNet's layers on the tensors of one atom, on the CPU.

    SymmetricProduct:  XY + YX,               P(z, x, y) = tr Zᵀ(XY + YX),
    Normalised:        X / (|X|² + 1),        N(g, x) = tr Gᵀ X / (|X|² + 1),
    IrrepsLinear:      one matrix over features for each irreducible part,
    ScaleIrreps:       one factor for each feature and irreducible part,
    SquaredNorms:      |X|², of each irreducible part or of all.

Tensors are components `(n, 9, f)` in the basis of `tensornet.matrix_basis`. Derivatives of P are
products once more, with transposed matrices. Loops run over features with all of an atom's
components at hand; they are compiled for each number of features, because the compiler can only
use vector instructions where it knows how far components are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.fused.layers import FunctionLayer, Tensors
from ase_biasgrad.fused.tape import Variable
from ase_biasgrad.numerics.kernel_cache import compiled

Part = TypeVar("Part")
ENDS = ((0, 1), (1, 4), (4, 9))  # of the irreducible parts among the components


class SymmetricProduct(FunctionLayer):
    """XY + YX of components `(n, 9, f)`."""

    def forward(self, *inputs: Tensor) -> Tensors:
        return _run_loops(product_loops, inputs, 1)

    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        return _run_loops(product_vjp_loops, [*g, *inputs], 2)

    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        jvp, *gradients = _run_loops(_product_second_order_loops, [*g, *inputs, *d], 3)
        return (jvp,), tuple(gradients)


class Normalised(FunctionLayer):
    """X / (|X|² + 1) of components `(n, 9, f)`, with the Frobenius norm."""

    def forward(self, *inputs: Tensor) -> Tensors:
        return _run_loops(normalised_loops, inputs, 1)

    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        return _run_loops(normalised_vjp_loops, [*g, *inputs], 1)

    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        jvp, grad_x = _run_loops(_normalised_second_order_loops, [*g, *inputs, *d], 2)
        return (jvp,), (grad_x,)


class ScaleIrreps(FunctionLayer):
    """Components x `(n, 9, f)` times factors `(n, 3f)`, or `(1, 3, f)` for all atoms."""

    def forward(self, *inputs: Tensor) -> Tensors:
        return (self._scale_irreps([inputs]),)

    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        x, factors = inputs
        return self._scale_irreps([(g[0], factors)]), self._dot(g[0], x)

    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        (x, factors), (dx, dfactors) = inputs, d
        change = self._scale_irreps([(dx, factors), (x, dfactors)])
        return (change,), (self._scale_irreps([(g[0], dfactors)]), self._dot(g[0], dx))

    @staticmethod
    def _scale_irreps(products: Sequence[Sequence[Tensor]]) -> Tensor:
        out = torch.zeros_like(products[0][0])
        for x, factors in products:
            loop = scale_irreps_loops(x.shape[2])
            loop(*(_flat(tensor) for tensor in (x, factors, out)))
        return out

    def _dot(self, g: Tensor, x: Tensor) -> Tensor:
        dot = x.new_empty((len(x), 3 * x.shape[2]))
        irreps_dot_loops(x.shape[2])(_flat(g), _flat(x), _flat(dot))
        factors = self.inputs[1].data
        return dot if factors.dim() == 2 else dot.sum(0).view_as(factors)


class SquaredNorms(FunctionLayer):
    """Σ x² over all components, `(n, f)`, or over those of each irreducible part, `(n, 3f)`."""

    def __init__(self, x: Variable, parts: bool) -> None:
        self.parts = parts
        super().__init__(x)

    def forward(self, *inputs: Tensor) -> Tensors:
        return (self._dot(inputs[0], inputs[0]),)

    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        return (self._times(2 * g[0], inputs[0]),)

    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        return (2 * self._dot(inputs[0], d[0]),), (self._times(2 * g[0], d[0]),)

    def _dot(self, x: Tensor, y: Tensor) -> Tensor:
        dot = x.new_empty((len(x), 3, x.shape[2]))
        irreps_dot_loops(x.shape[2])(_flat(x), _flat(y), _flat(dot))
        return dot.flatten(1) if self.parts else dot.sum(1)

    def _times(self, g: Tensor, x: Tensor) -> Tensor:
        return ScaleIrreps._scale_irreps([(x, g)]) if self.parts else g.unsqueeze(1) * x


class IrrepsLinear:
    """x_p Wᵀ_p of the three irreducible parts of components `(n, 9, f)`, with W_p `(f, f)`."""

    def __init__(self, x: Variable, weights: Sequence[Variable]) -> None:
        self.x, self.weights = x, weights
        self.y = Variable(_multiply_irreps(x.data, self._transposed()), x.active)
        self.results = (self.y,)

    def _transposed(self) -> list[Tensor]:
        return [weight.data.t() for weight in self.weights]

    def _back(self, g: Tensor) -> Tensor:
        return _multiply_irreps(g, [weight.data for weight in self.weights])

    def vjp(self) -> None:
        if self.x.active and self.y.adjoint is not None:
            self.x.add_adjoint(self._back(self.y.adjoint))

    def jvp(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = _multiply_irreps(self.x.tangent, self._transposed())

    def second_order(self) -> None:
        if self.y.gradient is not None:
            self.x.give_gradient(self._back(self.y.gradient))
            self._add_products(self.y.gradient, self.x.data)
        if self.y.adjoint is not None and self.x.tangent is not None:
            self._add_products(self.y.adjoint, self.x.tangent)

    def _add_products(self, g: Tensor, x: Tensor) -> None:
        weights = _of_components(self.weights)
        for weight, g_c, x_c in zip(weights, g.unbind(1), x.unbind(1), strict=True):
            weight.add_product(g_c, x_c)


def _multiply_irreps(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    out = torch.empty_like(x)
    # component by component: parts would have to be copied to be rows of one matrix
    for matrix, x_c, out_c in zip(
        _of_components(matrices), x.unbind(1), out.unbind(1), strict=True
    ):
        torch.mm(x_c, matrix, out=out_c)
    return out


def _of_components(parts: Sequence[Part]) -> list[Part]:
    return [part for part, (a, b) in zip(parts, ENDS, strict=True) for _ in range(a, b)]


def run_loops(
    loops: Callable[[int], Callable[..., None]], arguments: Sequence[np.ndarray], results: int = 1
) -> list[np.ndarray]:
    """Results of the loops for so many features on contiguous `(n, 9, f)`, of the same shape."""
    made = [np.empty_like(arguments[0]) for _ in range(results)]
    loops(arguments[0].shape[2])(*(array.reshape(-1) for array in (*arguments, *made)))
    return made


def _run_loops(
    loops: Callable[[int], Callable[..., None]], arguments: Sequence[Tensor], results: int
) -> tuple[Tensor, ...]:
    arrays = [argument.contiguous().numpy() for argument in arguments]
    return tuple(torch.from_numpy(array) for array in run_loops(loops, arrays, results))


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().numpy().reshape(-1)


_loop = compiled(fastmath=True, error_model="numpy")
_inline = compiled(fastmath=True, inline="always")


@_inline
def _inverse_norms(dtype):  # type: ignore[no-untyped-def]
    """Inverse norms in the basis: of the unit matrix, of most others, and of the last."""
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
def product_vjp_loops(features: int) -> Callable[..., None]:
    @_loop
    def adjoints(z, x, y, adj_x, adj_y):  # type: ignore[no-untyped-def]
        norms = _inverse_norms(x.dtype)
        for n in range(len(z) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                c = _matrix(z, o, features, norms)
                a = _transposed(_matrix(x, o, features, norms))
                b = _transposed(_matrix(y, o, features, norms))
                _put(_both_ways(c, b), adj_x, o, features, norms)
                _put(_both_ways(c, a), adj_y, o, features, norms)

    return adjoints


@cache
def _product_second_order_loops(features: int) -> Callable[..., None]:
    @_loop
    def jvp_adjoints(z, x, y, dx, dy, jvp, grad_x, grad_y):  # type: ignore[no-untyped-def]
        """Derivatives in (z, x, y) of the change of P along (dx, dy)."""
        norms = _inverse_norms(x.dtype)
        for n in range(len(z) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                a, da = _matrix(x, o, features, norms), _matrix(dx, o, features, norms)
                b, db = _matrix(y, o, features, norms), _matrix(dy, o, features, norms)
                c = _matrix(z, o, features, norms)
                _put(_sum(_both_ways(da, b), _both_ways(a, db)), jvp, o, features, norms)
                _put(_both_ways(c, _transposed(db)), grad_x, o, features, norms)
                _put(_both_ways(c, _transposed(da)), grad_y, o, features, norms)

    return jvp_adjoints


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
def normalised_vjp_loops(features: int) -> Callable[..., None]:
    @_loop
    def adjoints(g, x, out):  # type: ignore[no-untyped-def]
        for n in range(len(out) // (9 * features)):
            for f in range(features):
                o = 9 * features * n + f
                factor = 1 / (1 + _dot(x, x, o, features))
                along = 2 * factor * factor * _dot(g, x, o, features)
                for c in range(9):
                    k = o + c * features
                    out[k] = factor * g[k] - along * x[k]

    return adjoints


@cache
def _normalised_second_order_loops(features: int) -> Callable[..., None]:
    @_loop
    def jvp_adjoints(g, x, dx, jvp, grad_x):  # type: ignore[no-untyped-def]
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
                    jvp[k] = factor * dx[k] - square * xd * x[k]
                    grad_x[k] = along * x[k] - square * (gx * dx[k] + xd * g[k])

    return jvp_adjoints


@cache
def scale_irreps_loops(features: int) -> Callable[..., None]:
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
def irreps_dot_loops(features: int) -> Callable[..., None]:
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
