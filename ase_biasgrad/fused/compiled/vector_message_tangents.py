"""Tangents of PaiNN's messages, and gradients of their filters.

With adjoints g of q_i and b of μ_i, what a pair adds to the products with them is Σ_f W · P with

    P¹ = g_i x¹_j + g_j x¹_i,    P² = u · v,    P³ = x³_j b_i · μ_j + x³_i b_j · μ_i,

where v = x²_j b_i − x²_i b_j. Without vectors μ, x does not move.
"""

from __future__ import annotations

from ase_biasgrad.fused.compiled.cfconv_tangents import add_to, spread, spread_three
from ase_biasgrad.fused.compiled.messages import (
    direction,
    dot,
    plus_scaled,
    splats,
    store_three,
    three_jets,
)
from ase_biasgrad.fused.compiled.operations import locate
from ase_biasgrad.fused.compiled.tensors import three
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
    gq, dgq, gmu, dgmu = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    mu, dmu, x, dx = row[9] * place.n, row[11] * place.n, row[13] * place.n, row[15] * place.n
    width, step, carries, zero = row[2], row[14], row[24] == 1, splat(memory.dtype.type(0))
    _start(row, place, memory)
    for a in range(place.size):
        i = place.first + a
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, s, ds = (
                splats(edges, e, 0), splats(tangents, e, 0), splats(edges, e, 1),
                splats(tangents, e, 1),
            )  # fmt: skip
            u, du, j = direction(edges, e), direction(tangents, e), edges.neighbour[e]
            back, dback = _opposite(u, zero), _opposite(du, zero)
            at, inner, slope = row[23] + edges.bin[e] * step, e < edges.inners[i], zero
            along = zero, zero, zero
            for f in range(0, width, WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
                _receive(row, place, memory, a, j, f, filters, changes, back, dback)
                if inner:
                    _receive(row, place, memory, j - place.first, i, f, filters, changes, u, du)
                both, moved, v, dv = _products(
                    memory, gq, dgq, gmu, dgmu, mu, dmu, x, dx, i * width + f, j * width + f,
                    i * step + 3 * f, j * step + 3 * f, u, du, carries,
                )  # fmt: skip
                along = plus_scaled(plus_scaled(along, changes[1], v), filters[1], dv)
                slopes, bends = three_jets(weights, at + 3 * f, step, s, ds)
                slope = slope + dot(bends, both) + dot(slopes, moved)
            tangents.adjoints[e, 0] += total(slope)
            tangents.adjoints[e, 1] += total(along[0])
            tangents.adjoints[e, 2] += total(along[1])
            tangents.adjoints[e, 3] += total(along[2])
        _receive_lower(row, place, a, memory, weights, edges, tangents)
    _end(row, place, memory)


@compiled()
def vector_message_gradient(row, place, memory, weights, edges, tangents, gradients):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of μ and x, and gradients of the coefficients."""
    gq, dgq, gmu, dgmu = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    mu, dmu, x, dx = row[9] * place.n, row[11] * place.n, row[13] * place.n, row[15] * place.n
    width, step, carries, zero = row[2], row[14], row[24] == 1, splat(memory.dtype.type(0))
    _start(row, place, memory)
    for a in range(place.size):
        i = place.first + a
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, j = splats(edges, e, 0), splats(tangents, e, 0), edges.neighbour[e]
            u, du = direction(edges, e), direction(tangents, e)
            back, dback = _opposite(u, zero), _opposite(du, zero)
            at, inner = row[23] + edges.bin[e] * step, e < edges.inners[i]
            for f in range(0, width, WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
                _receive(row, place, memory, a, j, f, filters, changes, back, dback)
                if inner:
                    _receive(row, place, memory, j - place.first, i, f, filters, changes, u, du)
                both, moved, _, _ = _products(
                    memory, gq, dgq, gmu, dgmu, mu, dmu, x, dx, i * width + f, j * width + f,
                    i * step + 3 * f, j * step + 3 * f, u, du, carries,
                )  # fmt: skip
                if carries:
                    spread_three(gradients, at + 3 * f, step, w, moved, dw, both)
                else:
                    spread(gradients, at + 3 * f, step, w, moved[0], dw, both[0])
                    spread(gradients, at + 3 * f + WIDTH, step, w, moved[1], dw, both[1])
        _receive_lower(row, place, a, memory, weights, edges, tangents)
    _end(row, place, memory)


@_inline
def _start(row, place, memory):  # type: ignore[no-untyped-def]
    """Zero h, ḣ and the tangents of the adjoints of x, where they are wanted."""
    out_mu, out_x, h = locate(row, 17, place), locate(row, 19, place), locate(row, 21, place)
    zero = splat(memory.dtype.type(0))
    if row[24]:
        for k in range(0, place.size * row[14], WIDTH):
            store(memory, out_x + k, zero)
            if row[24] == 1:
                store(memory, out_mu + k, zero)
                store(memory, h + k, zero)


@_inline
def _receive(row, place, memory, a, j, f, filters, changes, u, du):  # type: ignore[no-untyped-def]
    """Add to those of atom a of the chunk what comes from j, with the direction u from j to it.

    To those of x¹ and x² (W¹ g_j)˙ and (W² u · b_j)˙, to h W³ b_j and to ḣ its change.
    """
    if row[24]:
        o, here = j * row[14] + 3 * f, a * row[14] + 3 * f
        out_x = locate(row, 19, place) + here
        b = three(memory, row[5] * place.n + o, WIDTH)
        db = three(memory, row[7] * place.n + o, WIDTH)
        q = j * row[2] + f
        one = filters[0] * load(memory, row[3] * place.n + q)
        add_to(memory, out_x, one + changes[0] * load(memory, row[1] * place.n + q))
        two = filters[1] * (dot(u, db) + dot(du, b))
        add_to(memory, out_x + WIDTH, two + changes[1] * dot(u, b))
        if row[24] == 1:
            dh, h = locate(row, 17, place) + here, locate(row, 21, place) + here
            moved = plus_scaled(three(memory, dh, WIDTH), changes[2], b)
            store_three(memory, dh, plus_scaled(moved, filters[2], db))
            store_three(memory, h, plus_scaled(three(memory, h, WIDTH), filters[2], b))


@_inline
def _receive_lower(row, place, a, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    i, step, zero = place.first + a, row[14], splat(memory.dtype.type(0))
    if row[24]:
        for e in range(edges.middles[i], edges.ends[i]):
            w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[23] + edges.bin[e] * step
            back = _opposite(direction(edges, e), zero)
            dback = _opposite(direction(tangents, e), zero)
            for f in range(0, row[2], WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
                _receive(
                    row, place, memory, a, edges.neighbour[e], f, filters, changes, back, dback
                )


@_inline
def _end(row, place, memory):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of x³ and μ: (μ · h)˙ and ḃ + (x³ h)˙."""
    if row[24] == 1:
        out_mu, out_x, h = locate(row, 17, place), locate(row, 19, place), locate(row, 21, place)
        mu, dmu, x, dx = row[9] * place.n, row[11] * place.n, row[13] * place.n, row[15] * place.n
        for k in range(0, place.size * row[14], 3 * WIDTH):
            o = place.first * row[14] + k
            v, dv = three(memory, h + k, WIDTH), three(memory, out_mu + k, WIDTH)
            of_x = dot(v, three(memory, dmu + o, WIDTH)) + dot(dv, three(memory, mu + o, WIDTH))
            store(memory, out_x + k + 2 * WIDTH, of_x)
            carried, change = load(memory, x + o + 2 * WIDTH), load(memory, dx + o + 2 * WIDTH)
            moved = plus_scaled(three(memory, row[7] * place.n + o, WIDTH), change, v)
            store_three(memory, out_mu + k, plus_scaled(moved, carried, dv))


@_inline
def _products(memory, gq, dgq, gmu, dgmu, mu, dmu, x, dx, ki, kj, o, p, u, du, carries):  # type: ignore[no-untyped-def]
    """P and its change, v and its change."""
    zero = splat(memory.dtype.type(0))
    gi, gj, dgi, dgj = (
        load(memory, gq + ki), load(memory, gq + kj), load(memory, dgq + ki), load(memory, dgq + kj)
    )  # fmt: skip
    bi, bj = three(memory, gmu + o, WIDTH), three(memory, gmu + p, WIDTH)
    dbi, dbj = three(memory, dgmu + o, WIDTH), three(memory, dgmu + p, WIDTH)
    xi, xj = three(memory, x + o, WIDTH), three(memory, x + p, WIDTH)
    none = zero, zero, zero
    v = plus_scaled(plus_scaled(none, xj[1], bi), zero - xi[1], bj)
    dv = plus_scaled(plus_scaled(none, xj[1], dbi), zero - xi[1], dbj)
    one, done = gi * xj[0] + gj * xi[0], dgi * xj[0] + dgj * xi[0]
    last, dlast = zero, zero
    if carries:
        dxi, dxj = three(memory, dx + o, WIDTH), three(memory, dx + p, WIDTH)
        done = done + (gi * dxj[0] + gj * dxi[0])
        dv = plus_scaled(plus_scaled(dv, dxj[1], bi), zero - dxi[1], bj)
        mi, mj = three(memory, mu + o, WIDTH), three(memory, mu + p, WIDTH)
        to_i, to_j = dot(bi, mj), dot(bj, mi)
        last = xj[2] * to_i + xi[2] * to_j
        dlast = dxj[2] * to_i + dxi[2] * to_j
        to_i = dot(dbi, mj) + dot(bi, three(memory, dmu + p, WIDTH))
        to_j = dot(dbj, mi) + dot(bj, three(memory, dmu + o, WIDTH))
        dlast = dlast + (xj[2] * to_i + xi[2] * to_j)
    return (one, dot(u, v), last), (done, dot(u, dv) + dot(du, v), dlast), v, dv


@_inline
def _opposite(u, zero):  # type: ignore[no-untyped-def]
    return zero - u[0], zero - u[1], zero - u[2]
