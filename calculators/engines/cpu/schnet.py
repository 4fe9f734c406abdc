"""SchNet's energies and derivatives on a CPU, written out.

With y = x W, m_i = Σ_j w(d_ij) ∘ y_j, h = ssp(m A + a), x ← x + h B + b in every interaction,
the backward pass needs y and the derivatives of ssp only. Arrays have one row for each atom and the
width `features`, a multiple of 16; `filters` holds spline coefficients `(k, features)`.
Formulas: Schütt et al. 2018, J. Chem. Phys. 148, 241722.

Work is cut into `blocks` (`threads.py`). A block of pairs adds to messages of its own, which are
summed up afterwards.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ase_biasgrad.calculators.engines.cpu.matrix_product import product
from ase_biasgrad.calculators.engines.cpu.rows import (
    CHUNK,
    add_rows,
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
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total
from ase_biasgrad.numerics.simd_activations import shifted_softplus


@compiled()
def cfconv(y, filters, atoms, bin, t, first, last, out):  # type: ignore[no-untyped-def]
    """out_i = Σ_j w(d_ij) ∘ y_j over pairs first to last and their mirrors."""
    width = y.shape[1]
    out[:] = 0
    for p in range(first, last):
        i, j, c = atoms[p, 0] * width, atoms[p, 1] * width, bin[p] * width
        weights = value_weights(t[p])
        for f in range(0, width, WIDTH):
            w = sample(filters, c + f, width, weights)
            store(out, i + f, load(out, i + f) + w * load(y, j + f))
            store(out, j + f, load(out, j + f) + w * load(y, i + f))


@compiled()
def cfconv_vjp(  # type: ignore[no-untyped-def]
    y, adjoint, filters, atoms, bin, t, first, last, out, adj_distances
):
    """VJP of `cfconv`: from ∂E/∂m, out = ∂E/∂y and adj_distances += ∂E/∂d in grid spacings."""
    width = y.shape[1]
    out[:] = 0
    for p in range(first, last):
        i, j, c = atoms[p, 0] * width, atoms[p, 1] * width, bin[p] * width
        weights, sums = value_weights(t[p]), no_sums()
        for f in range(0, width, WIDTH):
            gi, gj = load(adjoint, i + f), load(adjoint, j + f)
            along = gi * load(y, j + f) + gj * load(y, i + f)
            w, sums = sample_and_add(filters, c + f, width, weights, along, sums)
            store(out, i + f, load(out, i + f) + w * gj)
            store(out, j + f, load(out, j + f) + w * gi)
        adj_distances[p] += total_slope(sums, t[p])


@compiled()
def distance_adjoints(y, adjoint, filters, atoms, bin, t, first, last, adj_distances):  # type: ignore[no-untyped-def]
    """VJP of `cfconv` in the distances alone, for the embeddings."""
    width = y.shape[1]
    for p in range(first, last):
        i, j, c = atoms[p, 0] * width, atoms[p, 1] * width, bin[p] * width
        weights = slope_weights(t[p])
        slope = splat(np.float32(0))
        for f in range(0, width, WIDTH):
            along = load(adjoint, i + f) * load(y, j + f) + load(adjoint, j + f) * load(y, i + f)
            slope = slope + sample(filters, c + f, width, weights) * along
        adj_distances[p] += total(slope)


@compiled()
def update(  # type: ignore[no-untyped-def]
    messages, x, hidden, hidden_bias, outward, outward_bias, derivatives, spare, first, last
):
    """x += ssp(m A + a) B + b for rows first to last; the derivatives of ssp are kept."""
    add_up(messages, first, last)
    product(messages[0], hidden, spare[0], first, last)
    shifted_softplus(spare[0], hidden_bias, derivatives, first, last)
    product(spare[0], outward, spare[1], first, last)
    add_rows(x, spare[1], outward_bias, first, last)


@compiled()
def update_vjp(adjoint, outward_t, derivatives, hidden_t, spare, out, first, last):  # type: ignore[no-untyped-def]
    """out = ∂E/∂m from adjoint = ∂E/∂x for rows first to last."""
    product(adjoint, outward_t, spare[0], first, last)
    multiply_rows(spare[0], derivatives, first, last)
    product(spare[0], hidden_t, out, first, last)


EMBED, CFCONV, UPDATE, READ_OUT, UPDATE_VJP, CFCONV_VJP, INWARD_VJP = range(7)


@cache
def plan(members: int, layers: int, derivatives: bool) -> np.ndarray:
    """Phases `(kind, member, layer)` in their order."""
    phases = []
    for m in range(members):
        phases += [(EMBED, m, 0)]
        for layer in range(layers):
            phases += [(CFCONV, m, layer), (UPDATE, m, layer)]
        phases += [(READ_OUT, m, 0)]
        for layer in reversed(range(layers if derivatives else 0)):
            phases += [(UPDATE_VJP, m, layer), (CFCONV_VJP, m, layer)]
            phases += [(INWARD_VJP, m, layer)] if layer else []
    return np.array(phases, np.int64)


class Weights(NamedTuple):
    """Weights of all members, for the phases."""

    embedding: np.ndarray  # (members, elements, F)
    inward0: np.ndarray  # embedding times the first inward
    inward: np.ndarray  # packed, (members, layers, …), as all matrices
    inward_t: np.ndarray
    hidden: np.ndarray
    hidden_t: np.ndarray
    hidden_bias: np.ndarray
    outward: np.ndarray
    outward_t: np.ndarray
    outward_bias: np.ndarray
    panels: np.ndarray  # of each hidden layer of the readout
    readout: np.ndarray
    readout_t: np.ndarray
    readout_bias: np.ndarray
    last_weight: np.ndarray
    last_bias: np.ndarray
    filters: np.ndarray  # (members, layers, k, F)


class Memory(NamedTuple):
    """Arrays that the phases work in, float32."""

    x: np.ndarray  # (n, F), features, then ∂E/∂x
    y: np.ndarray  # (layers, n, F)
    parts: np.ndarray  # (blocks, n, F), messages
    derivatives: np.ndarray  # (layers, n, F), of ssp
    readout_derivatives: np.ndarray  # (hidden layers, n, F)
    spare: np.ndarray  # (3, n, F)


@compiled()
def phase(kind, m, layer, block, blocks, w, pairs, s, out):  # type: ignore[no-untyped-def]
    """Do one block of one phase; `out` gets energies `(members, n)` and adj_distances, ∂E/∂d
    `(members, pairs)` in units of the spacing. x turns from features into ∂E/∂x."""
    n, layers = len(pairs.numbers), w.filters.shape[1]
    first, last = pairs.found * block // blocks, pairs.found * (block + 1) // blocks
    if kind == CFCONV:
        cfconv(
            s.y[layer], w.filters[m, layer], pairs.atoms, pairs.bin, pairs.t, first, last,
            s.parts[block],
        )  # fmt: skip
        return
    if kind == CFCONV_VJP and layer == 0:
        distance_adjoints(
            s.y[0], s.spare[2], w.filters[m, 0], pairs.atoms, pairs.bin, pairs.t, first, last,
            out.adj_distances[m],
        )  # fmt: skip
        return
    if kind == CFCONV_VJP:
        cfconv_vjp(
            s.y[layer], s.spare[2], w.filters[m, layer], pairs.atoms, pairs.bin, pairs.t, first,
            last, s.parts[block], out.adj_distances[m],
        )  # fmt: skip
        return
    end = n * (block + 1) // blocks
    for first in range(n * block // blocks, end, CHUNK):
        last = min(first + CHUNK, end)
        if kind == EMBED:
            embed(pairs.numbers, w.embedding[m], s.x, first, last)
            embed(pairs.numbers, w.inward0[m], s.y[0], first, last)
        elif kind == UPDATE:
            update(
                s.parts, s.x, w.hidden[m, layer], w.hidden_bias[m, layer], w.outward[m, layer],
                w.outward_bias[m, layer], s.derivatives[layer], s.spare, first, last,
            )  # fmt: skip
            if layer + 1 < layers:
                product(s.x, w.inward[m, layer + 1], s.y[layer + 1], first, last)
        elif kind == READ_OUT:
            read_out(
                s.x, w.panels, w.readout[m], w.readout_t[m], w.readout_bias[m], w.last_weight[m],
                w.last_bias[m], s.spare, s.readout_derivatives, out.energies[m], s.x, first, last,
            )  # fmt: skip
        elif kind == UPDATE_VJP:
            update_vjp(
                s.x, w.outward_t[m, layer], s.derivatives[layer], w.hidden_t[m, layer], s.spare,
                s.spare[2], first, last,
            )  # fmt: skip
        else:
            add_up(s.parts, first, last)
            product(s.parts[0], w.inward_t[m, layer], s.spare[0], first, last)
            add_to(s.x, s.spare[0], first, last)


@compiled()
def whole(plan, w, pairs, s, out):  # type: ignore[no-untyped-def]
    """All phases on one thread."""
    for step in range(len(plan)):
        phase(plan[step, 0], plan[step, 1], plan[step, 2], 0, 1, w, pairs, s, out)
