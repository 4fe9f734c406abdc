"""Messages along edges as instructions: each atom gathers from its neighbours.

A filter W of the distance is a spline with coefficients `(blocks of eight features, knots, parts,
8)`: the six rows that matter at a distance follow one another in memory. Every edge is taken from
either end, so that no atom writes to another: results do not depend on the number of threads.
For the same reason the adjoint of what is sent is a gathering, too.
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


def blocked(coefficients: np.ndarray) -> np.ndarray:
    """Coefficients `(knots, parts, features)` as `(features / 8, knots, parts, 8)`."""
    knots, parts, features = coefficients.shape
    blocks = coefficients.reshape(knots, parts, features // WIDTH, WIDTH)
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
        p.emit(Operation.TENSOR_MESSAGE_VJP, p.adjoint(self.y)[0], *self.constants)


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
            for e in range(edges.starts[i], edges.starts[i + 1]):
                number = edges.numbers[edges.neighbour[e]]
                sent = centre + load(weights, row[4] + number * step + f)
                w0, w1, w2 = _three_filters(weights, table, edges, e, 0)
                w0, w1, w2 = w0 * sent, w1 * sent, w2 * sent
                t0, t1, t2, t3, t4, t5, t6, t7, t8 = _tensor(edges.unit, e, memory)
                y0 = y0 + splat(t0) * w0
                y1, y2, y3 = y1 + splat(t1) * w1, y2 + splat(t2) * w1, y3 + splat(t3) * w1
                y4, y5, y6 = y4 + splat(t4) * w2, y5 + splat(t5) * w2, y6 + splat(t6) * w2
                y7, y8 = y7 + splat(t7) * w2, y8 + splat(t8) * w2
            store_components(memory, y + a * row[2] + 9 * f, (y0, y1, y2, y3, y4, y5, y6, y7, y8))


@compiled()
def tensor_message_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, step, knots = locate(row, 1, place), row[2] // 9, row[6]
    kind = memory.dtype
    one, root = kind.type(1), kind.type(math.sqrt(0.5))
    for a in range(place.count):
        i = place.first + a
        for e in range(edges.starts[i], edges.starts[i + 1]):
            number = edges.numbers[edges.neighbour[e]]
            zero = splat(kind.type(0))
            t0, t1, t2, t3, t4, t5, t6, t7, t8 = _tensor(edges.unit, e, memory)
            slope, d1, d2, d3, d4, d5, d6, d7, d8 = (
                zero, zero, zero, zero, zero, zero, zero, zero, zero,
            )  # fmt: skip
            for f in range(0, step, WIDTH):
                table = row[5] + f * 3 * knots
                sent = load(weights, row[3] + edges.numbers[i] * step + f)
                sent = sent + load(weights, row[4] + number * step + f)
                (_, w1, w2), (s0, s1, s2) = _three_jets(weights, table, edges, e)
                w1, w2 = w1 * sent, w2 * sent
                o = g + a * row[2] + 9 * f
                g0, g1, g2 = load(memory, o), load(memory, o + 8), load(memory, o + 16)
                g3, g4 = load(memory, o + 24), load(memory, o + 32)
                g5, g6 = load(memory, o + 40), load(memory, o + 48)
                g7, g8 = load(memory, o + 56), load(memory, o + 64)
                d1, d2, d3, d4 = d1 + w1 * g1, d2 + w1 * g2, d3 + w1 * g3, d4 + w2 * g4
                d5, d6, d7, d8 = d5 + w2 * g5, d6 + w2 * g6, d7 + w2 * g7, d8 + w2 * g8
                v0 = splat(t0) * g0
                v1 = splat(t1) * g1 + splat(t2) * g2 + splat(t3) * g3
                v2 = splat(t4) * g4 + splat(t5) * g5 + splat(t6) * g6
                v2 = v2 + splat(t7) * g7 + splat(t8) * g8
                slope = slope + sent * (s0 * v0 + s1 * v1 + s2 * v2)
            adj = edges.adjoints
            adj[e, 0] += total(slope)
            x, y, z = edges.unit[e, 0], edges.unit[e, 1], edges.unit[e, 2]
            e4, e5, e6, e7 = total(d4), total(d5), total(d6), total(d7)
            e8 = kind.type(math.sqrt(1 / 3)) * total(d8)
            two = kind.type(math.sqrt(2.0))
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

    def __init__(
        self, p: Program, x: Variable, coefficients: np.ndarray, own: np.ndarray
    ) -> None:
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
            for e in range(edges.starts[i], edges.starts[i + 1]):
                w0, w1, w2 = _three_filters(weights, table, edges, e, 0)
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
    """Adjoint of x: Σ_j W_ij g_j + W(0) g_i; of distances: Σ_f W′ g_i · x_j."""
    g, x, out, step = row[1] * place.n, row[3] * place.n, locate(row, 5, place), row[2] // 9
    knots, zero = row[8], splat(memory.dtype.type(0))
    first, last = edges.starts[place.first], edges.starts[place.first + place.count]
    sums = np.zeros((last - first) * WIDTH, memory.dtype)
    for f in range(0, step, WIDTH):
        for a in range(place.count):
            i = place.first + a
            table, own, o = row[7] + f * 3 * knots, row[9] + f, g + i * row[2] + 9 * f
            w0, w1, w2 = (
                load(weights, own), load(weights, own + step), load(weights, own + 2 * step)
            )  # fmt: skip
            g0, g1, g2 = load(memory, o), load(memory, o + 8), load(memory, o + 16)
            g3, g4, g5 = (
                load(memory, o + 24), load(memory, o + 32), load(memory, o + 40)
            )  # fmt: skip
            g6, g7, g8 = (
                load(memory, o + 48), load(memory, o + 56), load(memory, o + 64)
            )  # fmt: skip
            y0, y1, y2, y3, y4 = w0 * g0, w1 * g1, w1 * g2, w1 * g3, w2 * g4
            y5, y6, y7, y8 = w2 * g5, w2 * g6, w2 * g7, w2 * g8
            for e in range(edges.starts[i], edges.starts[i + 1]):
                (w0, w1, w2), (s0, s1, s2) = _three_jets(weights, table, edges, e)
                o = g + edges.neighbour[e] * row[2] + 9 * f
                y0, y1 = y0 + w0 * load(memory, o), y1 + w1 * load(memory, o + 8)
                y2 = y2 + w1 * load(memory, o + 16)
                y3 = y3 + w1 * load(memory, o + 24)
                y4 = y4 + w2 * load(memory, o + 32)
                y5 = y5 + w2 * load(memory, o + 40)
                y6 = y6 + w2 * load(memory, o + 48)
                y7 = y7 + w2 * load(memory, o + 56)
                y8 = y8 + w2 * load(memory, o + 64)
                o = x + edges.neighbour[e] * row[2] + 9 * f
                v1 = g1 * load(memory, o + 8) + g2 * load(memory, o + 16)
                v1 = v1 + g3 * load(memory, o + 24)
                v2 = g4 * load(memory, o + 32) + g5 * load(memory, o + 40)
                v2 = v2 + g6 * load(memory, o + 48) + g7 * load(memory, o + 56)
                v2 = v2 + g8 * load(memory, o + 64)
                k = (e - first) * WIDTH
                slope = load(sums, k) + s0 * (g0 * load(memory, o))
                store(sums, k, slope + s1 * v1 + s2 * v2)
            o = out + a * row[2] + 9 * f
            if row[10]:
                y0, y1 = y0 + load(memory, o), y1 + load(memory, o + 8)
                y2, y3 = y2 + load(memory, o + 16), y3 + load(memory, o + 24)
                y4, y5 = y4 + load(memory, o + 32), y5 + load(memory, o + 40)
                y6, y7 = y6 + load(memory, o + 48), y7 + load(memory, o + 56)
                y8 = y8 + load(memory, o + 64)
            store_components(memory, o, (y0, y1, y2, y3, y4, y5, y6, y7, y8))
    for e in range(first, last):
        edges.adjoints[e, 0] += total(load(sums, (e - first) * WIDTH))


@compiled(forceinline=True)
def _three_filters(weights, table, edges, e, kind):  # type: ignore[no-untyped-def]
    """The three filters at the distance of edge e (`kind` 0), or their slopes (1)."""
    at = table + edges.bin[e] * 3 * WIDTH
    w = splat(edges.weights[e, kind, 0])
    a, b, c = (
        w * load(weights, at), w * load(weights, at + WIDTH), w * load(weights, at + 2 * WIDTH)
    )  # fmt: skip
    for t in range(1, N_WEIGHTS):
        w, at = splat(edges.weights[e, kind, t]), at + 3 * WIDTH
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
