"""Messages between atoms by pairs, with first and second derivatives written out.

The messages of SchNet and PaiNN, and the two derivatives that training on forces needs of them,
are derivatives of one scalar that is linear in each of its arguments:

    P(s, v, x, z, C, w, u) = Σ_(i,j) Σ_f  W⁰ (s_i x⁰_j + s_j x⁰_i)
                           + W¹ Σ_c u_c (vᶜ_i x¹_j − vᶜ_j x¹_i)
                           + W² Σ_c (vᶜ_i zᶜ_j + vᶜ_j zᶜ_i),      W = Σ_t w_t C_(m + t).

Every pair counts once, and both directions share one filter W, a spline with coefficients C that
is evaluated on the way (`sampled_filters`): nothing of the size of pairs × features is ever
stored. SchNet has the first term only; PaiNN has all, z being its vectors times x², and no third
term in its first layer, where vectors are zero.

On the CPU loops compiled by Numba do the work; elsewhere torch operations do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TAPS = 6  # coefficients of a quintic spline in each interval


@dataclass(frozen=True)
class Pairs:
    """Pairs of `n` atoms, each once, and the first spline coefficient for their distances."""

    i: Tensor  # (p,) int64
    j: Tensor  # (p,) int64
    first: Tensor  # (p,) int64
    n: int


def messages(
    pairs: Pairs, x: Tensor, z: Tensor | None, rows: Tensor, weights: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor | None]:
    """∂P/∂s `(n, f)` and ∂P/∂v `(n, 3, f)`: what each atom receives; twice differentiable.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        `(n, k, f)`; with k = 1 nothing but the first term, and ∂P/∂v is None.
    z
        `(n, 3, f)` for the third term, or None.
    rows
        Spline coefficients of 1 to 3 filters, `(rows, 1 … 3, f)`.
    weights
        `(p, 6)` of six neighbouring rows.
    unit
        `(p, 3)` unit vectors from i to j.
    """
    if x.device.type != "cpu":
        return messages_by_torch(pairs, x, z, rows, weights, unit)
    is_scalar = x.shape[1] == 1
    if z is None:
        z = x.new_empty((0, 3, x.shape[2]))
    # contiguous here, because what a function saves must be its own input
    inputs = (x.contiguous(), z.contiguous(), rows.contiguous(), weights, unit)
    s, v = _Messages.apply(pairs, *inputs)
    return s, None if is_scalar else v


def messages_by_torch(
    pairs: Pairs, x: Tensor, z: Tensor | None, rows: Tensor, weights: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor | None]:
    """`messages` in torch operations, differentiable any number of times."""
    i, j = pairs.i, pairs.j
    taps = pairs.first[:, None] + torch.arange(TAPS, device=x.device)  # (p, 6)
    filters = torch.einsum("pt,ptkf->pkf", weights, rows[taps])  # (p, 1 … 3, f)
    s = x.new_zeros((pairs.n, x.shape[2]))
    s = s.index_add(0, i, filters[:, 0] * x[j, 0]).index_add(0, j, filters[:, 0] * x[i, 0])
    if x.shape[1] == 1:
        return s, None
    along = filters[:, 1:2] * unit[:, :, None]  # (p, 3, f)
    to_i, to_j = along * x[j, 1:2], -along * x[i, 1:2]
    if z is not None:
        to_i, to_j = to_i + filters[:, 2:] * z[j], to_j + filters[:, 2:] * z[i]
    v = x.new_zeros((pairs.n, 3, x.shape[2]))
    return s, v.index_add(0, i, to_i).index_add(0, j, to_j)


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x = inputs[0]
        ctx.pairs = pairs
        ctx.save_for_backward(*inputs)
        s = x.new_zeros((pairs.n, x.shape[2]))
        v = x.new_zeros((0 if x.shape[1] == 1 else pairs.n, 3, x.shape[2]))
        _forward(*_arrays(*inputs), *_pair_arrays(pairs), *_arrays(s, v))
        return s, v

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        wants_rows = _is_wanted(ctx, 2)
        s, v = (cotangent.contiguous() for cotangent in cotangents)
        return None, *_MessageSlopes.apply(ctx.pairs, wants_rows, s, v, *ctx.saved_tensors)


class _MessageSlopes(torch.autograd.Function):
    """∂P/∂x, ∂P/∂z, ∂P/∂C, ∂P/∂w and ∂P/∂u."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Pairs, wants_rows: bool, *arguments: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.pairs = pairs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        slopes = [torch.zeros_like(tensor) for tensor in arguments[2:]]
        _backward(*_arrays(*arguments), *_pair_arrays(pairs), *_arrays(*slopes), wants_rows)
        x, z, rows, weights, unit = slopes
        return x, z, rows if wants_rows else None, weights, unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        arguments = ctx.saved_tensors
        tangents = [
            torch.zeros_like(argument) if tangent is None else tangent.contiguous()
            for argument, tangent in zip(arguments[2:], cotangents, strict=True)
        ]
        slopes = [torch.zeros_like(argument) for argument in arguments]
        _double_backward(
            *_arrays(*arguments, *tangents),
            *_pair_arrays(ctx.pairs),
            *_arrays(*slopes),
            cotangents[2] is not None,
            _is_wanted(ctx, 5) or _is_wanted(ctx, 6),
        )
        return None, None, *slopes


def _is_wanted(ctx: Any, place: int) -> bool:
    """Whether this backward pass leads on to the tensor `place`, and not only to others."""
    node = ctx.next_functions[place][0]
    if node is None:
        return False
    # for leaves the engine does not say
    return hasattr(node, "variable") or torch._C._will_engine_execute_node(node)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


def _pair_arrays(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pairs.first.numpy(), pairs.i.numpy(), pairs.j.numpy()


_loop = numba.njit(cache=True, fastmath=True, nogil=True, boundscheck=False)


@_loop
def _sample(rows, weights, m, k, out):  # type: ignore[no-untyped-def]
    w0, w1, w2, w3, w4, w5 = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5]
    c0, c1, c2 = rows[m, k], rows[m + 1, k], rows[m + 2, k]
    c3, c4, c5 = rows[m + 3, k], rows[m + 4, k], rows[m + 5, k]
    for f in range(len(out)):
        out[f] = w0 * c0[f] + w1 * c1[f] + w2 * c2[f] + w3 * c3[f] + w4 * c4[f] + w5 * c5[f]


@_loop
def _add_product(total, a, b):  # type: ignore[no-untyped-def]
    for f in range(len(total)):
        total[f] += a[f] * b[f]


@_loop
def _add_scaled_product(total, s, a, b):  # type: ignore[no-untyped-def]
    for f in range(len(total)):
        total[f] += s * a[f] * b[f]


@_loop
def _add_two_products(total, a, b, c, d):  # type: ignore[no-untyped-def]
    for f in range(len(total)):
        total[f] += a[f] * b[f] + c[f] * d[f]


@_loop
def _combine(u, v, out):  # type: ignore[no-untyped-def]
    """Σ_c u_c vᶜ."""
    u0, u1, u2 = u[0], u[1], u[2]
    v0, v1, v2 = v[0], v[1], v[2]
    for f in range(len(out)):
        out[f] = u0 * v0[f] + u1 * v1[f] + u2 * v2[f]


@_loop
def _weighted_difference(filters, a, b, c, d):  # type: ignore[no-untyped-def]
    """Σ_f W (a b − c d)."""
    total = filters[0] * (a[0] * b[0] - c[0] * d[0])
    for f in range(1, len(filters)):
        total += filters[f] * (a[f] * b[f] - c[f] * d[f])
    return total


@_loop
def _add_dots(rows, m, k, values, out):  # type: ignore[no-untyped-def]
    for t in range(6):
        row = rows[m + t, k]
        total = values[0] * row[0]
        for f in range(1, len(values)):
            total += values[f] * row[f]
        out[t] += total


@_loop
def _spread(values, weights, m, k, rows):  # type: ignore[no-untyped-def]
    for t in range(6):
        row, weight = rows[m + t, k], weights[t]
        for f in range(len(values)):
            row[f] += weight * values[f]


@_loop
def _spread_two(values, weights, others, other_weights, m, k, rows):  # type: ignore[no-untyped-def]
    for t in range(6):
        row, weight, other_weight = rows[m + t, k], weights[t], other_weights[t]
        for f in range(len(values)):
            row[f] += weight * values[f] + other_weight * others[f]


@_loop
def _forward(x, z, rows, weights, unit, first, i, j, s, v):  # type: ignore[no-untyped-def]
    filters = np.empty(x.shape[2], x.dtype)
    for p in range(len(i)):
        a, b, m, w = i[p], j[p], first[p], weights[p]
        _sample(rows, w, m, 0, filters)
        _add_product(s[a], filters, x[b, 0])
        _add_product(s[b], filters, x[a, 0])
        if x.shape[1] > 1:
            _sample(rows, w, m, 1, filters)
            for c in range(3):
                _add_scaled_product(v[a, c], unit[p, c], filters, x[b, 1])
                _add_scaled_product(v[b, c], -unit[p, c], filters, x[a, 1])
        if len(z):
            _sample(rows, w, m, 2, filters)
            for c in range(3):
                _add_product(v[a, c], filters, z[b, c])
                _add_product(v[b, c], filters, z[a, c])


@_loop
def _backward(  # type: ignore[no-untyped-def]
    s, v, x, z, rows, weights, unit, first, i, j, gx, gz, grows, gweights, gunit, wants_rows
):
    features = x.shape[2]
    filters, products = np.empty(features, x.dtype), np.empty(features, x.dtype)
    va, vb = np.empty(features, x.dtype), np.empty(features, x.dtype)
    for p in range(len(i)):
        a, b, m, w = i[p], j[p], first[p], weights[p]
        _sample(rows, w, m, 0, filters)
        _add_product(gx[b, 0], filters, s[a])
        _add_product(gx[a, 0], filters, s[b])
        products[:] = 0
        _add_two_products(products, s[a], x[b, 0], s[b], x[a, 0])
        _add_dots(rows, m, 0, products, gweights[p])
        if wants_rows:
            _spread(products, w, m, 0, grows)
        if x.shape[1] > 1:
            _sample(rows, w, m, 1, filters)
            _combine(unit[p], v[a], va)
            _combine(-unit[p], v[b], vb)
            _add_product(gx[b, 1], filters, va)
            _add_product(gx[a, 1], filters, vb)
            products[:] = 0
            _add_two_products(products, va, x[b, 1], vb, x[a, 1])
            _add_dots(rows, m, 1, products, gweights[p])
            if wants_rows:
                _spread(products, w, m, 1, grows)
            for c in range(3):
                gunit[p, c] += _weighted_difference(filters, v[a, c], x[b, 1], v[b, c], x[a, 1])
        if len(z):
            _sample(rows, w, m, 2, filters)
            products[:] = 0
            for c in range(3):
                _add_product(gz[b, c], filters, v[a, c])
                _add_product(gz[a, c], filters, v[b, c])
                _add_two_products(products, v[a, c], z[b, c], v[b, c], z[a, c])
            _add_dots(rows, m, 2, products, gweights[p])
            if wants_rows:
                _spread(products, w, m, 2, grows)


@_loop
def _double_backward(  # type: ignore[no-untyped-def]
    s, v, x, z, rows, weights, unit, dx, dz, drows, dweights, dunit, first, i, j,
    gs, gv, gx, gz, grows, gweights, gunit, has_drows, wants_geometry,
):  # fmt: skip
    """Derivatives in (s, v, x, z, C, w, u) of the change of P along (dx, dz, dC, dw, du)."""
    features = x.shape[2]
    filters, dfilters = np.empty(features, x.dtype), np.empty(features, x.dtype)
    products, dproducts = np.empty(features, x.dtype), np.empty(features, x.dtype)
    va, vb = np.empty(features, x.dtype), np.empty(features, x.dtype)
    dva, dvb = np.empty(features, x.dtype), np.empty(features, x.dtype)
    sent, change = np.empty(features, x.dtype), np.empty(features, x.dtype)
    terms = 1 if x.shape[1] == 1 else (3 if len(z) else 2)
    for p in range(len(i)):
        a, b, m, w, dw = i[p], j[p], first[p], weights[p], dweights[p]
        for k in range(terms):
            _sample(rows, w, m, k, filters)
            _sample(rows, dw, m, k, dfilters)
            if has_drows:
                _sample(drows, w, m, k, change)
                for f in range(features):
                    dfilters[f] += change[f]
            products[:] = 0
            dproducts[:] = 0
            if k == 0:
                _add_two_products(gs[a], filters, dx[b, 0], dfilters, x[b, 0])
                _add_two_products(gs[b], filters, dx[a, 0], dfilters, x[a, 0])
                _add_product(gx[b, 0], dfilters, s[a])
                _add_product(gx[a, 0], dfilters, s[b])
                _add_two_products(products, s[a], x[b, 0], s[b], x[a, 0])
                _add_two_products(dproducts, s[a], dx[b, 0], s[b], dx[a, 0])
            elif k == 1:
                _combine(unit[p], v[a], va)
                _combine(-unit[p], v[b], vb)
                _combine(dunit[p], v[a], dva)
                _combine(-dunit[p], v[b], dvb)
                _add_two_products(gx[b, 1], dfilters, va, filters, dva)
                _add_two_products(gx[a, 1], dfilters, vb, filters, dvb)
                _add_two_products(products, va, x[b, 1], vb, x[a, 1])
                _add_two_products(dproducts, va, dx[b, 1], vb, dx[a, 1])
                _add_two_products(dproducts, dva, x[b, 1], dvb, x[a, 1])
                for to, of, sign in ((a, b, 1), (b, a, -1)):
                    for f in range(features):
                        sent[f] = filters[f] * x[of, 1, f]
                        change[f] = dfilters[f] * x[of, 1, f] + filters[f] * dx[of, 1, f]
                    for c in range(3):
                        u, du = sign * unit[p, c], sign * dunit[p, c]
                        for f in range(features):
                            gv[to, c, f] += u * change[f] + du * sent[f]
                        if wants_geometry:
                            total = gunit[p, c]
                            for f in range(features):
                                total += sign * change[f] * v[to, c, f]
                            gunit[p, c] = total
            else:
                for c in range(3):
                    _add_two_products(gv[a, c], filters, dz[b, c], dfilters, z[b, c])
                    _add_two_products(gv[b, c], filters, dz[a, c], dfilters, z[a, c])
                    _add_product(gz[b, c], dfilters, v[a, c])
                    _add_product(gz[a, c], dfilters, v[b, c])
                    _add_two_products(products, v[a, c], z[b, c], v[b, c], z[a, c])
                    _add_two_products(dproducts, v[a, c], dz[b, c], v[b, c], dz[a, c])
            _spread_two(dproducts, w, products, dw, m, k, grows)
            if wants_geometry:
                _add_dots(rows, m, k, dproducts, gweights[p])
                if has_drows:
                    _add_dots(drows, m, k, products, gweights[p])
