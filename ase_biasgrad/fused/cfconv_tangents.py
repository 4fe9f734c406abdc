"""Tangents of continuous-filter convolutions of features and tensors, and their gradients.

Filters W and slopes W′ at an edge change by Ẇ and Ẇ′: splines with the same coefficients and the
weights of `tangents`. Upper edges get the change of their adjoints, or for training give the
gradients of the coefficients: those of a product P at a distance with weights w are w Ṗ + ẇ P.
"""

from __future__ import annotations

from ase_biasgrad.fused.messages import (
    add_by_part,
    add_components,
    jet,
    sampled,
    splats,
    three_jets,
    three_sampled,
)
from ase_biasgrad.fused.operations import locate
from ase_biasgrad.fused.tensors import by_part, components, dots, plus, store_components, three
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total

_inline = compiled(forceinline=True)


@compiled()
def cfconv_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """Σ_j Ẇ_ij x_j + W_ij ẋ_j."""
    x, dx, y = row[1] * place.n, row[3] * place.n, locate(row, 5, place)
    width, zero, moves = row[2], splat(memory.dtype.type(0)), row[8]
    for k in range(0, place.size * width, WIDTH):
        store(memory, y + k, zero)
    for a in range(place.size):
        i, to = place.first + a, y + a * width
        for e in range(edges.starts[i], edges.ends[i]):
            if tangents.still[e] and not moves:
                continue
            w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[7] + edges.bin[e] * width
            j, inner = edges.neighbour[e], e < edges.inners[i]
            o, q, r = i * width, j * width, y + (j - place.first) * width
            if tangents.still[e]:
                for f in range(0, width, WIDTH):
                    filter = sampled(weights, at + f, width, w)
                    add_to(memory, to + f, filter * load(memory, dx + q + f))
                    if inner:
                        add_to(memory, r + f, filter * load(memory, dx + o + f))
            elif moves:
                for f in range(0, width, WIDTH):
                    filter, change = jet(weights, at + f, width, w, dw)
                    _add_change(memory, to + f, change, x + q + f, filter, dx + q + f)
                    if inner:
                        _add_change(memory, r + f, change, x + o + f, filter, dx + o + f)
            else:
                for f in range(0, width, WIDTH):
                    change = sampled(weights, at + f, width, dw)
                    add_to(memory, to + f, change * load(memory, x + q + f))
                    if inner:
                        add_to(memory, r + f, change * load(memory, x + o + f))


@compiled()
def cfconv_vjp_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of x, Σ_j Ẇ g_j + W ġ_j, and of distances, of Σ_f W′ P.

    P = g_i x_j + g_j x_i.
    """
    g, dg, x, dx = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    width, wanted, nothing = row[2], row[12] < 2, splat(memory.dtype.type(0))
    out = _cfconv_start(row, place, memory)
    for a in range(place.size):
        i, to = place.first + a, out + a * width
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[11] + edges.bin[e] * width
            s, ds, slope = splats(edges, e, 1), splats(tangents, e, 1), nothing
            j, inner = edges.neighbour[e], e < edges.inners[i]
            o, q, r = i * width, j * width, out + (j - place.first) * width
            for f in range(0, width, WIDTH):
                both, moved = _products(memory, g, dg, x, dx, o + f, q + f)
                if tangents.still[e]:
                    filter, change = jet(weights, at + f, width, w, s)
                    slope = slope + change * moved
                    if wanted:
                        add_to(memory, to + f, filter * load(memory, dg + q + f))
                        if inner:
                            add_to(memory, r + f, filter * load(memory, dg + o + f))
                    continue
                if wanted:
                    filter, change = jet(weights, at + f, width, w, dw)
                    _add_change(memory, to + f, change, g + q + f, filter, dg + q + f)
                    if inner:
                        _add_change(memory, r + f, change, g + o + f, filter, dg + o + f)
                filter, change = jet(weights, at + f, width, s, ds)
                slope = slope + (change * both + filter * moved)
            tangents.adjoints[e, 0] += total(slope)
        if wanted:
            _cfconv_lower(row, i, to, g, dg, memory, weights, edges, tangents)


@compiled()
def cfconv_gradient(row, place, memory, weights, edges, tangents, gradients):  # type: ignore[no-untyped-def]
    """Tangent of the adjoint of x, and gradients of the coefficients."""
    g, dg, x, dx = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    width, wanted, out = row[2], row[12] < 2, _cfconv_start(row, place, memory)
    for a in range(place.size):
        i, to = place.first + a, out + a * width
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[11] + edges.bin[e] * width
            j, inner = edges.neighbour[e], e < edges.inners[i]
            o, q, r = i * width, j * width, out + (j - place.first) * width
            for f in range(0, width, WIDTH):
                if wanted:
                    filter, change = jet(weights, at + f, width, w, dw)
                    _add_change(memory, to + f, change, g + q + f, filter, dg + q + f)
                    if inner:
                        _add_change(memory, r + f, change, g + o + f, filter, dg + o + f)
                both, moved = _products(memory, g, dg, x, dx, o + f, q + f)
                spread(gradients, at + f, width, w, moved, dw, both)
        if wanted:
            _cfconv_lower(row, i, to, g, dg, memory, weights, edges, tangents)


@_inline
def _cfconv_start(row, place, memory):  # type: ignore[no-untyped-def]
    """Place of the tangents of the adjoints of x, zero or those that are there."""
    out, nothing = locate(row, 9, place), splat(memory.dtype.type(0))
    if row[12] == 0:
        for k in range(0, place.size * row[2], WIDTH):
            store(memory, out + k, nothing)
    return out


@_inline
def _cfconv_lower(row, i, to, g, dg, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    width = row[2]
    for e in range(edges.middles[i], edges.ends[i]):
        w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[11] + edges.bin[e] * width
        q = edges.neighbour[e] * width
        for f in range(0, width, WIDTH):
            filter, change = jet(weights, at + f, width, w, dw)
            _add_change(memory, to + f, change, g + q + f, filter, dg + q + f)


@_inline
def _add_change(memory, to, change, x, filter, dx):  # type: ignore[no-untyped-def]
    """Add Ẇ x + W ẋ."""
    add_to(memory, to, change * load(memory, x) + filter * load(memory, dx))


@_inline
def _products(memory, g, dg, x, dx, o, q):  # type: ignore[no-untyped-def]
    """g_i x_j + g_j x_i and its change, of atoms at o and q."""
    gi, gj, xi, xj = (
        load(memory, g + o), load(memory, g + q), load(memory, x + o), load(memory, x + q),
    )  # fmt: skip
    moved = load(memory, dg + o) * xj + gi * load(memory, dx + q)
    moved = moved + (load(memory, dg + q) * xi + gj * load(memory, dx + o))
    return gi * xj + gj * xi, moved


@compiled()
def tensor_cfconv_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """Σ_j Ẇ_ij x_j + W_ij ẋ_j + W(0) ẋ_i."""
    x, dx, y = row[1] * place.n, row[3] * place.n, locate(row, 5, place)
    width, step = row[2], row[2] // 3
    _add_own(memory, weights, row[8], dx, y, width, 0, place)
    for a in range(place.size):
        i, to = place.first + a, y + a * width
        for e in range(edges.starts[i], edges.ends[i]):
            w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[7] + edges.bin[e] * step
            j, inner = edges.neighbour[e], e < edges.inners[i]
            o, q, r = i * width, j * width, y + (j - place.first) * width
            if tangents.still[e]:
                for f in range(0, width // 9, WIDTH):
                    filters = three_sampled(weights, at + 3 * f, step, w)
                    add_by_part(memory, to + 9 * f, filters, dx + q + 9 * f)
                    if inner:
                        add_by_part(memory, r + 9 * f, filters, dx + o + 9 * f)
                continue
            for f in range(0, width // 9, WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
                _add_both(memory, to + 9 * f, changes, x + q + 9 * f, filters, dx + q + 9 * f)
                if inner:
                    _add_both(memory, r + 9 * f, changes, x + o + 9 * f, filters, dx + o + 9 * f)


@compiled()
def tensor_cfconv_vjp_tangent(row, place, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    """Tangents of the adjoints of x, Σ_j Ẇ g_j + W ġ_j + W(0) ġ_i, and of distances, of Σ_f W′ P.

    P = g_i · x_j + g_j · x_i for each irreducible part.
    """
    g, dg, x, dx = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    out, width, step = locate(row, 9, place), row[2], row[2] // 3
    _add_own(memory, weights, row[12], dg, out, width, row[13], place)
    for a in range(place.size):
        i, to = place.first + a, out + a * width
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[11] + edges.bin[e] * step
            s, ds, slope = splats(edges, e, 1), splats(tangents, e, 1), splat(memory.dtype.type(0))
            j, inner = edges.neighbour[e], e < edges.inners[i]
            o, q, r = i * width, j * width, out + (j - place.first) * width
            if tangents.still[e]:
                for f in range(0, width // 9, WIDTH):
                    filters, slopes = three_jets(weights, at + 3 * f, step, w, s)
                    add_by_part(memory, to + 9 * f, filters, dg + q + 9 * f)
                    if inner:
                        add_by_part(memory, r + 9 * f, filters, dg + o + 9 * f)
                    _, moved = _tensor_products(memory, g, dg, x, dx, o + 9 * f, q + 9 * f)
                    for k in range(3):
                        slope = slope + slopes[k] * moved[k]
                tangents.adjoints[e, 0] += total(slope)
                continue
            for f in range(0, width // 9, WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
                _add_both(memory, to + 9 * f, changes, g + q + 9 * f, filters, dg + q + 9 * f)
                if inner:
                    _add_both(memory, r + 9 * f, changes, g + o + 9 * f, filters, dg + o + 9 * f)
                slopes, bends = three_jets(weights, at + 3 * f, step, s, ds)
                both, moved = _tensor_products(memory, g, dg, x, dx, o + 9 * f, q + 9 * f)
                for k in range(3):
                    slope = slope + (bends[k] * both[k] + slopes[k] * moved[k])
            tangents.adjoints[e, 0] += total(slope)
        _tensor_cfconv_lower(row, i, to, g, dg, memory, weights, edges, tangents)


@compiled()
def tensor_cfconv_gradient(row, place, memory, weights, edges, tangents, gradients):  # type: ignore[no-untyped-def]
    """Tangent of the adjoint of x, and gradients of the coefficients and of W(0)."""
    g, dg, x, dx = row[1] * place.n, row[3] * place.n, row[5] * place.n, row[7] * place.n
    out, width, step = locate(row, 9, place), row[2], row[2] // 3
    _add_own(memory, weights, row[12], dg, out, width, row[13], place)
    for a in range(place.size):
        i, to = place.first + a, out + a * width
        for f in range(0, width // 9, WIDTH):
            o = i * width + 9 * f
            of_g, of_x = components(memory, g + o), components(memory, x + o)
            moved = dots(components(memory, dg + o), of_x)
            also = dots(of_g, components(memory, dx + o))
            for k in range(3):
                add_to(gradients, row[12] + k * (width // 9) + f, moved[k] + also[k])
        for e in range(edges.starts[i], edges.middles[i]):
            w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[11] + edges.bin[e] * step
            j, inner = edges.neighbour[e], e < edges.inners[i]
            o, q, r = i * width, j * width, out + (j - place.first) * width
            for f in range(0, width // 9, WIDTH):
                filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
                _add_both(memory, to + 9 * f, changes, g + q + 9 * f, filters, dg + q + 9 * f)
                if inner:
                    _add_both(memory, r + 9 * f, changes, g + o + 9 * f, filters, dg + o + 9 * f)
                both, moved = _tensor_products(memory, g, dg, x, dx, o + 9 * f, q + 9 * f)
                spread_three(gradients, at + 3 * f, step, w, moved, dw, both)
        _tensor_cfconv_lower(row, i, to, g, dg, memory, weights, edges, tangents)


@_inline
def _add_own(memory, weights, own, x, y, width, more, place):  # type: ignore[no-untyped-def]
    """Store W(0) x, or add it to what is there."""
    for f in range(0, width // 9, WIDTH):
        factors = three(weights, own + f, width // 9)
        for a in range(place.size):
            mine = by_part(factors, components(memory, x + (place.first + a) * width + 9 * f))
            to = y + a * width + 9 * f
            if more:
                mine = plus(mine, components(memory, to))
            store_components(memory, to, mine)


@_inline
def _tensor_cfconv_lower(row, i, to, g, dg, memory, weights, edges, tangents):  # type: ignore[no-untyped-def]
    width, step = row[2], row[2] // 3
    for e in range(edges.middles[i], edges.ends[i]):
        w, dw, at = splats(edges, e, 0), splats(tangents, e, 0), row[11] + edges.bin[e] * step
        q = edges.neighbour[e] * width
        if tangents.still[e]:
            for f in range(0, width // 9, WIDTH):
                filters = three_sampled(weights, at + 3 * f, step, w)
                add_by_part(memory, to + 9 * f, filters, dg + q + 9 * f)
            continue
        for f in range(0, width // 9, WIDTH):
            filters, changes = three_jets(weights, at + 3 * f, step, w, dw)
            _add_both(memory, to + 9 * f, changes, g + q + 9 * f, filters, dg + q + 9 * f)


@_inline
def _add_both(memory, to, changes, x, filters, dx):  # type: ignore[no-untyped-def]
    v = by_part(changes, components(memory, x))
    add_components(memory, to, plus(v, by_part(filters, components(memory, dx))))


@_inline
def _tensor_products(memory, g, dg, x, dx, o, q):  # type: ignore[no-untyped-def]
    """g_i · x_j + g_j · x_i and its change, of each part."""
    of_g, of_x = components(memory, g + o), components(memory, x + q)
    a0, a1, a2 = dots(of_g, of_x)
    b0, b1, b2 = dots(components(memory, dg + o), of_x)
    c0, c1, c2 = dots(of_g, components(memory, dx + q))
    of_g, of_x = components(memory, g + q), components(memory, x + o)
    d0, d1, d2 = dots(of_g, of_x)
    e0, e1, e2 = dots(components(memory, dg + q), of_x)
    f0, f1, f2 = dots(of_g, components(memory, dx + o))
    moved = (b0 + c0) + (e0 + f0), (b1 + c1) + (e1 + f1), (b2 + c2) + (e2 + f2)
    return (a0 + d0, a1 + d1, a2 + d2), moved


@_inline
def add_to(array, at, v):  # type: ignore[no-untyped-def]
    store(array, at, load(array, at) + v)


@_inline
def spread(c, at, step, w, one, dw, two):  # type: ignore[no-untyped-def]
    """Add w × one + dw × two to six coefficients: the transpose of `jet`."""
    add_to(c, at, w[0] * one + dw[0] * two)
    add_to(c, at + step, w[1] * one + dw[1] * two)
    add_to(c, at + 2 * step, w[2] * one + dw[2] * two)
    add_to(c, at + 3 * step, w[3] * one + dw[3] * two)
    add_to(c, at + 4 * step, w[4] * one + dw[4] * two)
    add_to(c, at + 5 * step, w[5] * one + dw[5] * two)


@_inline
def spread_three(c, at, step, w, one, dw, two):  # type: ignore[no-untyped-def]
    spread(c, at, step, w, one[0], dw, two[0])
    spread(c, at + WIDTH, step, w, one[1], dw, two[1])
    spread(c, at + 2 * WIDTH, step, w, one[2], dw, two[2])
