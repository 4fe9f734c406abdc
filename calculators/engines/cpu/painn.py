"""PaiNN's energies and derivatives on a CPU, written out.

Scalars q `(n, F)`, vectors μ `(3 n, F)`, row 3 i + k for component k of atom i. An interaction
adds messages of x = context(q) `(n, 3 F)` under the filters w1, w2, w3 of the distance and the
unit vector u from i to j,

    q_i += Σ_j w1 ∘ x1_j,    μ_i += Σ_j (w2 ∘ x2_j) u + w3 ∘ x3_j ∘ μ_j,

and the mixing, with V, W = μ M and a = mixing(q, |V|),

    q += a1 + a2 ∘ Σ_k V_k W_k,    μ += a3 ∘ W.

Formulas: Schütt, Unke, Gastegger 2021. Filters are spline coefficients `(k, 3 F)`. Blocks as
in `schnet.py`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ase_biasgrad.calculators.engines.cpu.matrix_product import product
from ase_biasgrad.calculators.engines.cpu.rows import (
    CHUNK,
    add_bias,
    add_to,
    add_up,
    embed,
    multiply_rows,
    read_out,
)
from ase_biasgrad.calculators.engines.cpu.splines import (
    no_sums,
    sample,
    sample_and_add,
    slope_weights,
    total_slope,
    value_weights,
)
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, square_root, store, total
from ase_biasgrad.numerics.simd_activations import silu

ZERO = np.float32(0)


@compiled(error_model="numpy")  # coincident atoms: NaN, which is reported
def unit(vectors, p):  # type: ignore[no-untyped-def]
    """Components of the unit vector of pair p, each in all places of a vector."""
    d = vectors[p, 3]
    return (
        splat(np.float32(vectors[p, 0] / d)),
        splat(np.float32(vectors[p, 1] / d)),
        splat(np.float32(vectors[p, 2] / d)),
    )


@compiled()
def message(x, mu, filters, atoms, bin, t, vectors, first, last, scalars, out):  # type: ignore[no-untyped-def]
    """Messages of pairs first to last and their mirrors: scalars `(n, F)`, out `(3 n, F)`."""
    width = mu.shape[1]
    stride = 3 * width
    scalars[:] = 0
    out[:] = 0
    for p in range(first, last):
        i, j, weights = atoms[p, 0] * width, atoms[p, 1] * width, value_weights(t[p])
        c = bin[p] * stride
        ux, uy, uz = unit(vectors, p)
        for f in range(0, width, WIDTH):
            w1 = sample(filters, c + f, stride, weights)
            w2 = sample(filters, c + width + f, stride, weights)
            w3 = sample(filters, c + 2 * width + f, stride, weights)
            xi, xj, vi, vj = 3 * i + f, 3 * j + f, 3 * i + f, 3 * j + f
            store(scalars, i + f, load(scalars, i + f) + w1 * load(x, xj))
            a, b = w2 * load(x, xj + width), w3 * load(x, xj + 2 * width)
            _add_vector(out, vi, width, a * ux, a * uy, a * uz, b, mu, vj)
            store(scalars, j + f, load(scalars, j + f) + w1 * load(x, xi))
            a, b = splat(ZERO) - w2 * load(x, xi + width), w3 * load(x, xi + 2 * width)
            _add_vector(out, vj, width, a * ux, a * uy, a * uz, b, mu, vi)


@compiled()
def _add_vector(out, at, width, ax, ay, az, b, mu, of):  # type: ignore[no-untyped-def]
    """out += a + b ∘ μ for the three components of one atom."""
    store(out, at, load(out, at) + ax + b * load(mu, of))
    store(out, at + width, load(out, at + width) + ay + b * load(mu, of + width))
    at, of = at + 2 * width, of + 2 * width
    store(out, at, load(out, at) + az + b * load(mu, of))


@compiled()
def first_message(x, filters, atoms, bin, t, vectors, first, last, scalars, out):  # type: ignore[no-untyped-def]
    """Messages of the first interaction, where all vectors are zero."""
    width = out.shape[1]
    stride = 3 * width
    scalars[:] = 0
    out[:] = 0
    for p in range(first, last):
        i, j, weights = atoms[p, 0] * width, atoms[p, 1] * width, value_weights(t[p])
        c = bin[p] * stride
        ux, uy, uz = unit(vectors, p)
        for f in range(0, width, WIDTH):
            w1 = sample(filters, c + f, stride, weights)
            w2 = sample(filters, c + width + f, stride, weights)
            xi, xj = 3 * i + f, 3 * j + f
            store(scalars, i + f, load(scalars, i + f) + w1 * load(x, xj))
            store(scalars, j + f, load(scalars, j + f) + w1 * load(x, xi))
            a, b = w2 * load(x, xj + width), w2 * load(x, xi + width)
            for k in range(3):
                u = ux if k == 0 else (uy if k == 1 else uz)
                store(out, xi + k * width, load(out, xi + k * width) + a * u)
                store(out, xj + k * width, load(out, xj + k * width) - b * u)


@compiled()
def message_vjp(  # type: ignore[no-untyped-def]
    x, mu, adj_q, adj_mu, filters, atoms, bin, t, vectors, first, last, out_x, out_mu,
    adj_distances, adj_units,
):  # fmt: skip
    """VJP of `message`: from ∂E/∂q and ∂E/∂μ, out_x = ∂E/∂x `(n, 3 F)`, out_mu = ∂E/∂μ of the
    messages' senders `(3 n, F)`; adj_distances += ∂E/∂d in grid spacings, adj_units += ∂E/∂u."""
    width = mu.shape[1]
    stride = 3 * width
    out_x[:] = 0
    out_mu[:] = 0
    for p in range(first, last):
        i, j = atoms[p, 0] * width, atoms[p, 1] * width
        weights, sums = value_weights(t[p]), no_sums()
        c = bin[p] * stride
        ux, uy, uz = unit(vectors, p)
        tx, ty, tz = splat(ZERO), splat(ZERO), splat(ZERO)
        for f in range(0, width, WIDTH):
            wi, wj = 3 * i + f, 3 * j + f  # rows of atoms in x and, component x, in μ
            gix, giy, giz = load(adj_mu, wi), load(adj_mu, wi + width), load(adj_mu, wi + 2 * width)
            gjx, gjy, gjz = load(adj_mu, wj), load(adj_mu, wj + width), load(adj_mu, wj + 2 * width)
            # scalar messages
            gi, gj = load(adj_q, i + f), load(adj_q, j + f)
            along = load(x, wj) * gi + load(x, wi) * gj
            w, sums = sample_and_add(filters, c + f, stride, weights, along, sums)
            store(out_x, wj, load(out_x, wj) + w * gi)
            store(out_x, wi, load(out_x, wi) + w * gj)
            # messages along the unit vector
            ai, aj = wi + width, wj + width
            si, sj = gix * ux + giy * uy + giz * uz, splat(ZERO) - (gjx * ux + gjy * uy + gjz * uz)
            xi, xj = load(x, ai), load(x, aj)
            along = xj * si + xi * sj
            w, sums = sample_and_add(filters, c + width + f, stride, weights, along, sums)
            store(out_x, aj, load(out_x, aj) + w * si)
            store(out_x, ai, load(out_x, ai) + w * sj)
            xi, xj = w * xi, w * xj
            tx = tx + xj * gix - xi * gjx
            ty = ty + xj * giy - xi * gjy
            tz = tz + xj * giz - xi * gjz
            # messages that carry vectors on
            ai, aj = wi + 2 * width, wj + 2 * width
            si = gix * load(mu, wj) + giy * load(mu, wj + width) + giz * load(mu, aj)
            sj = gjx * load(mu, wi) + gjy * load(mu, wi + width) + gjz * load(mu, ai)
            xi, xj = load(x, ai), load(x, aj)
            along = xj * si + xi * sj
            w, sums = sample_and_add(filters, c + 2 * width + f, stride, weights, along, sums)
            store(out_x, aj, load(out_x, aj) + w * si)
            store(out_x, ai, load(out_x, ai) + w * sj)
            xi, xj = w * xi, w * xj
            store(out_mu, wj, load(out_mu, wj) + xj * gix)
            store(out_mu, wj + width, load(out_mu, wj + width) + xj * giy)
            store(out_mu, aj, load(out_mu, aj) + xj * giz)
            store(out_mu, wi, load(out_mu, wi) + xi * gjx)
            store(out_mu, wi + width, load(out_mu, wi + width) + xi * gjy)
            store(out_mu, ai, load(out_mu, ai) + xi * gjz)
        adj_distances[p] += total_slope(sums, t[p])
        adj_units[p, 0] += total(tx)
        adj_units[p, 1] += total(ty)
        adj_units[p, 2] += total(tz)


@compiled()
def first_message_vjp(  # type: ignore[no-untyped-def]
    x, adj_q, adj_mu, filters, atoms, bin, t, vectors, first, last, adj_distances, adj_units
):
    """VJP of `first_message` in distances and unit vectors alone."""
    width = adj_mu.shape[1]
    stride = 3 * width
    for p in range(first, last):
        i, j = atoms[p, 0] * width, atoms[p, 1] * width
        weights, of_slope, sums = value_weights(t[p]), slope_weights(t[p]), no_sums()
        c = bin[p] * stride
        ux, uy, uz = unit(vectors, p)
        slope, tx, ty, tz = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for f in range(0, width, WIDTH):
            wi, wj = 3 * i + f, 3 * j + f
            gix, giy, giz = load(adj_mu, wi), load(adj_mu, wi + width), load(adj_mu, wi + 2 * width)
            gjx, gjy, gjz = load(adj_mu, wj), load(adj_mu, wj + width), load(adj_mu, wj + 2 * width)
            along = load(x, wj) * load(adj_q, i + f) + load(x, wi) * load(adj_q, j + f)
            slope = slope + sample(filters, c + f, stride, of_slope) * along
            xi, xj = load(x, wi + width), load(x, wj + width)
            vx, vy, vz = xj * gix - xi * gjx, xj * giy - xi * gjy, xj * giz - xi * gjz
            along = vx * ux + vy * uy + vz * uz
            w, sums = sample_and_add(filters, c + width + f, stride, weights, along, sums)
            tx, ty, tz = tx + w * vx, ty + w * vy, tz + w * vz
        adj_distances[p] += total(slope) + total_slope(sums, t[p])
        adj_units[p, 0] += total(tx)
        adj_units[p, 1] += total(ty)
        adj_units[p, 2] += total(tz)


@compiled()
def context(q, weight1, bias1, weight2, bias2, spare, derivatives, x, first, last):  # type: ignore[no-untyped-def]
    """x = silu(q A + a) B + b for rows first to last."""
    product(q, weight1, spare, first, last)
    silu(spare, bias1, derivatives, first, last)
    product(spare, weight2, x, first, last)
    add_bias(x, bias2, first, last)


@compiled()
def context_vjp(adj_x, weight2_t, derivatives, weight1_t, spare, spare2, adj_q, first, last):  # type: ignore[no-untyped-def]
    """gq += ∂E/∂q through x."""
    product(adj_x, weight2_t, spare, first, last)
    multiply_rows(spare, derivatives, first, last)
    product(spare, weight1_t, spare2, first, last)
    add_to(adj_q, spare2, first, last)


@compiled()
def norms_and_products(vw, q, joint, norms, products, epsilon, first, last):  # type: ignore[no-untyped-def]
    """norms |V|, products Σ_k V_k W_k `(n, F)`, joint = (q, |V|) `(n, 2 F)`."""
    width = q.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            square, dot = splat(epsilon), splat(ZERO)
            for k in range(3):
                row = (3 * i + k) * 2 * width + f
                v, w = load(vw, row), load(vw, row + width)
                square = square + v * v
                dot = dot + v * w
            norm = square_root(square)
            store(norms, i * width + f, norm)
            store(products, i * width + f, dot)
            store(joint, i * 2 * width + f, load(q, i * width + f))
            store(joint, i * 2 * width + width + f, norm)


@compiled()
def apply_mixing(a, vw, products, q, mu, mu_out, first, last):  # type: ignore[no-untyped-def]
    """q += a1 + a2 Σ_k V_k W_k, mu_out = μ + a3 W; a `(n, 3 F)` holds a1, a2, a3."""
    width = q.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            k, c = i * width + f, 3 * i * width + f
            change = load(a, c) + load(a, c + width) * load(products, k)
            store(q, k, load(q, k) + change)
            a3 = load(a, c + 2 * width)
            for component in range(3):
                row = (3 * i + component) * width + f
                w = load(vw, (3 * i + component) * 2 * width + width + f)
                store(mu_out, row, load(mu, row) + a3 * w)


@compiled()
def mixing_adjoints(adj_q, adj_mu, vw, products, adj_a, first, last):  # type: ignore[no-untyped-def]
    """ga = ∂E/∂a `(n, 3 F)` from ∂E/∂q and ∂E/∂μ after the mixing."""
    width = adj_q.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            k, c = i * width + f, 3 * i * width + f
            g, dot = load(adj_q, k), splat(ZERO)
            for component in range(3):
                row = (3 * i + component) * width + f
                w = load(vw, (3 * i + component) * 2 * width + width + f)
                dot = dot + load(adj_mu, row) * w
            store(adj_a, c, g)
            store(adj_a, c + width, g * load(products, k))
            store(adj_a, c + 2 * width, dot)


@compiled()
def vector_adjoints(adj_q, adj_mu, adj_joint, a, vw, norms, adj_vw, first, last):  # type: ignore[no-untyped-def]
    """gvw = ∂E/∂(V, W) `(3 n, 2 F)`, then gq += ∂E/∂q through the mixing."""
    width = adj_q.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            k, c = i * width + f, 3 * i * width + f
            g = load(adj_q, k)
            of_dot, a3 = g * load(a, c + width), load(a, c + 2 * width)
            of_norm = load(adj_joint, i * 2 * width + width + f) / load(norms, k)
            for component in range(3):
                row = 3 * i + component
                v, w = load(vw, row * 2 * width + f), load(vw, row * 2 * width + width + f)
                store(adj_vw, row * 2 * width + f, of_dot * w + of_norm * v)
                of_w = of_dot * v + a3 * load(adj_mu, row * width + f)
                store(adj_vw, row * 2 * width + width + f, of_w)
            store(adj_q, k, g + load(adj_joint, i * 2 * width + f))


EMBED, MESSAGE, MIX, READ_OUT, MIX_VJP, MESSAGE_VJP, CONTEXT_VJP = range(7)


@cache
def plan(members: int, layers: int, derivatives: bool) -> np.ndarray:
    """Phases `(kind, member, layer)` in their order."""
    phases = []
    for m in range(members):
        phases += [(EMBED, m, 0)]
        for layer in range(layers):
            phases += [(MESSAGE, m, layer), (MIX, m, layer)]
        phases += [(READ_OUT, m, 0)]
        for layer in reversed(range(layers if derivatives else 0)):
            phases += [(MIX_VJP, m, layer), (MESSAGE_VJP, m, layer)]
            phases += [(CONTEXT_VJP, m, layer)] if layer else []
    return np.array(phases, np.int64)


class Weights(NamedTuple):
    """Weights of all members, for the phases."""

    embedding: np.ndarray  # (members, elements, F)
    context0: np.ndarray  # (members, elements, 3 F), the first context
    context1: np.ndarray  # packed, (members, layers, …), as all matrices
    context1_t: np.ndarray
    context1_bias: np.ndarray
    context2: np.ndarray
    context2_t: np.ndarray
    context2_bias: np.ndarray
    mix: np.ndarray
    mix_t: np.ndarray
    mixing1: np.ndarray
    mixing1_t: np.ndarray
    mixing1_bias: np.ndarray
    mixing2: np.ndarray
    mixing2_t: np.ndarray
    mixing2_bias: np.ndarray
    epsilon: np.float32
    panels: np.ndarray  # of each hidden layer of the readout
    readout: np.ndarray
    readout_t: np.ndarray
    readout_bias: np.ndarray
    last_weight: np.ndarray
    last_bias: np.ndarray
    filters: np.ndarray  # (members, layers, k, 3 F)


class Memory(NamedTuple):
    """Arrays that the phases work in, float32."""

    q: np.ndarray  # (n, F)
    adj_q: np.ndarray
    x: np.ndarray  # (layers, n, 3 F)
    mu: np.ndarray  # (layers, 3 n, F)
    middle: np.ndarray  # (3 n, F), mu between message and mixing
    adj_mu: np.ndarray
    vw: np.ndarray  # (layers, 3 n, 2 F)
    adj_vw: np.ndarray
    a: np.ndarray  # (layers, n, 3 F)
    norms: np.ndarray  # (layers, n, F)
    products: np.ndarray
    joint: np.ndarray  # (n, 2 F)
    context_derivatives: np.ndarray  # (layers, n, F)
    mixing_derivatives: np.ndarray
    readout_derivatives: np.ndarray
    parts_q: np.ndarray  # (blocks, n, F), messages
    parts_x: np.ndarray
    parts_mu: np.ndarray
    spare: np.ndarray  # (2, n, F)


@compiled()
def phase(kind, m, layer, block, blocks, w, pairs, s, out):  # type: ignore[no-untyped-def]
    """Do one block of one phase; `out` gets energies `(members, n)`, adj_distances, ∂E/∂d
    `(members, pairs)` in units of the spacing, and adj_units, ∂E/∂u `(members, pairs, 3)`."""
    n, layers = len(pairs.numbers), w.filters.shape[1]
    first, last = pairs.found * block // blocks, pairs.found * (block + 1) // blocks
    if kind == MESSAGE:
        if layer == 0:
            first_message(
                s.x[0], w.filters[m, 0], pairs.atoms, pairs.bin, pairs.t, pairs.vectors, first,
                last, s.parts_q[block], s.parts_mu[block],
            )  # fmt: skip
        else:
            message(
                s.x[layer], s.mu[layer], w.filters[m, layer], pairs.atoms, pairs.bin, pairs.t,
                pairs.vectors, first, last, s.parts_q[block], s.parts_mu[block],
            )  # fmt: skip
        return
    if kind == MESSAGE_VJP:
        if layer == 0:
            first_message_vjp(
                s.x[0], s.adj_q, s.adj_mu, w.filters[m, 0], pairs.atoms, pairs.bin, pairs.t,
                pairs.vectors, first, last, out.adj_distances[m], out.adj_units[m],
            )  # fmt: skip
        else:
            message_vjp(
                s.x[layer], s.mu[layer], s.adj_q, s.adj_mu, w.filters[m, layer], pairs.atoms,
                pairs.bin, pairs.t, pairs.vectors, first, last, s.parts_x[block], s.parts_mu[block],
                out.adj_distances[m], out.adj_units[m],
            )  # fmt: skip
        return
    end = n * (block + 1) // blocks
    for first in range(n * block // blocks, end, CHUNK):
        last = min(first + CHUNK, end)
        if kind == EMBED:
            embed(pairs.numbers, w.embedding[m], s.q, first, last)
            embed(pairs.numbers, w.context0[m], s.x[0], first, last)
            s.mu[0, 3 * first : 3 * last] = 0
        elif kind == MIX:
            add_up(s.parts_q, first, last)
            add_up(s.parts_mu, 3 * first, 3 * last)
            add_to(s.q, s.parts_q[0], first, last)
            s.middle[3 * first : 3 * last] = s.mu[layer, 3 * first : 3 * last]
            add_to(s.middle, s.parts_mu[0], 3 * first, 3 * last)
            product(s.middle, w.mix[m, layer], s.vw[layer], 3 * first, 3 * last)
            norms_and_products(
                s.vw[layer], s.q, s.joint, s.norms[layer], s.products[layer], w.epsilon, first, last
            )
            product(s.joint, w.mixing1[m, layer], s.spare[0], first, last)
            silu(s.spare[0], w.mixing1_bias[m, layer], s.mixing_derivatives[layer], first, last)
            product(s.spare[0], w.mixing2[m, layer], s.a[layer], first, last)
            add_bias(s.a[layer], w.mixing2_bias[m, layer], first, last)
            mu_out = s.mu[layer + 1] if layer + 1 < layers else s.adj_mu
            apply_mixing(
                s.a[layer], s.vw[layer], s.products[layer], s.q, s.middle, mu_out, first, last
            )
            if layer + 1 < layers:
                context(
                    s.q, w.context1[m, layer + 1], w.context1_bias[m, layer + 1],
                    w.context2[m, layer + 1], w.context2_bias[m, layer + 1], s.spare[0],
                    s.context_derivatives[layer + 1], s.x[layer + 1], first, last,
                )  # fmt: skip
        elif kind == READ_OUT:
            s.adj_mu[3 * first : 3 * last] = 0
            read_out(
                s.q, w.panels, w.readout[m], w.readout_t[m], w.readout_bias[m], w.last_weight[m],
                w.last_bias[m], s.spare, s.readout_derivatives, out.energies[m], s.adj_q, first,
                last,
            )  # fmt: skip
        elif kind == MIX_VJP:
            mixing_adjoints(
                s.adj_q, s.adj_mu, s.vw[layer], s.products[layer], s.parts_x[0], first, last
            )
            product(s.parts_x[0], w.mixing2_t[m, layer], s.spare[0], first, last)
            multiply_rows(s.spare[0], s.mixing_derivatives[layer], first, last)
            product(s.spare[0], w.mixing1_t[m, layer], s.joint, first, last)
            vector_adjoints(
                s.adj_q, s.adj_mu, s.joint, s.a[layer], s.vw[layer], s.norms[layer], s.adj_vw,
                first, last,
            )  # fmt: skip
            product(s.adj_vw, w.mix_t[m, layer], s.middle, 3 * first, 3 * last)
            add_to(s.adj_mu, s.middle, 3 * first, 3 * last)
        else:
            add_up(s.parts_x, first, last)
            add_up(s.parts_mu, 3 * first, 3 * last)
            add_to(s.adj_mu, s.parts_mu[0], 3 * first, 3 * last)
            context_vjp(
                s.parts_x[0], w.context2_t[m, layer], s.context_derivatives[layer],
                w.context1_t[m, layer], s.spare[0], s.spare[1], s.adj_q, first, last,
            )  # fmt: skip


@compiled()
def whole(plan, w, pairs, s, out):  # type: ignore[no-untyped-def]
    """All phases on one thread."""
    for step in range(len(plan)):
        phase(plan[step, 0], plan[step, 1], plan[step, 2], 0, 1, w, pairs, s, out)
