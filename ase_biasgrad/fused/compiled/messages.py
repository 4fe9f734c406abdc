"""Messages along edges as instructions: each atom gathers from its neighbours.

A filter W of the distance is a spline with coefficients `(blocks of eight features, knots, parts,
8)`: the six rows that matter at a distance follow one another in memory. Every edge is taken from
either end, so that no atom writes to another: results do not depend on the number of threads.
For the same reason the adjoint of what is sent is a gathering, too. Only one of two edges that
mirror each other, the upper one, gets the adjoints of distance and direction of both.
"""

from __future__ import annotations

import math

import numpy as np

from ase_biasgrad.fused.compiled.operations import Operation, locate
from ase_biasgrad.fused.compiled.program import Program, Variable
from ase_biasgrad.fused.compiled.tensors import store_components
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total
from ase_biasgrad.numerics.splines import N_WEIGHTS


def blocked(coefficients: np.ndarray, block: int = WIDTH) -> np.ndarray:
    """Coefficients `(knots, parts, features)` as `(features / block, knots, parts, block)`."""
    knots, parts, features = coefficients.shape
    blocks = coefficients.reshape(knots, parts, features // block, block)
    return np.ascontiguousarray(np.moveaxis(blocks, 2, 0))


class TensorMessage:
    """Σ_j W_ij T_ij (c_i + s_j) + T(0) W(0) (c_i + s_i): tensors from elements and directions.

    centre c and neighbour s are tables `(elements, f)`, coefficients `(knots, 3, f)`, own `(f,)`.
    """

    def __init__(
        self, p: Program, centre: np.ndarray, neighbour: np.ndarray, coefficients: np.ndarray,
        own: np.ndarray,
    ) -> None:  # fmt: skip
        self.y = p.variable(9 * centre.shape[1])
        self.constants = (
            p.weight(centre), p.weight(neighbour), p.weight(blocked(coefficients)), p.knots
        )  # fmt: skip
        p.emit_messages(Operation.TENSOR_MESSAGE, self.y, *self.constants, p.weight(own))
        p.add(self)

    def vjp(self, p: Program) -> None:
        p.emit_messages(Operation.TENSOR_MESSAGE_VJP, p.adjoint(self.y)[0], *self.constants)


@compiled()
def tensor_message(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    y, step, knots = locate(row, 1, place), row[2] // 9, row[6]
    for f in range(0, step, WIDTH):
        for a in range(place.count):
            i = place.first + a
            table = row[5] + f * 3 * knots
            centre = load(weights, row[3] + edges.numbers[i] * step + f)
            own = centre + load(weights, row[4] + edges.numbers[i] * step + f)
            zero = splat(memory.dtype.type(0))
            y0, y1, y2, y3 = own * load(weights, row[7] + f), zero, zero, zero
            y4, y5, y6, y7, y8 = zero, zero, zero, zero, zero
            for e in range(edges.starts[i], edges.ends[i]):
                number = edges.numbers[edges.neighbour[e]]
                sent = centre + load(weights, row[4] + number * step + f)
                w0, w1, w2 = _three_filters(weights, table, edges, e)
                w0, w1, w2 = w0 * sent, w1 * sent, w2 * sent
                t0, t1, t2, t3, t4, t5, t6, t7, t8 = _tensor(edges.unit, e, memory)
                y0 = y0 + splat(t0) * w0
                y1, y2, y3 = y1 + splat(t1) * w1, y2 + splat(t2) * w1, y3 + splat(t3) * w1
                y4, y5, y6 = y4 + splat(t4) * w2, y5 + splat(t5) * w2, y6 + splat(t6) * w2
                y7, y8 = y7 + splat(t7) * w2, y8 + splat(t8) * w2
            store_components(memory, y + a * row[2] + 9 * f, (y0, y1, y2, y3, y4, y5, y6, y7, y8))


@compiled()
def tensor_message_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoints of distances and directions: those of T are Σ_f W h with
    h = g_i (c_i + s_j) + σ g_j (c_j + s_i), of parity σ."""
    g, step, kind = row[1] * place.n, row[2] // 9, memory.dtype
    centres, neighbours, adj, two = row[3], row[4], edges.adjoints, kind.type(math.sqrt(2.0))
    for i in range(place.first, place.first + place.count):
        of_i = edges.numbers[i] * step
        for e in range(edges.starts[i], edges.middles[i]):
            j = edges.neighbour[e]
            of_j, zero = edges.numbers[j] * step, splat(kind.type(0))
            t0, t1, t2, t3, t4, t5, t6, t7, t8 = _tensor(edges.unit, e, memory)
            slope, d1, d2, d3, d4, d5, d6, d7, d8 = (
                zero, zero, zero, zero, zero, zero, zero, zero, zero,
            )  # fmt: skip
            for f in range(0, step, WIDTH):
                (_, w1, w2), (s0, s1, s2) = _three_jets(weights, row[5] + f * 3 * row[6], edges, e)
                to_i = load(weights, centres + of_i + f) + load(weights, neighbours + of_j + f)
                to_j = load(weights, centres + of_j + f) + load(weights, neighbours + of_i + f)
                o, q = g + i * row[2] + 9 * f, g + j * row[2] + 9 * f
                h0 = to_i * load(memory, o) + to_j * load(memory, q)
                h1 = to_i * load(memory, o + 8) - to_j * load(memory, q + 8)
                h2 = to_i * load(memory, o + 16) - to_j * load(memory, q + 16)
                h3 = to_i * load(memory, o + 24) - to_j * load(memory, q + 24)
                h4 = to_i * load(memory, o + 32) + to_j * load(memory, q + 32)
                h5 = to_i * load(memory, o + 40) + to_j * load(memory, q + 40)
                h6 = to_i * load(memory, o + 48) + to_j * load(memory, q + 48)
                h7 = to_i * load(memory, o + 56) + to_j * load(memory, q + 56)
                h8 = to_i * load(memory, o + 64) + to_j * load(memory, q + 64)
                d1, d2, d3, d4 = d1 + w1 * h1, d2 + w1 * h2, d3 + w1 * h3, d4 + w2 * h4
                d5, d6, d7, d8 = d5 + w2 * h5, d6 + w2 * h6, d7 + w2 * h7, d8 + w2 * h8
                v1 = splat(t1) * h1 + splat(t2) * h2 + splat(t3) * h3
                v2 = splat(t4) * h4 + splat(t5) * h5 + splat(t6) * h6
                v2 = v2 + splat(t7) * h7 + splat(t8) * h8
                slope = slope + s0 * (splat(t0) * h0) + s1 * v1 + s2 * v2
            adj[e, 0] += total(slope)
            x, y, z = edges.unit[e, 0], edges.unit[e, 1], edges.unit[e, 2]
            e4, e5, e6, e7 = total(d4), total(d5), total(d6), total(d7)
            e8 = kind.type(math.sqrt(1 / 3)) * total(d8)
            adj[e, 1] += two * (total(d1) + e4 * y + e6 * z + e7 * x - e8 * x)
            adj[e, 2] += two * (total(d2) + e4 * x + e5 * z - e7 * y - e8 * y)
            adj[e, 3] += two * (total(d3) + e5 * y + e6 * x + (e8 + e8) * z)


@compiled(forceinline=True)
def _tensor(unit, e, memory):  # type: ignore[no-untyped-def]
    """`backbones.tensornet.pair_tensors` of the direction of edge e."""
    kind = memory.dtype
    x, y, z = unit[e, 0], unit[e, 1], unit[e, 2]
    two, last = kind.type(math.sqrt(2.0)), kind.type(math.sqrt(1 / 6))
    return (
        kind.type(math.sqrt(3.0)), two * x, two * y, two * z, two * x * y, two * y * z, two * x * z,
        kind.type(math.sqrt(0.5)) * (x * x - y * y), last * (z * z + z * z - x * x - y * y),
    )  # fmt: skip


class TensorCFConv:
    """Σ_j W_ij x_j + W(0) x_i of tensors `(9, f)`; coefficients `(knots, 3, f)`, own `(3, f)`."""

    def __init__(self, p: Program, x: Variable, coefficients: np.ndarray, own: np.ndarray) -> None:
        self.x, self.y = x, p.variable(x.width)
        self.constants = p.weight(blocked(coefficients)), p.knots, p.weight(own)
        p.emit_messages(Operation.TENSOR_CFCONV, x, self.y, *self.constants)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g, (out, more) = p.adjoint(self.y)[0], p.adjoint(self.x)
        p.emit_messages(Operation.TENSOR_CFCONV_VJP, g, self.x, out, *self.constants, more)


@compiled()
def tensor_cfconv(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, step, knots = row[1] * place.n, locate(row, 3, place), row[2] // 9, row[6]
    for f in range(0, step, WIDTH):
        for a in range(place.count):
            i = place.first + a
            table, own = row[5] + f * 3 * knots, row[7] + f
            w0, w1, w2 = (
                load(weights, own), load(weights, own + step), load(weights, own + 2 * step)
            )  # fmt: skip
            o = x + i * row[2] + 9 * f
            y0, y1 = w0 * load(memory, o), w1 * load(memory, o + 8)
            y2, y3 = w1 * load(memory, o + 16), w1 * load(memory, o + 24)
            y4, y5 = w2 * load(memory, o + 32), w2 * load(memory, o + 40)
            y6, y7 = w2 * load(memory, o + 48), w2 * load(memory, o + 56)
            y8 = w2 * load(memory, o + 64)
            for e in range(edges.starts[i], edges.ends[i]):
                w0, w1, w2 = _three_filters(weights, table, edges, e)
                o = x + edges.neighbour[e] * row[2] + 9 * f
                y0, y1 = y0 + w0 * load(memory, o), y1 + w1 * load(memory, o + 8)
                y2 = y2 + w1 * load(memory, o + 16)
                y3 = y3 + w1 * load(memory, o + 24)
                y4 = y4 + w2 * load(memory, o + 32)
                y5 = y5 + w2 * load(memory, o + 40)
                y6 = y6 + w2 * load(memory, o + 48)
                y7 = y7 + w2 * load(memory, o + 56)
                y8 = y8 + w2 * load(memory, o + 64)
            store_components(memory, y + a * row[2] + 9 * f, (y0, y1, y2, y3, y4, y5, y6, y7, y8))


@compiled()
def tensor_cfconv_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoint of x: Σ_j W_ij g_j + W(0) g_i; of distances: Σ_f W′ (g_i · x_j + g_j · x_i)."""
    g, x, out, step = row[1] * place.n, row[3] * place.n, locate(row, 5, place), row[2] // 9
    first, last = edges.starts[place.first], edges.starts[place.first + place.count]
    sums = np.zeros((last - first) * WIDTH, memory.dtype)
    for f in range(0, step, WIDTH):
        table, own = row[7] + f * 3 * row[8], row[9] + f
        for a in range(place.count):
            i = place.first + a
            w0, w1, w2 = (
                load(weights, own), load(weights, own + step), load(weights, own + 2 * step)
            )  # fmt: skip
            o, q = g + i * row[2] + 9 * f, x + i * row[2] + 9 * f
            g0, g1, g2 = load(memory, o), load(memory, o + 8), load(memory, o + 16)
            g3, g4, g5 = load(memory, o + 24), load(memory, o + 32), load(memory, o + 40)
            g6, g7, g8 = load(memory, o + 48), load(memory, o + 56), load(memory, o + 64)
            y0, y1, y2, y3, y4 = w0 * g0, w1 * g1, w1 * g2, w1 * g3, w2 * g4
            y5, y6, y7, y8 = w2 * g5, w2 * g6, w2 * g7, w2 * g8
            for e in range(edges.starts[i], edges.middles[i]):
                (w0, w1, w2), (s0, s1, s2) = _three_jets(weights, table, edges, e)
                j = edges.neighbour[e] * row[2] + 9 * f
                o, r, k = g + j, x + j, (e - first) * WIDTH
                h = load(memory, o)
                y0, v0 = y0 + w0 * h, g0 * load(memory, r) + h * load(memory, q)
                h = load(memory, o + 8)
                y1, v1 = y1 + w1 * h, g1 * load(memory, r + 8) + h * load(memory, q + 8)
                h = load(memory, o + 16)
                y2, v1 = y2 + w1 * h, v1 + g2 * load(memory, r + 16) + h * load(memory, q + 16)
                h = load(memory, o + 24)
                y3, v1 = y3 + w1 * h, v1 + g3 * load(memory, r + 24) + h * load(memory, q + 24)
                h = load(memory, o + 32)
                y4, v2 = y4 + w2 * h, g4 * load(memory, r + 32) + h * load(memory, q + 32)
                h = load(memory, o + 40)
                y5, v2 = y5 + w2 * h, v2 + g5 * load(memory, r + 40) + h * load(memory, q + 40)
                h = load(memory, o + 48)
                y6, v2 = y6 + w2 * h, v2 + g6 * load(memory, r + 48) + h * load(memory, q + 48)
                h = load(memory, o + 56)
                y7, v2 = y7 + w2 * h, v2 + g7 * load(memory, r + 56) + h * load(memory, q + 56)
                h = load(memory, o + 64)
                y8, v2 = y8 + w2 * h, v2 + g8 * load(memory, r + 64) + h * load(memory, q + 64)
                store(sums, k, load(sums, k) + s0 * v0 + s1 * v1 + s2 * v2)
            for e in range(edges.middles[i], edges.ends[i]):
                w0, w1, w2 = _three_filters(weights, table, edges, e)
                o = g + edges.neighbour[e] * row[2] + 9 * f
                y0, y1 = y0 + w0 * load(memory, o), y1 + w1 * load(memory, o + 8)
                y2, y3 = y2 + w1 * load(memory, o + 16), y3 + w1 * load(memory, o + 24)
                y4, y5 = y4 + w2 * load(memory, o + 32), y5 + w2 * load(memory, o + 40)
                y6, y7 = y6 + w2 * load(memory, o + 48), y7 + w2 * load(memory, o + 56)
                y8 = y8 + w2 * load(memory, o + 64)
            o = out + a * row[2] + 9 * f
            if row[10]:
                y0, y1 = y0 + load(memory, o), y1 + load(memory, o + 8)
                y2, y3 = y2 + load(memory, o + 16), y3 + load(memory, o + 24)
                y4, y5 = y4 + load(memory, o + 32), y5 + load(memory, o + 40)
                y6, y7 = y6 + load(memory, o + 48), y7 + load(memory, o + 56)
                y8 = y8 + load(memory, o + 64)
            store_components(memory, o, (y0, y1, y2, y3, y4, y5, y6, y7, y8))
    _add_sums(sums, 1, place, edges)


@compiled()
def _add_sums(sums, columns, place, edges):  # type: ignore[no-untyped-def]
    """Add sums `(edges of the chunk, columns, 8)` over features to adjoints of upper edges."""
    first = edges.starts[place.first]
    for i in range(place.first, place.first + place.count):
        for e in range(edges.starts[i], edges.middles[i]):
            for c in range(columns):
                k = ((e - first) * columns + c) * WIDTH
                edges.adjoints[e, c] += total(load(sums, k))


@compiled(forceinline=True)
def _three_filters(weights, table, edges, e):  # type: ignore[no-untyped-def]
    """The three filters at the distance of edge e."""
    at = table + edges.bin[e] * 3 * WIDTH
    w = splat(edges.weights[e, 0, 0])
    a, b, c = (
        w * load(weights, at), w * load(weights, at + WIDTH), w * load(weights, at + 2 * WIDTH)
    )  # fmt: skip
    for t in range(1, N_WEIGHTS):
        w, at = splat(edges.weights[e, 0, t]), at + 3 * WIDTH
        a, b = a + w * load(weights, at), b + w * load(weights, at + WIDTH)
        c = c + w * load(weights, at + 2 * WIDTH)
    return a, b, c


@compiled(forceinline=True)
def _three_jets(weights, table, edges, e):  # type: ignore[no-untyped-def]
    """The three filters at the distance of edge e, and their slopes."""
    at = table + edges.bin[e] * 3 * WIDTH
    w, s = splat(edges.weights[e, 0, 0]), splat(edges.weights[e, 1, 0])
    p, q, r = load(weights, at), load(weights, at + WIDTH), load(weights, at + 2 * WIDTH)
    a, b, c, d, f, g = w * p, w * q, w * r, s * p, s * q, s * r
    for t in range(1, N_WEIGHTS):
        w, s = splat(edges.weights[e, 0, t]), splat(edges.weights[e, 1, t])
        at = at + 3 * WIDTH
        p, q, r = load(weights, at), load(weights, at + WIDTH), load(weights, at + 2 * WIDTH)
        a, b, c, d, f, g = a + w * p, b + w * q, c + w * r, d + s * p, f + s * q, g + s * r
    return (a, b, c), (d, f, g)


class CFConv:
    """Σ_j W_ij ∘ x_j of features `(f,)`; coefficients `(knots, f)`."""

    def __init__(self, p: Program, x: Variable, coefficients: np.ndarray) -> None:
        self.x, self.y = x, p.variable(x.width)
        self.constants = p.weight(blocked(coefficients[:, None], 2 * WIDTH)), p.knots
        p.emit_messages(Operation.CFCONV, x, self.y, *self.constants)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g = p.adjoint(self.y)[0]
        out, more = p.adjoint(self.x) if self.x.active else (self.x, 2)
        p.emit_messages(Operation.CFCONV_VJP, g, self.x, out, *self.constants, more)


@compiled()
def cfconv(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, width, knots = row[1] * place.n, locate(row, 3, place), row[2], row[6]
    for f in range(0, width, 2 * WIDTH):
        table = row[5] + f * knots
        for a in range(place.count):
            i = place.first + a
            y0, y1 = splat(memory.dtype.type(0)), splat(memory.dtype.type(0))
            for e in range(edges.starts[i], edges.ends[i]):
                w0, w1 = _two_filters(weights, table, edges, e)
                o = x + edges.neighbour[e] * width + f
                y0, y1 = y0 + w0 * load(memory, o), y1 + w1 * load(memory, o + WIDTH)
            store(memory, y + a * width + f, y0)
            store(memory, y + a * width + f + WIDTH, y1)


@compiled()
def cfconv_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoint of x: Σ_j W_ij g_j; of distances: Σ_f W′ (g_i x_j + g_j x_i)."""
    g, x, out, width = row[1] * place.n, row[3] * place.n, locate(row, 5, place), row[2]
    first, last = edges.starts[place.first], edges.starts[place.first + place.count]
    sums = np.zeros((last - first) * WIDTH, memory.dtype)
    for f in range(0, width, 2 * WIDTH):
        table = row[7] + f * row[8]
        for a in range(place.count):
            i, o = place.first + a, (place.first + a) * width + f
            g0, g1 = load(memory, g + o), load(memory, g + o + WIDTH)
            x0, x1 = load(memory, x + o), load(memory, x + o + WIDTH)
            y0, y1 = splat(memory.dtype.type(0)), splat(memory.dtype.type(0))
            for e in range(edges.starts[i], edges.middles[i]):
                (w0, w1), (s0, s1) = _two_jets(weights, table, edges, e)
                o, k = edges.neighbour[e] * width + f, (e - first) * WIDTH
                h0, h1 = load(memory, g + o), load(memory, g + o + WIDTH)
                y0, y1 = y0 + w0 * h0, y1 + w1 * h1
                slope = s0 * (g0 * load(memory, x + o) + h0 * x0)
                slope = slope + s1 * (g1 * load(memory, x + o + WIDTH) + h1 * x1)
                store(sums, k, load(sums, k) + slope)
            if row[9] < 2:  # atoms have an adjoint
                for e in range(edges.middles[i], edges.ends[i]):
                    w0, w1 = _two_filters(weights, table, edges, e)
                    o = g + edges.neighbour[e] * width + f
                    y0, y1 = y0 + w0 * load(memory, o), y1 + w1 * load(memory, o + WIDTH)
                o = out + a * width + f
                if row[9]:
                    y0, y1 = y0 + load(memory, o), y1 + load(memory, o + WIDTH)
                store(memory, o, y0)
                store(memory, o + WIDTH, y1)
    _add_sums(sums, 1, place, edges)


@compiled(forceinline=True)
def _two_filters(weights, table, edges, e):  # type: ignore[no-untyped-def]
    """Sixteen filters at the distance of edge e."""
    at = table + edges.bin[e] * 2 * WIDTH
    w = splat(edges.weights[e, 0, 0])
    a, b = w * load(weights, at), w * load(weights, at + WIDTH)
    for t in range(1, N_WEIGHTS):
        w, at = splat(edges.weights[e, 0, t]), at + 2 * WIDTH
        a, b = a + w * load(weights, at), b + w * load(weights, at + WIDTH)
    return a, b


@compiled(forceinline=True)
def _two_jets(weights, table, edges, e):  # type: ignore[no-untyped-def]
    """Sixteen filters at the distance of edge e, and their slopes."""
    at = table + edges.bin[e] * 2 * WIDTH
    w, s = splat(edges.weights[e, 0, 0]), splat(edges.weights[e, 1, 0])
    p, q = load(weights, at), load(weights, at + WIDTH)
    a, b, c, d = w * p, w * q, s * p, s * q
    for t in range(1, N_WEIGHTS):
        w, s = splat(edges.weights[e, 0, t]), splat(edges.weights[e, 1, t])
        at = at + 2 * WIDTH
        p, q = load(weights, at), load(weights, at + WIDTH)
        a, b, c, d = a + w * p, b + w * q, c + s * p, d + s * q
    return (a, b), (c, d)


class VectorMessage:
    """PaiNN's messages of scalars q `(f,)` and vectors μ `(3, f)`, added to them:

        q_i + Σ_j W¹ ∘ x¹_j,    μ_i + Σ_j (W² ∘ x²_j) u + W³ ∘ x³_j ∘ μ_j.

    x `(f / 8, 3, 8)`; coefficients `(knots, 3, f)`. Without μ, all vectors are zero.
    """

    def __init__(
        self, p: Program, q: Variable, mu: Variable | None, x: Variable, coefficients: np.ndarray
    ) -> None:
        self.q, self.mu, self.x = q, mu, x
        self.out_q, self.out_mu = p.variable(q.width), p.variable(3 * q.width)
        self.constants = p.weight(blocked(coefficients)), p.knots
        p.emit_messages(
            Operation.VECTOR_MESSAGE, x, q, x if mu is None else mu, self.out_q, self.out_mu,
            *self.constants, int(mu is not None),
        )  # fmt: skip
        p.add(self)

    def vjp(self, p: Program) -> None:
        gq, gmu = p.adjoint(self.out_q)[0], p.adjoint(self.out_mu)[0]
        if self.mu is None:  # q and x are those of the elements
            spare = p.variable(self.x.width)
            p.emit_messages(
                Operation.VECTOR_MESSAGE_VJP, gq, gmu, self.x, self.x, spare, spare,
                *self.constants, 0,
            )  # fmt: skip
            return
        (out_mu, more), (out_x, again) = p.adjoint(self.mu), p.adjoint(self.x)
        assert more == again == 0  # nothing else reads them
        p.emit_messages(
            Operation.VECTOR_MESSAGE_VJP, gq, gmu, self.mu, self.x, out_mu, out_x,
            *self.constants, 1,
        )  # fmt: skip
        p.emit(Operation.ADD, gq, *p.adjoint(self.q))


@compiled()
def vector_message(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, q, mu = row[1] * place.n, locate(row, 3, place), row[5] * place.n
    out_q, out_mu, knots, kind = locate(row, 7, place), locate(row, 9, place), row[12], memory.dtype
    width, zero = row[8], splat(kind.type(0))
    for f in range(0, width, WIDTH):
        table, block = row[11] + f * 3 * knots, 3 * f
        for a in range(place.count):
            i = place.first + a
            s, m = load(memory, q + a * width + f), mu + i * 3 * width + block
            if row[13]:
                v0, v1, v2 = load(memory, m), load(memory, m + 8), load(memory, m + 16)
            else:
                v0, v1, v2 = zero, zero, zero
            for e in range(edges.starts[i], edges.ends[i]):
                w0, w1, w2 = _three_filters(weights, table, edges, e)
                o = edges.neighbour[e] * 3 * width + block
                s = s + w0 * load(memory, x + o)
                along = w1 * load(memory, x + o + 8)
                v0 = v0 + splat(edges.unit[e, 0]) * along
                v1 = v1 + splat(edges.unit[e, 1]) * along
                v2 = v2 + splat(edges.unit[e, 2]) * along
                if row[13]:
                    passed = w2 * load(memory, x + o + 16)
                    m = mu + o
                    v0 = v0 + passed * load(memory, m)
                    v1, v2 = v1 + passed * load(memory, m + 8), v2 + passed * load(memory, m + 16)
            store(memory, out_q + a * width + f, s)
            m = out_mu + a * 3 * width + block
            store(memory, m, v0)
            store(memory, m + 8, v1)
            store(memory, m + 16, v2)


@compiled()
def vector_message_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoints of μ and x, and of distances and directions.

    With h = Σ_j W³ ∂E/∂μ_j those of μ_i are ∂E/∂μ_i + x³_i h, those of x_i
    (Σ_j W¹ ∂E/∂q_j, −Σ_j W² u · ∂E/∂μ_j, μ_i · h).
    """
    gq, gmu, mu, x = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    width, block, zero = row[2], 3 * row[2], splat(memory.dtype.type(0))
    first, last = edges.starts[place.first], edges.starts[place.first + place.count]
    sums = np.zeros((last - first) * 4 * WIDTH, memory.dtype)
    for f in range(0, width, WIDTH):
        table = row[13] + f * 3 * row[14]
        for a in range(place.count):
            i = place.first + a
            o = i * block + 3 * f
            gi, xi0, xi1 = (
                load(memory, gq + i * width + f),
                load(memory, x + o),
                load(memory, x + o + 8),
            )
            g0, g1, g2 = (
                load(memory, gmu + o),
                load(memory, gmu + o + 8),
                load(memory, gmu + o + 16),
            )
            x0, x1, h0, h1, h2, m0, m1, m2 = zero, zero, zero, zero, zero, zero, zero, zero
            if row[15]:
                m0, m1, m2 = (
                    load(memory, mu + o),
                    load(memory, mu + o + 8),
                    load(memory, mu + o + 16),
                )
            xi2 = load(memory, x + o + 16)
            for e in range(edges.starts[i], edges.middles[i]):
                (w0, w1, w2), (s0, s1, s2) = _three_jets(weights, table, edges, e)
                u0, u1, u2 = (
                    splat(edges.unit[e, 0]), splat(edges.unit[e, 1]), splat(edges.unit[e, 2])
                )  # fmt: skip
                j, k = edges.neighbour[e], (e - first) * 4 * WIDTH
                o = j * block + 3 * f
                gj, xj = load(memory, gq + j * width + f), load(memory, x + o + 8)
                b0, b1, b2 = (
                    load(memory, gmu + o),
                    load(memory, gmu + o + 8),
                    load(memory, gmu + o + 16),
                )
                slope = s0 * (gi * load(memory, x + o) + gj * xi0)
                d0, d1, d2 = xj * g0 - xi1 * b0, xj * g1 - xi1 * b1, xj * g2 - xi1 * b2
                slope = slope + s1 * (u0 * d0 + u1 * d1 + u2 * d2)
                store(sums, k + 8, load(sums, k + 8) + w1 * d0)
                store(sums, k + 16, load(sums, k + 16) + w1 * d1)
                store(sums, k + 24, load(sums, k + 24) + w1 * d2)
                if row[15]:
                    x0, x1 = x0 + w0 * gj, x1 - w1 * (u0 * b0 + u1 * b1 + u2 * b2)
                    h0, h1, h2 = h0 + w2 * b0, h1 + w2 * b1, h2 + w2 * b2
                    dot = g0 * load(memory, mu + o) + g1 * load(memory, mu + o + 8)
                    dot = dot + g2 * load(memory, mu + o + 16)
                    back = b0 * m0 + b1 * m1 + b2 * m2
                    slope = slope + s2 * (load(memory, x + o + 16) * dot + xi2 * back)
                store(sums, k, load(sums, k) + slope)
            if row[15]:
                for e in range(edges.middles[i], edges.ends[i]):
                    w0, w1, w2 = _three_filters(weights, table, edges, e)
                    u0, u1, u2 = (
                        splat(edges.unit[e, 0]), splat(edges.unit[e, 1]), splat(edges.unit[e, 2])
                    )  # fmt: skip
                    j = edges.neighbour[e]
                    o = gmu + j * block + 3 * f
                    b0, b1, b2 = load(memory, o), load(memory, o + 8), load(memory, o + 16)
                    x0 = x0 + w0 * load(memory, gq + j * width + f)
                    x1 = x1 - w1 * (u0 * b0 + u1 * b1 + u2 * b2)
                    h0, h1, h2 = h0 + w2 * b0, h1 + w2 * b1, h2 + w2 * b2
                o = locate(row, 11, place) + a * block + 3 * f
                store(memory, o, x0)
                store(memory, o + 8, x1)
                store(memory, o + 16, h0 * m0 + h1 * m1 + h2 * m2)
                o = locate(row, 9, place) + a * block + 3 * f
                store(memory, o, g0 + xi2 * h0)
                store(memory, o + 8, g1 + xi2 * h1)
                store(memory, o + 16, g2 + xi2 * h2)
    _add_sums(sums, 4, place, edges)
