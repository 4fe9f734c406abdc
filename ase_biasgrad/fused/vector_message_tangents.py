"""Tangents of PaiNN's messages, and gradients of their filters.

With adjoints g of q_i and b of μ_i, what a pair adds to the products with them is Σ_f W · P with

    P¹ = g_i x¹_j + g_j x¹_i,    P² = u · v,    P³ = x³_j b_i · μ_j + x³_i b_j · μ_i,

where v = x²_j b_i − x²_i b_j. Without vectors μ, x does not move.
"""

from __future__ import annotations

from typing import NamedTuple

from ase_biasgrad.fused.cfconv_tangents import add_to, spread
from ase_biasgrad.fused.messages import direction, dot, plus_scaled, splats, store_three, three_jets
from ase_biasgrad.fused.operations import locate
from ase_biasgrad.fused.tensors import three
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total

_inline = compiled(forceinline=True)


@compiled()
def vector_message_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """q̇_i + Σ_j (W¹ x¹_j)˙ and μ̇_i + Σ_j (W² x²_j u + W³ x³_j μ_j)˙."""
    x, mu, dx, dmu = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[9] * place.n
    dq, out_q, out_mu = locate(row, 7, place), locate(row, 11, place), locate(row, 13, place)
    width, step, carries, zero = row[12], row[2], row[16], splat(memory.dtype.type(0))
    for k in range(0, place.size * width, WIDTH):
        store(memory, out_q + k, load(memory, dq + k) if carries else zero)
    for k in range(0, place.size * step, WIDTH):
        store(memory, out_mu + k, load(memory, dmu + place.first * step + k) if carries else zero)
    for a in range(place.size):
        i = place.first + a
        for e in range(edges.starts[i], edges.ends[i]):
            if tangents.still[e] and not carries:
                continue
            w, dw, j = splats(edges, e, 0), splats(tangents, e, 0), edges.neighbour[e]
            u, du = direction(edges, e), direction(tangents, e)
            back, dback = _opposite(u, zero), _opposite(du, zero)
            at, inner, b = row[15] + edges.bin[e] * step, e < edges.inners[i], j - place.first
            for f in range(0, width, WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
                _send(
                    memory, j * step + 3 * f, x, mu, dx, dmu, out_q + a * width + f,
                    out_mu + a * step + 3 * f, filters, changes, u, du, carries,
                )  # fmt: skip
                if inner:
                    _send(
                        memory, i * step + 3 * f, x, mu, dx, dmu, out_q + b * width + f,
                        out_mu + b * step + 3 * f, filters, changes, back, dback, carries,
                    )  # fmt: skip


@_inline
def _send(memory, o, x, mu, dx, dmu, to_q, to_mu, filters, changes, u, du, carries):  # type: ignore[no-untyped-def]
    sent, v = three(memory, x + o, WIDTH), three(memory, to_mu, WIDTH)
    one, two = changes[0] * sent[0], changes[1] * sent[1]
    if carries:
        moved = three(memory, dx + o, WIDTH)
        one, two = one + filters[0] * moved[0], two + filters[1] * moved[1]
        passed = changes[2] * sent[2] + filters[2] * moved[2]
        v = plus_scaled(v, passed, three(memory, mu + o, WIDTH))
        v = plus_scaled(v, filters[2] * sent[2], three(memory, dmu + o, WIDTH))
    add_to(memory, to_q, one)
    store_three(memory, to_mu, plus_scaled(plus_scaled(v, two, u), filters[1] * sent[1], du))


@compiled()
def vector_message_vjp_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of μ and x, of distances, Σ_f W′ · P, and directions, Σ_f W² v."""
    at, zero = _places(row, place), splat(memory.dtype.type(0))
    width, step, first = at.width, 3 * at.width, place.first
    _start(at, place, memory)
    for a in range(place.size):
        i = first + a
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, s, ds = (
                splats(edges, e, 0), splats(tangents, e, 0), splats(edges, e, 1),
                splats(tangents, e, 1),
            )  # fmt: skip
            u, du, j = direction(edges, e), direction(tangents, e), edges.neighbour[e]
            back, dback = _opposite(u, zero), _opposite(du, zero)
            c, inner, slope = at.c + edges.bin[e] * step, e < edges.inners[i], zero
            along = zero, zero, zero
            for f in range(0, width, WIDTH):
                filters, changes = three_jets(weights, c + 3 * f, step, w, dw)
                _receive(at, memory, a, j, f, filters, changes, back, dback)
                if inner:
                    _receive(at, memory, j - first, i, f, filters, changes, u, du)
                both, moved, v, dv = _products(at, memory, i, j, f, u, du)
                along = plus_scaled(plus_scaled(along, changes[1], v), filters[1], dv)
                slopes, bends = three_jets(weights, c + 3 * f, step, s, ds)
                slope = slope + dot(bends, both) + dot(slopes, moved)
            tangents.adjoints[e, 0] += total(slope)
            tangents.adjoints[e, 1] += total(along[0])
            tangents.adjoints[e, 2] += total(along[1])
            tangents.adjoints[e, 3] += total(along[2])
        _receive_lower(at, i, a, memory, weights, edges, tangents)
    _end(at, place, memory)


@compiled()
def vector_message_gradient(row, place, memory, weights, edges, tangents, gradients):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of μ and x, and gradients of the coefficients."""
    at, zero = _places(row, place), splat(memory.dtype.type(0))
    width, step, first = at.width, 3 * at.width, place.first
    _start(at, place, memory)
    for a in range(place.size):
        i = first + a
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, j = splats(edges, e, 0), splats(tangents, e, 0), edges.neighbour[e]
            u, du = direction(edges, e), direction(tangents, e)
            back, dback = _opposite(u, zero), _opposite(du, zero)
            c, inner = at.c + edges.bin[e] * step, e < edges.inners[i]
            for f in range(0, width, WIDTH):
                filters, changes = three_jets(weights, c + 3 * f, step, w, dw)
                _receive(at, memory, a, j, f, filters, changes, back, dback)
                if inner:
                    _receive(at, memory, j - first, i, f, filters, changes, u, du)
                both, moved, _, _ = _products(at, memory, i, j, f, u, du)
                spread(gradients, c + 3 * f, step, w, moved[0], dw, both[0])
                spread(gradients, c + 3 * f + WIDTH, step, w, moved[1], dw, both[1])
                if at.kind == 1:
                    spread(gradients, c + 3 * f + 2 * WIDTH, step, w, moved[2], dw, both[2])
        _receive_lower(at, i, a, memory, weights, edges, tangents)
    _end(at, place, memory)


class Places(NamedTuple):
    """Places of what the VJP reads and writes, which loops must not look up again."""

    gq: int
    dgq: int
    gmu: int
    dgmu: int
    mu: int
    dmu: int
    x: int
    dx: int
    out_mu: int  # ḣ until all edges are done
    out_x: int
    h: int
    c: int  # of the coefficients
    width: int
    kind: int  # 0: x has no adjoint, 1: there are vectors, 2: x has an adjoint, without vectors


@_inline
def _places(row, place):  # type: ignore[no-untyped-def]
    n = place.n
    return Places(
        row[1] * n, row[3] * n, row[5] * n, row[7] * n, row[9] * n, row[11] * n, row[13] * n,
        row[15] * n, locate(row, 17, place), locate(row, 19, place), locate(row, 21, place),
        row[23], row[2], row[24],
    )  # fmt: skip


@_inline
def _start(at, place, memory):  # type: ignore[no-untyped-def]
    """Zero h, ḣ and the tangents of the adjoints of x, where they are wanted."""
    zero = splat(memory.dtype.type(0))
    if at.kind:
        for k in range(0, place.size * 3 * at.width, WIDTH):
            store(memory, at.out_x + k, zero)
            if at.kind == 1:
                store(memory, at.out_mu + k, zero)
                store(memory, at.h + k, zero)


@_inline
def _receive(at, memory, a, j, f, filters, changes, u, du):  # type: ignore[no-untyped-def]
    """Add to those of atom a of the chunk what comes from j, with the direction u from j to it.

    To those of x¹ and x² (W¹ g_j)˙ and (W² u · b_j)˙, to h W³ b_j and to ḣ its change.
    """
    if at.kind:
        q = j * at.width + f
        o, here = 3 * q, 3 * (a * at.width + f)
        b, db = three(memory, at.gmu + o, WIDTH), three(memory, at.dgmu + o, WIDTH)
        one = filters[0] * load(memory, at.dgq + q) + changes[0] * load(memory, at.gq + q)
        two = filters[1] * (dot(u, db) + dot(du, b)) + changes[1] * dot(u, b)
        add_to(memory, at.out_x + here, one)
        add_to(memory, at.out_x + here + WIDTH, two)
        if at.kind == 1:
            moved = plus_scaled(three(memory, at.out_mu + here, WIDTH), changes[2], b)
            store_three(memory, at.out_mu + here, plus_scaled(moved, filters[2], db))
            h = plus_scaled(three(memory, at.h + here, WIDTH), filters[2], b)
            store_three(memory, at.h + here, h)


@_inline
def _receive_lower(at, i, a, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    step, zero = 3 * at.width, splat(memory.dtype.type(0))
    if at.kind:
        for e in range(edges.middles[i], edges.ends[i]):
            w, dw, j = splats(edges, e, 0), splats(tangents, e, 0), edges.neighbour[e]
            back = _opposite(direction(edges, e), zero)
            dback = _opposite(direction(tangents, e), zero)
            c = at.c + edges.bin[e] * step
            for f in range(0, at.width, WIDTH):
                filters, changes = three_jets(weights, c + 3 * f, step, w, dw)
                _receive(at, memory, a, j, f, filters, changes, back, dback)


@_inline
def _end(at, place, memory):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of x³ and μ: (μ · h)˙ and ḃ + (x³ h)˙."""
    if at.kind == 1:
        for k in range(0, place.size * 3 * at.width, 3 * WIDTH):
            o = place.first * 3 * at.width + k
            h, dh = three(memory, at.h + k, WIDTH), three(memory, at.out_mu + k, WIDTH)
            mu, dmu = three(memory, at.mu + o, WIDTH), three(memory, at.dmu + o, WIDTH)
            store(memory, at.out_x + k + 2 * WIDTH, dot(h, dmu) + dot(dh, mu))
            carried, change = (
                load(memory, at.x + o + 2 * WIDTH), load(memory, at.dx + o + 2 * WIDTH),
            )  # fmt: skip
            moved = plus_scaled(three(memory, at.dgmu + o, WIDTH), change, h)
            store_three(memory, at.out_mu + k, plus_scaled(moved, carried, dh))


@_inline
def _products(at, memory, i, j, f, u, du):  # type: ignore[no-untyped-def]
    """P and its change, v and its change."""
    zero = splat(memory.dtype.type(0))
    ki, kj = i * at.width + f, j * at.width + f
    o, p = 3 * ki, 3 * kj
    gi, gj = load(memory, at.gq + ki), load(memory, at.gq + kj)
    dgi, dgj = load(memory, at.dgq + ki), load(memory, at.dgq + kj)
    bi, bj = three(memory, at.gmu + o, WIDTH), three(memory, at.gmu + p, WIDTH)
    dbi, dbj = three(memory, at.dgmu + o, WIDTH), three(memory, at.dgmu + p, WIDTH)
    xi, xj = three(memory, at.x + o, WIDTH), three(memory, at.x + p, WIDTH)
    v, dv = _difference(xj[1], bi, xi[1], bj), _difference(xj[1], dbi, xi[1], dbj)
    one, done = gi * xj[0] + gj * xi[0], dgi * xj[0] + dgj * xi[0]
    last, dlast = zero, zero
    if at.kind == 1:
        dxi, dxj = three(memory, at.dx + o, WIDTH), three(memory, at.dx + p, WIDTH)
        done = done + (gi * dxj[0] + gj * dxi[0])
        dv = plus_scaled(plus_scaled(dv, dxj[1], bi), zero - dxi[1], bj)
        mi, mj = three(memory, at.mu + o, WIDTH), three(memory, at.mu + p, WIDTH)
        to_i, to_j = dot(bi, mj), dot(bj, mi)
        last, dlast = xj[2] * to_i + xi[2] * to_j, dxj[2] * to_i + dxi[2] * to_j
        to_i = dot(dbi, mj) + dot(bi, three(memory, at.dmu + p, WIDTH))
        to_j = dot(dbj, mi) + dot(bj, three(memory, at.dmu + o, WIDTH))
        dlast = dlast + (xj[2] * to_i + xi[2] * to_j)
    return (one, dot(u, v), last), (done, dot(u, dv) + dot(du, v), dlast), v, dv


@_inline
def _difference(s, u, t, v):  # type: ignore[no-untyped-def]
    """s u − t v."""
    return s * u[0] - t * v[0], s * u[1] - t * v[1], s * u[2] - t * v[2]


@_inline
def _opposite(u, zero):  # type: ignore[no-untyped-def]
    return zero - u[0], zero - u[1], zero - u[2]
