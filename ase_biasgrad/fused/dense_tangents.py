"""Tangents of dense layers, activations and norms, and gradients of their weights.

Instructions take `tangents`, those of the edges, and `gradients`, an array like that of the
weights, beside the arguments of `dense`. Gradients are added to.
"""

from __future__ import annotations

import math

import numpy as np

from ase_biasgrad.fused.dense import SHIFTED_SOFTPLUS
from ase_biasgrad.fused.operations import locate
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.matrix_product import COLUMNS
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total
from ase_biasgrad.numerics.simd_activations import logistic


@compiled()
def zero(row, place, memory):  # type: ignore[no-untyped-def]
    y, nothing = locate(row, 1, place), splat(memory.dtype.type(0))
    for k in range(0, place.size * row[2], WIDTH):
        store(memory, y + k, nothing)


@compiled()
def activate_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """dy = f′(x) dx and df′ = f″(x) dx.

    With the logistic function s: s and s (1 − s), or for SILU s + x s (1 − s) and
    s (1 − s) (2 + x (1 − 2 s)).
    """
    x, dx = locate(row, 1, place), locate(row, 3, place)
    dy, dd, softplus = locate(row, 5, place), locate(row, 7, place), row[9] == SHIFTED_SOFTPLUS
    size, kind = place.size * row[2], memory.dtype
    if memory.itemsize == 4:
        one, two = splat(kind.type(1)), splat(kind.type(2))
        for k in range(0, size, WIDTH):
            v, moved = load(memory, x + k), load(memory, dx + k)
            s = logistic(v)
            slope, bend = s, s * (one - s)
            if not softplus:
                slope, bend = s + v * bend, bend * (two + v * (one - s - s))
            store(memory, dy + k, slope * moved)
            store(memory, dd + k, bend * moved)
        return
    for k in range(size):
        v, moved = memory[x + k], memory[dx + k]
        e = math.exp(-abs(v))
        s = 1 / (1 + e) if v >= 0 else e / (1 + e)
        slope, bend = s, s * (1 - s)
        if not softplus:
            slope, bend = s + v * bend, bend * (2 + v * (1 - 2 * s))
        memory[dy + k], memory[dd + k] = slope * moved, bend * moved


@compiled()
def layer_norm_tangent(row, place, memory, weights):  # type: ignore[no-untyped-def]
    """dx̂ = (dx − mean(dx) − x̂ mean(x̂ dx)) r, dy = w dx̂, dr = −r² mean(x̂ dx).

    r is 1/√(variance + ε).
    """
    dx, unit, inverse = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dy, dunit, dinverse = locate(row, 7, place), locate(row, 9, place), locate(row, 11, place)
    width, w, nothing = row[2], row[13], splat(memory.dtype.type(0))
    share = w + 2 * width
    for a in range(place.size):
        o, mean, along = a * width, nothing, nothing
        for f in range(0, width, WIDTH):
            v = load(weights, share + f) * load(memory, dx + o + f)
            mean, along = mean + v, along + v * load(memory, unit + o + f)
        mean, along = splat(total(mean)), splat(total(along))
        scale = load(memory, inverse + a * WIDTH)
        store(memory, dinverse + a * WIDTH, nothing - scale * scale * along)
        for f in range(0, width, WIDTH):
            v = load(memory, dx + o + f) - mean - along * load(memory, unit + o + f)
            store(memory, dunit + o + f, scale * v)
            store(memory, dy + o + f, scale * v * load(weights, w + f))


@compiled()
def layer_norm_vjp_tangent(row, place, memory, weights):  # type: ignore[no-untyped-def]
    """The change of r (w g − mean(w g) − x̂ mean(w g x̂))."""
    g, unit, inverse = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dg, dunit, dinverse = locate(row, 7, place), locate(row, 9, place), locate(row, 11, place)
    out, width, w, nothing = locate(row, 13, place), row[2], row[15], splat(memory.dtype.type(0))
    share = w + 2 * width
    for a in range(place.size):
        o = a * width
        mean, along, dmean, dalong = nothing, nothing, nothing, nothing
        for f in range(0, width, WIDTH):
            factor = load(weights, share + f) * load(weights, w + f)
            v, dv = factor * load(memory, g + o + f), factor * load(memory, dg + o + f)
            u, du = load(memory, unit + o + f), load(memory, dunit + o + f)
            mean, along = mean + v, along + v * u
            dmean, dalong = dmean + dv, dalong + dv * u + v * du
        mean, along = splat(total(mean)), splat(total(along))
        dmean, dalong = splat(total(dmean)), splat(total(dalong))
        scale, dscale = load(memory, inverse + a * WIDTH), load(memory, dinverse + a * WIDTH)
        for f in range(0, width, WIDTH):
            u, du, factor = (
                load(memory, unit + o + f),
                load(memory, dunit + o + f),
                load(weights, w + f),
            )
            v = dscale * (factor * load(memory, g + o + f) - mean - along * u)
            moved = factor * load(memory, dg + o + f) - dmean - dalong * u - along * du
            v = v + scale * moved
            store(memory, out + o + f, load(memory, out + o + f) + v if row[16] else v)


@compiled()
def embed_gradient(row, place, memory, edges, gradients):  # type: ignore[no-untyped-def]
    g, width = locate(row, 1, place), row[2]
    for a in range(place.size):
        to = row[3] + edges.numbers[place.first + a] * width
        for f in range(0, width, WIDTH):
            store(gradients, to + f, load(gradients, to + f) + load(memory, g + a * width + f))


@compiled()
def linear_gradient(row, place, memory, gradients):  # type: ignore[no-untyped-def]
    """xᵀ dg + dxᵀ g to the panels of W and Σ dg to those of b, for rows as in `dense.linear`."""
    x, dx = locate(row, 1, place), locate(row, 3, place)
    g, dg = locate(row, 5, place), locate(row, 7, place)
    depth, width, lanes, first, group = row[9], row[10], row[11], row[12], row[13]
    rows, block, nothing = place.size * group, lanes * WIDTH, splat(memory.dtype.type(0))
    places = np.empty((2 * rows, 2), np.int64)
    for r in range(rows):
        atom, member = r // group, (first + r % group) * WIDTH
        places[r, 0], places[r, 1] = x + atom * row[2] + member, dg + atom * row[6] + member
        o, q = dx + atom * row[2] + member, g + atom * row[6] + member
        places[rows + r, 0], places[rows + r, 1] = o, q
    for column in range(0, width, COLUMNS):
        to_g = column * lanes
        for k in range(0, depth, 4):
            from_x = k // WIDTH * block + k % WIDTH
            a0, a1, b0, b1 = nothing, nothing, nothing, nothing
            c0, c1, d0, d1 = nothing, nothing, nothing, nothing
            for r in range(2 * rows):
                o, q = places[r, 0] + from_x, places[r, 1] + to_g
                g0, g1 = load(memory, q), load(memory, q + block)
                v0, v1 = splat(memory[o]), splat(memory[o + 1])
                v2, v3 = splat(memory[o + 2]), splat(memory[o + 3])
                a0, a1, b0, b1 = a0 + v0 * g0, a1 + v0 * g1, b0 + v1 * g0, b1 + v1 * g1
                c0, c1, d0, d1 = c0 + v2 * g0, c1 + v2 * g1, d0 + v3 * g0, d1 + v3 * g1
            to = row[14] + column * depth + k * COLUMNS
            _add(gradients, to, a0, a1)
            _add(gradients, to + COLUMNS, b0, b1)
            _add(gradients, to + 2 * COLUMNS, c0, c1)
            _add(gradients, to + 3 * COLUMNS, d0, d1)
        if row[16]:
            a0, a1 = nothing, nothing
            for r in range(rows):
                q = places[r, 1] + to_g
                a0, a1 = a0 + load(memory, q), a1 + load(memory, q + block)
            _add(gradients, row[15] + column, a0, a1)


@compiled(forceinline=True)
def _add(gradients, to, one, two):  # type: ignore[no-untyped-def]
    store(gradients, to, load(gradients, to) + one)
    store(gradients, to + WIDTH, load(gradients, to + WIDTH) + two)


@compiled()
def layer_norm_gradient(row, place, memory, gradients):  # type: ignore[no-untyped-def]
    """Σ (dx̂ g + x̂ dg) to w and Σ dg to b."""
    g, dg, unit = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dunit, width, w = locate(row, 7, place), row[2], row[9]
    for f in range(0, width, WIDTH):
        scale, shift = load(gradients, w + f), load(gradients, w + width + f)
        for a in range(place.size):
            o = a * width + f
            moved = load(memory, dg + o)
            scale = scale + load(memory, dunit + o) * load(memory, g + o)
            scale, shift = scale + load(memory, unit + o) * moved, shift + moved
        store(gradients, w + f, scale)
        store(gradients, w + width + f, shift)


@compiled()
def energies_gradient(row, place, memory, edges, tangents, gradients):  # type: ignore[no-untyped-def]
    """Σ (c dx + x dc) to w and Σ dc to b, with the adjoints c of the energies."""
    x, dx, width = locate(row, 1, place), locate(row, 3, place), row[2]
    for a in range(place.size):
        i = place.first + a
        c = splat(memory.dtype.type(edges.cotangents[i]))
        dc = splat(memory.dtype.type(tangents.cotangents[i]))
        for f in range(0, width, WIDTH):
            v = c * load(memory, dx + a * width + f) + dc * load(memory, x + a * width + f)
            store(gradients, row[5] + f, load(gradients, row[5] + f) + v)
        gradients[row[6]] += memory.dtype.type(tangents.cotangents[i])
