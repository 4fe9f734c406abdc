"""Tensors of rank two as instructions: nine components of an atom for each feature.

Components are those of `backbones.tensornet.matrix_basis`: the isotropic one, three antisymmetric
and five symmetric traceless ones, `(f / w, 9, w)`, w = `WIDTH`.
"""

from __future__ import annotations

import math

import numpy as np

from ase_biasgrad.fused.dense import emit_linear_gradient
from ase_biasgrad.fused.operations import Operation, locate
from ase_biasgrad.fused.program import Program, Variable
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.matrix_product import ACCUMULATE
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store

PARTS = ((0, 1), (1, 3), (4, 5))  # first component and number of components of I, A, S
COMPONENTS = 9


class IrrepsLinear:
    """x_p W_p of the three irreducible parts, with weights `(f, f)`, inputs × outputs."""

    def __init__(self, p: Program, x: Variable, matrices: list[np.ndarray]) -> None:
        self.x, self.y = x, p.variable(x.width)
        self.back = [p.matrix(matrix.T) for matrix in matrices]
        self.places = [p.matrix(matrix) for matrix in matrices]
        self._emit(p, x, self.y, self.places, 0)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g, (out, more) = p.adjoint(self.y)[0], p.adjoint(self.x)
        self._emit(p, g, out, self.back, ACCUMULATE if more else 0)

    def gradient(self, p: Program) -> None:
        f = self.x.width // COMPONENTS
        for (first, count), matrix in zip(PARTS, self.places, strict=True):
            emit_linear_gradient(p, self.x, self.y, f, f, COMPONENTS, first, count, matrix, 0, 0)

    @staticmethod
    def _emit(p: Program, x: Variable, y: Variable, matrices: list[int], mode: int) -> None:
        f = x.width // COMPONENTS
        for (first, count), matrix in zip(PARTS, matrices, strict=True):
            p.emit(Operation.LINEAR, x, y, f, f, COMPONENTS, first, count, matrix, 0, mode)


class Normalise:
    """X / (|X|² + 1), with the Frobenius norm."""

    def __init__(self, p: Program, x: Variable) -> None:
        self.x, self.y = x, p.variable(x.width)
        p.emit(Operation.NORMALISE, x, self.y)
        p.add(self)

    def vjp(self, p: Program) -> None:
        p.emit(Operation.NORMALISE_VJP, p.adjoint(self.y)[0], self.x, *p.adjoint(self.x))


@compiled()
def normalise(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, step = locate(row, 1, place), locate(row, 3, place), row[2] // 9
    one = splat(memory.dtype.type(1))
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            c = components(memory, x + o)
            store_components(memory, y + o, times(one / (one + dot(c, c)), c))


@compiled()
def normalise_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, x, out = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    step, one = row[2] // 9, splat(memory.dtype.type(1))
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            c, d = components(memory, x + o), components(memory, g + o)
            factor = one / (one + dot(c, c))
            along = (factor + factor) * factor * dot(d, c)
            put(memory, out + o, minus(times(factor, d), times(along, c)), row[7])


class SymmetricProduct:
    """XY + YX."""

    def __init__(self, p: Program, x: Variable, y: Variable) -> None:
        self.x, self.y, self.z = x, y, p.variable(x.width)
        p.emit(Operation.SYMMETRIC_PRODUCT, x, y, self.z, 0)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g, (out, more), (other, again) = p.adjoint(self.z)[0], p.adjoint(self.x), p.adjoint(self.y)
        p.emit(Operation.SYMMETRIC_PRODUCT_VJP, g, self.x, self.y, out, other, more, again)


@compiled()
def symmetric_product(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, z = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    step, norms = row[2] // 9, inverse_norms(memory)
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            one = matrix_of(components(memory, x + o), norms)
            two = matrix_of(components(memory, y + o), norms)
            put(memory, z + o, of_matrix(both_ways(one, two), norms), row[7])


@compiled()
def symmetric_product_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, x, y = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    adj_x, adj_y = locate(row, 7, place), locate(row, 9, place)
    step, norms = row[2] // 9, inverse_norms(memory)
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            c = matrix_of(components(memory, g + o), norms)
            one = transposed(matrix_of(components(memory, x + o), norms))
            two = transposed(matrix_of(components(memory, y + o), norms))
            put(memory, adj_x + o, of_matrix(both_ways(c, two), norms), row[11])
            put(memory, adj_y + o, of_matrix(both_ways(c, one), norms), row[12])


class AddSquare:
    """X + D + D²."""

    def __init__(self, p: Program, x: Variable, d: Variable) -> None:
        self.x, self.d, self.y = x, d, p.variable(x.width)
        p.emit(Operation.ADD_SQUARE, x, d, self.y)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g = p.adjoint(self.y)[0]
        p.emit(Operation.ADD_SQUARE_VJP, g, self.d, *p.adjoint(self.d))
        p.emit(Operation.ADD, g, *p.adjoint(self.x))


@compiled()
def add_square(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, d, y = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    step, norms = row[2] // 9, inverse_norms(memory)
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            change = components(memory, d + o)
            matrix = matrix_of(change, norms)
            square = of_matrix(_product(matrix, matrix), norms)
            total = plus(components(memory, x + o), plus(change, square))
            store_components(memory, y + o, total)


@compiled()
def add_square_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, d, out = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    step, norms = row[2] // 9, inverse_norms(memory)
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            of_y = components(memory, g + o)
            turned = transposed(matrix_of(components(memory, d + o), norms))
            bent = of_matrix(both_ways(matrix_of(of_y, norms), turned), norms)
            put(memory, out + o, plus(of_y, bent), row[7])


class ScaleIrreps:
    """X times one factor s `(3, f)` for each irreducible part and feature."""

    def __init__(self, p: Program, x: Variable, s: Variable) -> None:
        self.x, self.s, self.y = x, s, p.variable(x.width)
        p.emit(Operation.SCALE_IRREPS, x, s, self.y, 0)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g, (out, more), (other, again) = p.adjoint(self.y)[0], p.adjoint(self.x), p.adjoint(self.s)
        p.emit(Operation.SCALE_IRREPS_VJP, g, self.x, self.s, out, other, more, again)


@compiled()
def scale_irreps(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, s, y = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    step = row[2] // 9
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            factors = three(memory, s + a * row[4] + f, step)
            put(memory, y + o, by_part(factors, components(memory, x + o)), row[7])


@compiled()
def scale_irreps_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, x, s = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    adj_x, adj_s, step = locate(row, 7, place), locate(row, 9, place), row[2] // 9
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o, p = a * row[2] + 9 * f, a * row[6] + f
            of_y = components(memory, g + o)
            by_parts = dots(of_y, components(memory, x + o))
            put(memory, adj_x + o, by_part(three(memory, s + p, step), of_y), row[11])
            for k, dot in enumerate(by_parts):
                to = adj_s + p + k * step
                store(memory, to, load(memory, to) + dot if row[12] else dot)


class SquaredNorms:
    """Σ x² over all components, `(f,)`, or over those of each irreducible part, `(3, f)`."""

    def __init__(self, p: Program, x: Variable, parts: bool) -> None:
        self.x, self.y = x, p.variable(x.width // COMPONENTS * (3 if parts else 1))
        p.emit(Operation.SQUARED_NORMS, x, self.y)
        p.add(self)

    def vjp(self, p: Program) -> None:
        p.emit(Operation.SQUARED_NORMS_VJP, p.adjoint(self.y)[0], self.x, *p.adjoint(self.x))


@compiled()
def squared_norms(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, step = locate(row, 1, place), locate(row, 3, place), row[2] // 9
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            c = components(memory, x + a * row[2] + 9 * f)
            store_sums(memory, y + a * row[4] + f, dots(c, c), step, row[4] > step)


@compiled()
def squared_norms_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, x, out = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    step, next_part = row[4] // 9, 0 if row[2] == row[4] // 9 else row[4] // 9
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[4] + 9 * f
            s = three(memory, g + a * row[2] + f, next_part)
            twice = (s[0] + s[0], s[1] + s[1], s[2] + s[2])
            put(memory, out + o, by_part(twice, components(memory, x + o)), row[7])


_inline = compiled(forceinline=True)


@_inline
def components(memory, o):  # type: ignore[no-untyped-def]
    """The nine components of a vector of features, from `o` on."""
    first, second = three(memory, o, WIDTH), three(memory, o + 3 * WIDTH, WIDTH)
    return first + second + three(memory, o + 6 * WIDTH, WIDTH)


@_inline
def store_components(memory, o, c):  # type: ignore[no-untyped-def]
    store(memory, o, c[0])
    store(memory, o + WIDTH, c[1])
    store(memory, o + 2 * WIDTH, c[2])
    store(memory, o + 3 * WIDTH, c[3])
    store(memory, o + 4 * WIDTH, c[4])
    store(memory, o + 5 * WIDTH, c[5])
    store(memory, o + 6 * WIDTH, c[6])
    store(memory, o + 7 * WIDTH, c[7])
    store(memory, o + 8 * WIDTH, c[8])


@_inline
def put(memory, o, c, more):  # type: ignore[no-untyped-def]
    """Store components, or add them to what is there."""
    store_components(memory, o, plus(c, components(memory, o)) if more else c)


@_inline
def store_sums(memory, o, sums, step, parts):  # type: ignore[no-untyped-def]
    """Store sums over the components of each part, or the sum of all."""
    if parts:
        store(memory, o, sums[0])
        store(memory, o + step, sums[1])
        store(memory, o + 2 * step, sums[2])
    else:
        store(memory, o, sums[0] + sums[1] + sums[2])


@_inline
def three(memory, o, step):  # type: ignore[no-untyped-def]
    return load(memory, o), load(memory, o + step), load(memory, o + 2 * step)


@_inline
def by_part(s, c):  # type: ignore[no-untyped-def]
    return (
        s[0] * c[0], s[1] * c[1], s[1] * c[2], s[1] * c[3],
        s[2] * c[4], s[2] * c[5], s[2] * c[6], s[2] * c[7], s[2] * c[8],
    )  # fmt: skip


@_inline
def dots(a, b):  # type: ignore[no-untyped-def]
    """Σ ab over the components of each part."""
    two = a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
    three = a[4] * b[4] + a[5] * b[5] + a[6] * b[6] + a[7] * b[7] + a[8] * b[8]
    return a[0] * b[0], two, three


@_inline
def dot(a, b):  # type: ignore[no-untyped-def]
    one, two, three = dots(a, b)
    return one + two + three


@_inline
def times(s, c):  # type: ignore[no-untyped-def]
    return (
        s * c[0],
        s * c[1],
        s * c[2],
        s * c[3],
        s * c[4],
        s * c[5],
        s * c[6],
        s * c[7],
        s * c[8],
    )


@_inline
def plus(a, b):  # type: ignore[no-untyped-def]
    return (
        a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4],
        a[5] + b[5], a[6] + b[6], a[7] + b[7], a[8] + b[8],
    )  # fmt: skip


@_inline
def minus(a, b):  # type: ignore[no-untyped-def]
    return (
        a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4],
        a[5] - b[5], a[6] - b[6], a[7] - b[7], a[8] - b[8],
    )  # fmt: skip


@_inline
def inverse_norms(memory):  # type: ignore[no-untyped-def]
    """Inverse norms in the basis: of the unit matrix, of most others, and of the last."""
    kind = memory.dtype
    return (
        splat(kind.type(math.sqrt(1 / 3))), splat(kind.type(math.sqrt(1 / 2))),
        splat(kind.type(math.sqrt(1 / 6))),
    )  # fmt: skip


@_inline
def matrix_of(x, norms):  # type: ignore[no-untyped-def]
    """The matrix, row by row, of components."""
    h = norms[1]
    one, a, b, c = norms[0] * x[0], h * x[1], h * x[2], h * x[3]
    p, q, r, s, t = h * x[4], h * x[5], h * x[6], h * x[7], norms[2] * x[8]
    return one + s - t, p - c, r + b, p + c, one - s - t, q - a, r - b, q + a, one + t + t


@_inline
def of_matrix(m, norms):  # type: ignore[no-untyped-def]
    """Components of a matrix; the transpose of `matrix_of`, and its inverse."""
    h, trace = norms[1], m[0] + m[4]
    return (
        norms[0] * (trace + m[8]),
        h * (m[7] - m[5]), h * (m[2] - m[6]), h * (m[3] - m[1]),
        h * (m[1] + m[3]), h * (m[5] + m[7]), h * (m[2] + m[6]),
        h * (m[0] - m[4]), norms[2] * (m[8] + m[8] - trace),
    )  # fmt: skip


@_inline
def transposed(m):  # type: ignore[no-untyped-def]
    return m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]


@_inline
def _product(a, b):  # type: ignore[no-untyped-def]
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
def both_ways(a, b):  # type: ignore[no-untyped-def]
    """ab + ba."""
    return plus(_product(a, b), _product(b, a))
