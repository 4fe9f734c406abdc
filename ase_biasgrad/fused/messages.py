"""Messages along edges as instructions: each atom gathers from its neighbours.

A filter W of the distance is a spline with coefficients `(knots, f)`, or `(knots, f / w, 3, w)` for
three filters, w being the width of vectors: the six rows that matter at a distance follow one
another in memory.

Of two edges that mirror each other, one is upper. Where both atoms are of one chunk (inner edges),
the upper one does the work of both. Others are taken from either end, so that no chunk writes to
the atoms of another: results do not depend on the number of threads. For the same reason the
adjoint of what is sent is a gathering, too. Upper edges get the adjoints of distance and direction
of both.
"""

from __future__ import annotations

import math

import numpy as np

from ase_biasgrad.fused.operations import Operation, locate
from ase_biasgrad.fused.program import Program, Variable
from ase_biasgrad.fused.tensors import (
    by_part,
    components,
    dots,
    plus,
    store_components,
    three,
    times,
)
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total


def _interleaved(coefficients: np.ndarray) -> np.ndarray:
    """Coefficients `(knots, 3, f)` as `(knots, f / w, 3, w)`."""
    blocks = coefficients.reshape(*coefficients.shape[:2], -1, WIDTH)
    return np.ascontiguousarray(np.moveaxis(blocks, 1, 2))


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
            p.weight(centre), p.weight(neighbour), p.weight(_interleaved(coefficients)),
            p.weight(own),
        )  # fmt: skip
        p.emit_messages(Operation.TENSOR_MESSAGE, self.y, *self.constants)
        p.add(self)

    def vjp(self, p: Program) -> None:
        p.emit_messages(Operation.TENSOR_MESSAGE_VJP, p.adjoint(self.y)[0], *self.constants)


@compiled()
def tensor_message(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    y, width, zero = locate(row, 1, place), row[2], splat(memory.dtype.type(0))
    features, centres, neighbours = width // 9, row[3], row[4]
    for a in range(place.size):
        o = edges.numbers[place.first + a] * features
        for f in range(0, features, WIDTH):
            own = load(weights, centres + o + f) + load(weights, neighbours + o + f)
            own = own * load(weights, row[6] + f)
            to = y + a * width + 9 * f
            store_components(memory, to, (own, zero, zero, zero, zero, zero, zero, zero, zero))
    for a in range(place.size):
        i = place.first + a
        of_i = edges.numbers[i] * features
        for e in range(edges.starts[i], edges.ends[i]):
            w, j = splats(edges, e, 0), edges.neighbour[e]
            at, inner = row[5] + edges.bin[e] * 3 * features, e < edges.inners[i]
            of_j, r = edges.numbers[j] * features, y + (j - place.first) * width
            t0, t1, t2, t3, t4, t5, t6, t7, t8 = splat_pair_tensor(edges.unit, e, memory)
            for f in range(0, features, WIDTH):
                w0, w1, w2 = three_sampled(weights, at + 3 * f, 3 * features, w)
                c0, c1, c2, c3, c4 = t0 * w0, t1 * w1, t2 * w1, t3 * w1, t4 * w2
                c5, c6, c7, c8 = t5 * w2, t6 * w2, t7 * w2, t8 * w2
                sent = load(weights, centres + of_i + f) + load(weights, neighbours + of_j + f)
                add_components(
                    memory, y + a * width + 9 * f,
                    times(sent, (c0, c1, c2, c3, c4, c5, c6, c7, c8)),
                )  # fmt: skip
                if inner:
                    sent = load(weights, centres + of_j + f) + load(weights, neighbours + of_i + f)
                    c1, c2, c3 = zero - c1, zero - c2, zero - c3
                    add_components(
                        memory, r + 9 * f, times(sent, (c0, c1, c2, c3, c4, c5, c6, c7, c8))
                    )


@compiled()
def tensor_message_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoints of distances and directions: those of T are Σ_f W h with
    h = g_i (c_i + s_j) + σ g_j (c_j + s_i), of parity σ."""
    g, step, kind = row[1] * place.n, row[2] // 9, memory.dtype
    centres, neighbours, adj, two = row[3], row[4], edges.adjoints, kind.type(math.sqrt(2.0))
    for i in range(place.first, place.first + place.size):
        of_i = edges.numbers[i] * step
        for e in range(edges.starts[i], edges.middles[i]):
            j = edges.neighbour[e]
            of_j, zero = edges.numbers[j] * step, splat(kind.type(0))
            t0, t1, t2, t3, t4, t5, t6, t7, t8 = pair_tensor(edges.unit, e, memory)
            w, s, at = splats(edges, e, 0), splats(edges, e, 1), row[5] + edges.bin[e] * 3 * step
            slope, d1, d2, d3, d4, d5, d6, d7, d8 = (
                zero, zero, zero, zero, zero, zero, zero, zero, zero,
            )  # fmt: skip
            for f in range(0, step, WIDTH):
                (_, w1, w2), (s0, s1, s2) = three_jets(weights, at + 3 * f, 3 * step, w, s)
                to_i = load(weights, centres + of_i + f) + load(weights, neighbours + of_j + f)
                to_j = load(weights, centres + of_j + f) + load(weights, neighbours + of_i + f)
                o, q = g + i * row[2] + 9 * f, g + j * row[2] + 9 * f
                h0 = to_i * load(memory, o) + to_j * load(memory, q)
                h1 = to_i * load(memory, o + WIDTH) - to_j * load(memory, q + WIDTH)
                h2 = to_i * load(memory, o + 2 * WIDTH) - to_j * load(memory, q + 2 * WIDTH)
                h3 = to_i * load(memory, o + 3 * WIDTH) - to_j * load(memory, q + 3 * WIDTH)
                h4 = to_i * load(memory, o + 4 * WIDTH) + to_j * load(memory, q + 4 * WIDTH)
                h5 = to_i * load(memory, o + 5 * WIDTH) + to_j * load(memory, q + 5 * WIDTH)
                h6 = to_i * load(memory, o + 6 * WIDTH) + to_j * load(memory, q + 6 * WIDTH)
                h7 = to_i * load(memory, o + 7 * WIDTH) + to_j * load(memory, q + 7 * WIDTH)
                h8 = to_i * load(memory, o + 8 * WIDTH) + to_j * load(memory, q + 8 * WIDTH)
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
            of_x, of_y, of_z = bent(e4, e5, e6, e7, e8, x, y, z)
            adj[e, 1] += two * (total(d1) + of_x)
            adj[e, 2] += two * (total(d2) + of_y)
            adj[e, 3] += two * (total(d3) + of_z)


@compiled(forceinline=True)
def bent(e4, e5, e6, e7, e8, x, y, z):  # type: ignore[no-untyped-def]
    """Adjoint of the direction, by √2, from those of the symmetric components of T."""
    return (
        e4 * y + e6 * z + e7 * x - e8 * x,
        e4 * x + e5 * z - e7 * y - e8 * y,
        e5 * y + e6 * x + (e8 + e8) * z,
    )


@compiled(forceinline=True)
def pair_tensor(unit, e, memory):  # type: ignore[no-untyped-def]
    """`backbones.tensornet.pair_tensors` of the direction of edge e."""
    kind = memory.dtype
    x, y, z = unit[e, 0], unit[e, 1], unit[e, 2]
    two, last = kind.type(math.sqrt(2.0)), kind.type(math.sqrt(1 / 6))
    return (
        kind.type(math.sqrt(3.0)), two * x, two * y, two * z, two * x * y, two * y * z, two * x * z,
        kind.type(math.sqrt(0.5)) * (x * x - y * y), last * (z * z + z * z - x * x - y * y),
    )  # fmt: skip


@compiled(forceinline=True)
def splat_pair_tensor(unit, e, memory):  # type: ignore[no-untyped-def]
    t = pair_tensor(unit, e, memory)
    return (
        splat(t[0]), splat(t[1]), splat(t[2]), splat(t[3]), splat(t[4]), splat(t[5]), splat(t[6]),
        splat(t[7]), splat(t[8]),
    )  # fmt: skip


class TensorCFConv:
    """Σ_j W_ij x_j + W(0) x_i of tensors `(9, f)`; coefficients `(knots, 3, f)`, own `(3, f)`."""

    def __init__(self, p: Program, x: Variable, coefficients: np.ndarray, own: np.ndarray) -> None:
        self.x, self.y = x, p.variable(x.width)
        self.constants = p.weight(_interleaved(coefficients)), p.weight(own)
        p.emit_messages(Operation.TENSOR_CFCONV, x, self.y, *self.constants)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g, (out, more) = p.adjoint(self.y)[0], p.adjoint(self.x)
        p.emit_messages(Operation.TENSOR_CFCONV_VJP, g, self.x, out, *self.constants, more)


@compiled()
def tensor_cfconv(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, width, step = row[1] * place.n, locate(row, 3, place), row[2], row[2] // 3
    for f in range(0, width // 9, WIDTH):
        own = three(weights, row[6] + f, width // 9)
        for a in range(place.size):
            mine = components(memory, x + (place.first + a) * width + 9 * f)
            store_components(memory, y + a * width + 9 * f, by_part(own, mine))
    for a in range(place.size):
        i, to = place.first + a, y + a * width
        mine = x + i * width
        for e in range(edges.starts[i], edges.inners[i]):
            w, at, j = splats(edges, e, 0), row[5] + edges.bin[e] * step, edges.neighbour[e]
            sent, r = x + j * width, y + (j - place.first) * width
            for f in range(0, width // 9, WIDTH):
                filters = three_sampled(weights, at + 3 * f, step, w)
                add_by_part(memory, to + 9 * f, filters, sent + 9 * f)
                add_by_part(memory, r + 9 * f, filters, mine + 9 * f)
        for e in range(edges.inners[i], edges.ends[i]):
            w, at = splats(edges, e, 0), row[5] + edges.bin[e] * step
            sent = x + edges.neighbour[e] * width
            for f in range(0, width // 9, WIDTH):
                filters = three_sampled(weights, at + 3 * f, step, w)
                add_by_part(memory, to + 9 * f, filters, sent + 9 * f)


@compiled()
def tensor_cfconv_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoint of x: Σ_j W_ij g_j + W(0) g_i; of distances: Σ_f W′ (g_i · x_j + g_j · x_i)."""
    g, x, out = row[1] * place.n, row[3] * place.n, locate(row, 5, place)
    width, step = row[2], row[2] // 3
    for f in range(0, width // 9, WIDTH):
        own = three(weights, row[8] + f, width // 9)
        for a in range(place.size):
            mine = by_part(own, components(memory, g + (place.first + a) * width + 9 * f))
            to = out + a * width + 9 * f
            if row[9]:
                mine = plus(mine, components(memory, to))
            store_components(memory, to, mine)
    for a in range(place.size):
        i, to = place.first + a, out + a * width
        gi, xi = g + i * width, x + i * width
        for e in range(edges.starts[i], edges.middles[i]):
            w, s, j = splats(edges, e, 0), splats(edges, e, 1), edges.neighbour[e]
            at, inner, slope = (
                row[7] + edges.bin[e] * step,
                e < edges.inners[i],
                splat(memory.dtype.type(0)),
            )
            gj, xj, r = g + j * width, x + j * width, out + (j - place.first) * width
            for f in range(0, width // 9, WIDTH):
                filters, (s0, s1, s2) = three_jets(weights, at + 3 * f, step, w, s)
                add_by_part(memory, to + 9 * f, filters, gj + 9 * f)
                if inner:
                    add_by_part(memory, r + 9 * f, filters, gi + 9 * f)
                d0, d1, d2 = dots(components(memory, gi + 9 * f), components(memory, xj + 9 * f))
                b0, b1, b2 = dots(components(memory, gj + 9 * f), components(memory, xi + 9 * f))
                slope = slope + s0 * (d0 + b0) + s1 * (d1 + b1) + s2 * (d2 + b2)
            edges.adjoints[e, 0] += total(slope)
        for e in range(edges.middles[i], edges.ends[i]):
            w, at = splats(edges, e, 0), row[7] + edges.bin[e] * step
            gj = g + edges.neighbour[e] * width
            for f in range(0, width // 9, WIDTH):
                filters = three_sampled(weights, at + 3 * f, step, w)
                add_by_part(memory, to + 9 * f, filters, gj + 9 * f)


@compiled(forceinline=True)
def add_by_part(memory, o, filters, x):  # type: ignore[no-untyped-def]
    add_components(memory, o, by_part(filters, components(memory, x)))


@compiled(forceinline=True)
def add_components(memory, o, c):  # type: ignore[no-untyped-def]
    store_components(memory, o, plus(components(memory, o), c))


class CFConv:
    """Σ_j W_ij ∘ x_j of features `(f,)`; coefficients `(knots, f)`."""

    def __init__(self, p: Program, x: Variable, coefficients: np.ndarray) -> None:
        self.x, self.y = x, p.variable(x.width)
        self.coefficients = p.weight(coefficients)
        p.emit_messages(Operation.CFCONV, x, self.y, self.coefficients)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g = p.adjoint(self.y)[0]
        out, more = p.adjoint(self.x) if self.x.active else (self.x, 2)
        p.emit_messages(Operation.CFCONV_VJP, g, self.x, out, self.coefficients, more)


@compiled()
def cfconv(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, width, zero = row[1] * place.n, locate(row, 3, place), row[2], splat(memory.dtype.type(0))
    for k in range(0, place.size * width, WIDTH):
        store(memory, y + k, zero)
    for a in range(place.size):
        i, to = place.first + a, y + a * width
        mine = x + i * width
        for e in range(edges.starts[i], edges.inners[i]):
            w, at, j = splats(edges, e, 0), row[5] + edges.bin[e] * width, edges.neighbour[e]
            sent, r = x + j * width, y + (j - place.first) * width
            for f in range(0, width, WIDTH):
                filter = sampled(weights, at + f, width, w)
                store(memory, to + f, load(memory, to + f) + filter * load(memory, sent + f))
                store(memory, r + f, load(memory, r + f) + filter * load(memory, mine + f))
        for e in range(edges.inners[i], edges.ends[i]):
            w, at = splats(edges, e, 0), row[5] + edges.bin[e] * width
            sent = x + edges.neighbour[e] * width
            for f in range(0, width, WIDTH):
                filter = sampled(weights, at + f, width, w)
                store(memory, to + f, load(memory, to + f) + filter * load(memory, sent + f))


@compiled()
def cfconv_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoint of x: Σ_j W_ij g_j; of distances: Σ_f W′ (g_i x_j + g_j x_i)."""
    g, x, out, width = row[1] * place.n, row[3] * place.n, locate(row, 5, place), row[2]
    zero = splat(memory.dtype.type(0))
    wanted = row[8] < 2  # atoms have an adjoint
    if row[8] == 0:
        for k in range(0, place.size * width, WIDTH):
            store(memory, out + k, zero)
    for a in range(place.size):
        i, to = place.first + a, out + a * width
        gi, xi = g + i * width, x + i * width
        for e in range(edges.starts[i], edges.middles[i]):
            w, v, at, j = (
                splats(edges, e, 0),
                splats(edges, e, 1),
                row[7] + edges.bin[e] * width,
                edges.neighbour[e],
            )
            gj, xj, r, slope = g + j * width, x + j * width, out + (j - place.first) * width, zero
            if e < edges.inners[i] and wanted:
                for f in range(0, width, WIDTH):
                    h, k = load(memory, gj + f), load(memory, gi + f)
                    filter, change = jet(weights, at + f, width, w, v)
                    slope = slope + change * (k * load(memory, xj + f) + h * load(memory, xi + f))
                    store(memory, to + f, load(memory, to + f) + filter * h)
                    store(memory, r + f, load(memory, r + f) + filter * k)
            elif wanted:
                for f in range(0, width, WIDTH):
                    h, k = load(memory, gj + f), load(memory, gi + f)
                    filter, change = jet(weights, at + f, width, w, v)
                    slope = slope + change * (k * load(memory, xj + f) + h * load(memory, xi + f))
                    store(memory, to + f, load(memory, to + f) + filter * h)
            else:
                for f in range(0, width, WIDTH):
                    h, k = load(memory, gj + f), load(memory, gi + f)
                    change = sampled(weights, at + f, width, v)
                    slope = slope + change * (k * load(memory, xj + f) + h * load(memory, xi + f))
            edges.adjoints[e, 0] += total(slope)
        if wanted:
            for e in range(edges.middles[i], edges.ends[i]):
                w, at = splats(edges, e, 0), row[7] + edges.bin[e] * width
                gj = g + edges.neighbour[e] * width
                for f in range(0, width, WIDTH):
                    filter = sampled(weights, at + f, width, w)
                    store(memory, to + f, load(memory, to + f) + filter * load(memory, gj + f))


@compiled(forceinline=True)
def splats(edges, e, kind):  # type: ignore[no-untyped-def]
    """Weights of the six coefficients at the distance of edge e: for values (0), slopes (1)."""
    w = edges.weights
    return (
        splat(w[e, kind, 0]), splat(w[e, kind, 1]), splat(w[e, kind, 2]), splat(w[e, kind, 3]),
        splat(w[e, kind, 4]), splat(w[e, kind, 5]),
    )  # fmt: skip


@compiled(forceinline=True)
def sampled(c, at, step, w):  # type: ignore[no-untyped-def]
    """The spline with weights w of six coefficients `step` apart from `at` on."""
    a = w[0] * load(c, at) + w[1] * load(c, at + step)
    b = w[2] * load(c, at + 2 * step) + w[3] * load(c, at + 3 * step)
    a = a + w[4] * load(c, at + 4 * step)
    return a + (b + w[5] * load(c, at + 5 * step))


@compiled(forceinline=True)
def jet(c, at, step, w, v):  # type: ignore[no-untyped-def]
    """The splines with weights w and v."""
    p = load(c, at)
    a, b = w[0] * p, v[0] * p
    for t in range(1, 6):
        p = load(c, at + t * step)
        a, b = a + w[t] * p, b + v[t] * p
    return a, b


class VectorMessage:
    """PaiNN's messages of scalars q `(f,)` and vectors μ `(3, f)`, added to them:

        q_i + Σ_j W¹ ∘ x¹_j,    μ_i + Σ_j (W² ∘ x²_j) u + W³ ∘ x³_j ∘ μ_j.

    x `(f / w, 3, w)`; coefficients `(knots, 3, f)`. Without μ, all vectors are zero.
    """

    def __init__(
        self, p: Program, q: Variable, mu: Variable | None, x: Variable, coefficients: np.ndarray
    ) -> None:
        self.q, self.mu, self.x = q, mu, x
        self.out_q, self.out_mu = p.variable(q.width), p.variable(3 * q.width)
        self.constants = (p.weight(_interleaved(coefficients)),)
        p.emit_messages(
            Operation.VECTOR_MESSAGE, x, q, x if mu is None else mu, self.out_q, self.out_mu,
            *self.constants, int(mu is not None),
        )  # fmt: skip
        p.add(self)

    def vjp(self, p: Program) -> None:
        gq, gmu = p.adjoint(self.out_q)[0], p.adjoint(self.out_mu)[0]
        if self.mu is None:  # q and x are those of the elements, which may learn
            out_x = p.adjoint(self.x)[0] if p.learns else p.variable(self.x.width)
            p.emit_messages(
                Operation.VECTOR_MESSAGE_VJP, gq, gmu, self.x, self.x, out_x, out_x,
                *self.constants, 2 if p.learns else 0,
            )  # fmt: skip
            if p.learns:
                p.emit(Operation.ADD, gq, *p.adjoint(self.q))
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
    out_q, out_mu = locate(row, 7, place), locate(row, 9, place)
    width, step, zero, carries = row[8], row[10], splat(memory.dtype.type(0)), row[12]
    for k in range(0, place.size * width, WIDTH):
        store(memory, out_q + k, load(memory, q + k))
    for k in range(0, place.size * step, WIDTH):
        start = zero
        if carries:
            start = load(memory, mu + place.first * step + k)
        store(memory, out_mu + k, start)
    for a in range(place.size):
        i = place.first + a
        for e in range(edges.starts[i], edges.ends[i]):
            w, u, j = splats(edges, e, 0), direction(edges, e), edges.neighbour[e]
            at, inner, b = row[11] + edges.bin[e] * step, e < edges.inners[i], j - place.first
            for f in range(0, width, WIDTH):
                w0, w1, w2 = three_sampled(weights, at + 3 * f, step, w)
                o, r = x + j * step + 3 * f, out_mu + a * step + 3 * f
                k = out_q + a * width + f
                store(memory, k, load(memory, k) + w0 * load(memory, o))
                v = plus_scaled(three(memory, r, WIDTH), w1 * load(memory, o + WIDTH), u)
                if carries:
                    passed = w2 * load(memory, o + 2 * WIDTH)
                    v = plus_scaled(v, passed, three(memory, mu + j * step + 3 * f, WIDTH))
                store_three(memory, r, v)
                if inner:
                    o, r = x + i * step + 3 * f, out_mu + b * step + 3 * f
                    k = out_q + b * width + f
                    store(memory, k, load(memory, k) + w0 * load(memory, o))
                    along = zero - w1 * load(memory, o + WIDTH)
                    v = plus_scaled(three(memory, r, WIDTH), along, u)
                    if carries:
                        passed = w2 * load(memory, o + 2 * WIDTH)
                        v = plus_scaled(v, passed, three(memory, mu + i * step + 3 * f, WIDTH))
                    store_three(memory, r, v)


@compiled()
def vector_message_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoints of μ and x, and of distances and directions.

    With h = Σ_j W³ ∂E/∂μ_j those of μ_i are ∂E/∂μ_i + x³_i h, those of x_i
    (Σ_j W¹ ∂E/∂q_j, −Σ_j W² u · ∂E/∂μ_j, μ_i · h).
    """
    gq, gmu, mu, x = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    out_mu, out_x, carries = locate(row, 9, place), locate(row, 11, place), row[14] == 1
    learns = row[14] == 2  # x has an adjoint, without μ
    width, step, zero = row[2], row[4], splat(memory.dtype.type(0))
    if carries:  # h and the adjoints of x¹, x², until all edges are done
        for k in range(0, place.size * step, WIDTH):
            store(memory, out_mu + k, zero)
            store(memory, out_x + k, zero)
    elif learns:
        for k in range(0, place.size * step, WIDTH):
            store(memory, out_x + k, zero)
    for a in range(place.size):
        i = place.first + a
        for e in range(edges.starts[i], edges.middles[i]):
            w, s, u = splats(edges, e, 0), splats(edges, e, 1), direction(edges, e)
            j, at = edges.neighbour[e], row[13] + edges.bin[e] * step
            b, inner = j - place.first, e < edges.inners[i]
            slope, along = zero, (zero, zero, zero)
            for f in range(0, width, WIDTH):
                (w0, w1, w2), (s0, s1, s2) = three_jets(weights, at + 3 * f, step, w, s)
                o, p = i * step + 3 * f, j * step + 3 * f
                gi, gj = load(memory, gq + i * width + f), load(memory, gq + j * width + f)
                bi, bj = three(memory, gmu + o, WIDTH), three(memory, gmu + p, WIDTH)
                xi, xj = three(memory, x + o, WIDTH), three(memory, x + p, WIDTH)
                d = plus_scaled(plus_scaled((zero, zero, zero), xj[1], bi), zero - xi[1], bj)
                slope = slope + s0 * (gi * xj[0] + gj * xi[0]) + s1 * dot(u, d)
                along = plus_scaled(along, w1, d)
                if carries:
                    mi, mj = three(memory, mu + o, WIDTH), three(memory, mu + p, WIDTH)
                    slope = slope + s2 * (xj[2] * dot(bi, mj) + xi[2] * dot(bj, mi))
                    o = a * step + 3 * f
                    _receive(memory, out_mu + o, out_x + o, w0 * gj, w2, bj, zero - w1 * dot(u, bj))
                    if inner:
                        o = b * step + 3 * f
                        _receive(memory, out_mu + o, out_x + o, w0 * gi, w2, bi, w1 * dot(u, bi))
                elif learns:
                    o = out_x + a * step + 3 * f
                    _receive_alone(memory, o, w0 * gj, zero - w1 * dot(u, bj))
                    if inner:
                        o = out_x + b * step + 3 * f
                        _receive_alone(memory, o, w0 * gi, w1 * dot(u, bi))
            edges.adjoints[e, 0] += total(slope)
            edges.adjoints[e, 1] += total(along[0])
            edges.adjoints[e, 2] += total(along[1])
            edges.adjoints[e, 3] += total(along[2])
        if carries:
            for e in range(edges.middles[i], edges.ends[i]):
                w, u, j = splats(edges, e, 0), direction(edges, e), edges.neighbour[e]
                at = row[13] + edges.bin[e] * step
                for f in range(0, width, WIDTH):
                    w0, w1, w2 = three_sampled(weights, at + 3 * f, step, w)
                    bj, o = three(memory, gmu + j * step + 3 * f, WIDTH), a * step + 3 * f
                    g = w0 * load(memory, gq + j * width + f)
                    _receive(memory, out_mu + o, out_x + o, g, w2, bj, zero - w1 * dot(u, bj))
        elif learns:
            for e in range(edges.middles[i], edges.ends[i]):
                w, u, j = splats(edges, e, 0), direction(edges, e), edges.neighbour[e]
                at = row[13] + edges.bin[e] * step
                for f in range(0, width, WIDTH):
                    w0 = sampled(weights, at + 3 * f, step, w)
                    w1 = sampled(weights, at + 3 * f + WIDTH, step, w)
                    bj, o = three(memory, gmu + j * step + 3 * f, WIDTH), a * step + 3 * f
                    g = w0 * load(memory, gq + j * width + f)
                    _receive_alone(memory, out_x + o, g, zero - w1 * dot(u, bj))
    if carries:
        for a in range(place.size):
            for f in range(0, width, WIDTH):
                o, here = (place.first + a) * step + 3 * f, a * step + 3 * f
                h, carried = three(memory, out_mu + here, WIDTH), load(memory, x + o + 2 * WIDTH)
                of_x = dot(h, three(memory, mu + o, WIDTH))
                store(memory, out_x + here + 2 * WIDTH, of_x)
                moved = plus_scaled(three(memory, gmu + o, WIDTH), carried, h)
                store_three(memory, out_mu + here, moved)


@compiled(forceinline=True)
def _receive(memory, h, x, one, filter, of_mu, two):  # type: ignore[no-untyped-def]
    """Add to h, and to the adjoints of x¹ and x²."""
    store_three(memory, h, plus_scaled(three(memory, h, WIDTH), filter, of_mu))
    _receive_alone(memory, x, one, two)


@compiled(forceinline=True)
def _receive_alone(memory, x, one, two):  # type: ignore[no-untyped-def]
    store(memory, x, load(memory, x) + one)
    store(memory, x + WIDTH, load(memory, x + WIDTH) + two)


@compiled(forceinline=True)
def three_sampled(c, at, step, w):  # type: ignore[no-untyped-def]
    return (
        sampled(c, at, step, w), sampled(c, at + WIDTH, step, w),
        sampled(c, at + 2 * WIDTH, step, w),
    )  # fmt: skip


@compiled(forceinline=True)
def three_jets(c, at, step, w, v):  # type: ignore[no-untyped-def]
    (a, d), (b, e) = jet(c, at, step, w, v), jet(c, at + WIDTH, step, w, v)
    f, g = jet(c, at + 2 * WIDTH, step, w, v)
    return (a, b, f), (d, e, g)


@compiled(forceinline=True)
def store_three(memory, o, v):  # type: ignore[no-untyped-def]
    store(memory, o, v[0])
    store(memory, o + WIDTH, v[1])
    store(memory, o + 2 * WIDTH, v[2])


@compiled(forceinline=True)
def direction(edges, e):  # type: ignore[no-untyped-def]
    return splat(edges.unit[e, 0]), splat(edges.unit[e, 1]), splat(edges.unit[e, 2])


@compiled(forceinline=True)
def plus_scaled(v, s, u):  # type: ignore[no-untyped-def]
    return v[0] + s * u[0], v[1] + s * u[1], v[2] + s * u[2]


@compiled(forceinline=True)
def dot(u, v):  # type: ignore[no-untyped-def]
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]
