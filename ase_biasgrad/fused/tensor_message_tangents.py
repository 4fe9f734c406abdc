"""Tangents of tensors from elements and directions, and gradients of their weights.

With t the components of T, filters W of their parts, and what is sent to i, h_i = c_i + s_j,

    y_i = Σ_j W t h_i,    P = Σ_f W t · (g_i h_i + σ g_j h_j),

where P is what a pair adds to the product of y with its adjoint g, and σ the parity of components.
Directions move, too: ṫ.
"""

from __future__ import annotations

import math

from ase_biasgrad.fused.cfconv_tangents import add_to, spread_three
from ase_biasgrad.fused.messages import add_components, bent, pair_tensor, splats, three_jets
from ase_biasgrad.fused.operations import locate
from ase_biasgrad.fused.tensors import by_part, components, dots, plus, times
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total

_inline = compiled(forceinline=True)


@compiled()
def tensor_message_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """Σ_j (Ẇ t + W ṫ) h_i."""
    y, width, features, nothing = (
        locate(row, 1, place), row[2], row[2] // 9, splat(memory.dtype.type(0)),
    )  # fmt: skip
    for k in range(0, place.size * width, WIDTH):
        store(memory, y + k, nothing)
    for a in range(place.size):
        i = place.first + a
        for e in range(edges.starts[i], edges.ends[i]):
            if tangents.still[e]:
                continue
            w, dw = splats(edges, e, 0), splats(tangents, e, 0)
            j, at, inner = (
                edges.neighbour[e], row[5] + edges.bin[e] * 3 * features, e < edges.inners[i],
            )  # fmt: skip
            t, dt = _splat_both(edges, tangents, e, memory)
            to, r, tables = (
                y + a * width, y + (j - place.first) * width,
                _tables(row, 3, edges, i, j, features),
            )  # fmt: skip
            for f in range(0, features, WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, 3 * features, w, dw)
                moved = plus(by_part(changes, t), by_part(filters, dt))
                to_i, to_j = _sent(weights, tables, f)
                add_components(memory, to + 9 * f, times(to_i, moved))
                if inner:
                    add_components(memory, r + 9 * f, _turned(times(to_j, moved), nothing))


@compiled()
def tensor_message_vjp_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of distances, Σ_f W′ t · k, and of directions, of t: Σ_f W k.

    k = g_i h_i + σ g_j h_j.
    """
    g, dg, width, step = row[1] * place.n, row[3] * place.n, row[2], row[2] // 9
    kind, adj, nothing = memory.dtype, tangents.adjoints, splat(memory.dtype.type(0))
    two, last = kind.type(math.sqrt(2.0)), kind.type(math.sqrt(1 / 3))
    for i in range(place.first, place.first + place.size):
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, s, ds = (
                splats(edges, e, 0), splats(tangents, e, 0), splats(edges, e, 1),
                splats(tangents, e, 1),
            )  # fmt: skip
            j, at = edges.neighbour[e], row[7] + edges.bin[e] * 3 * step
            t, dt = _splat_both(edges, tangents, e, memory)
            tables, slope = _tables(row, 5, edges, i, j, step), nothing
            d, dd = _zeros(nothing), _zeros(nothing)
            for f in range(0, step, WIDTH):
                to_i, to_j = _sent(weights, tables, f)
                o, q = i * width + 9 * f, j * width + 9 * f
                dk = plus(
                    times(to_i, components(memory, dg + o)),
                    _turned(times(to_j, components(memory, dg + q)), nothing),
                )
                filters, slopes = three_jets(weights, at + 3 * f, 3 * step, w, s)
                dd, moved = plus(dd, by_part(filters, dk)), dots(t, dk)
                for m in range(3):
                    slope = slope + slopes[m] * moved[m]
                if tangents.still[e]:
                    continue
                k = plus(
                    times(to_i, components(memory, g + o)),
                    _turned(times(to_j, components(memory, g + q)), nothing),
                )
                changes, bends = three_jets(weights, at + 3 * f, 3 * step, dw, ds)
                d, dd = plus(d, by_part(filters, k)), plus(dd, by_part(changes, k))
                both, also = dots(t, k), dots(dt, k)
                for m in range(3):
                    slope = slope + (bends[m] * both[m] + slopes[m] * also[m])
            adj[e, 0] += total(slope)
            x, y, z = edges.unit[e, 0], edges.unit[e, 1], edges.unit[e, 2]
            dx, dy, dz = tangents.unit[e, 0], tangents.unit[e, 1], tangents.unit[e, 2]
            of_u = bent(
                total(dd[4]), total(dd[5]), total(dd[6]), total(dd[7]), last * total(dd[8]), x, y, z
            )
            of_change = bent(
                total(d[4]), total(d[5]), total(d[6]), total(d[7]), last * total(d[8]), dx, dy, dz
            )
            adj[e, 1] += two * (total(dd[1]) + of_u[0] + of_change[0])
            adj[e, 2] += two * (total(dd[2]) + of_u[1] + of_change[1])
            adj[e, 3] += two * (total(dd[3]) + of_u[2] + of_change[2])


@compiled()
def tensor_message_gradient(row, place, memory, weights, edges, tangents, gradients):  # type: ignore[no-untyped-def]
    """Gradients of tables, coefficients and W(0)."""
    g, dg, width, step = row[1] * place.n, row[3] * place.n, row[2], row[2] // 9
    nothing = splat(memory.dtype.type(0))
    for i in range(place.first, place.first + place.size):
        of_i = edges.numbers[i] * step
        for f in range(0, step, WIDTH):
            moved, c, s = load(memory, dg + i * width + 9 * f), row[5] + of_i + f, row[6] + of_i + f
            add_to(gradients, row[8] + f, moved * (load(weights, c) + load(weights, s)))
            moved = moved * load(weights, row[8] + f)
            add_to(gradients, c, moved)
            add_to(gradients, s, moved)
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw = splats(edges, e, 0), splats(tangents, e, 0)
            j, at = edges.neighbour[e], row[7] + edges.bin[e] * 3 * step
            tables = _tables(row, 5, edges, i, j, step)
            t, dt = _splat_both(edges, tangents, e, memory)
            for f in range(0, step, WIDTH):
                o, q = i * width + 9 * f, j * width + 9 * f
                a, da = _along(memory, t, dt, g + o, dg + o)
                (b0, b1, b2), (db0, db1, db2) = _along(memory, t, dt, g + q, dg + q)
                b, db = (b0, nothing - b1, b2), (db0, nothing - db1, db2)
                filters, changes = three_jets(weights, at + 3 * f, 3 * step, w, dw)
                to_i, to_j = _sent(weights, tables, f)
                of_sent = _change(filters, changes, a, da)
                add_to(gradients, tables[0] + f, of_sent)
                add_to(gradients, tables[1] + f, of_sent)
                of_sent = _change(filters, changes, b, db)
                add_to(gradients, tables[2] + f, of_sent)
                add_to(gradients, tables[3] + f, of_sent)
                both = _combined(to_i, a, to_j, b)
                spread_three(
                    gradients, at + 3 * f, 3 * step, w, _combined(to_i, da, to_j, db), dw, both
                )


@_inline
def _tables(row, k, edges, i, j, features):  # type: ignore[no-untyped-def]
    """Places of c_i, s_j, c_j, s_i, with those of the tables at numbers k and k + 1."""
    of_i, of_j = edges.numbers[i] * features, edges.numbers[j] * features
    return row[k] + of_i, row[k + 1] + of_j, row[k] + of_j, row[k + 1] + of_i


@_inline
def _sent(weights, tables, f):  # type: ignore[no-untyped-def]
    """h_i and h_j."""
    to_i = load(weights, tables[0] + f) + load(weights, tables[1] + f)
    return to_i, load(weights, tables[2] + f) + load(weights, tables[3] + f)


@_inline
def _splat_both(edges, tangents, e, memory):  # type: ignore[no-untyped-def]
    """t and ṫ."""
    kind, u, du = memory.dtype, edges.unit, tangents.unit
    t = pair_tensor(u, e, memory)
    x, y, z, dx, dy, dz = u[e, 0], u[e, 1], u[e, 2], du[e, 0], du[e, 1], du[e, 2]
    two, last = kind.type(math.sqrt(2.0)), kind.type(math.sqrt(1 / 6))
    along = z * dz + z * dz - x * dx - y * dy
    return (
        (splat(t[0]), splat(t[1]), splat(t[2]), splat(t[3]), splat(t[4]), splat(t[5]), splat(t[6]),
         splat(t[7]), splat(t[8])),
        (splat(kind.type(0)), splat(two * dx), splat(two * dy), splat(two * dz),
         splat(two * (dx * y + x * dy)), splat(two * (dy * z + y * dz)),
         splat(two * (dx * z + x * dz)), splat(two * (x * dx - y * dy)),
         splat(last * (along + along))),
    )  # fmt: skip


@_inline
def _turned(c, nothing):  # type: ignore[no-untyped-def]
    """Components of the opposite direction."""
    return c[0], nothing - c[1], nothing - c[2], nothing - c[3], c[4], c[5], c[6], c[7], c[8]


@_inline
def _zeros(nothing):  # type: ignore[no-untyped-def]
    return nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing


@_inline
def _along(memory, t, dt, g, dg):  # type: ignore[no-untyped-def]
    """t · g and ṫ · g + t · ġ of each part."""
    of_g = components(memory, g)
    (a0, a1, a2), (_, b1, b2) = dots(t, of_g), dots(dt, of_g)
    c0, c1, c2 = dots(t, components(memory, dg))
    return (a0, a1, a2), (c0, b1 + c1, b2 + c2)


@_inline
def _change(filters, changes, a, da):  # type: ignore[no-untyped-def]
    """The change of W · a."""
    v = changes[0] * a[0] + changes[1] * a[1] + changes[2] * a[2]
    return v + (filters[0] * da[0] + filters[1] * da[1] + filters[2] * da[2])


@_inline
def _combined(one, a, two, b):  # type: ignore[no-untyped-def]
    return one * a[0] + two * b[0], one * a[1] + two * b[1], one * a[2] + two * b[2]
