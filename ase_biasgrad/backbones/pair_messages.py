"""Messages between atoms by pairs, with first and second derivatives written out.

Message passing is a derivative of a scalar that is linear in each argument, and so are the two
derivatives that training on forces needs of it. With W = Σ_t w_t C_(m + t), a filter between i
and j as a spline with coefficients C, `convolve` is ∂P/∂s and `lift` is ∂Q/∂v of

    P(s, x, C, w)    = Σ_(i,j) Σ_c Σ_f W^g(c) (sᶜ_i xᶜ_j + sᶜ_j xᶜ_i),
    Q(v, x, C, w, T) = Σ_(i,j) Σ_c Σ_f W^g(c) Tᶜ (vᶜ_i x_j + σᶜ vᶜ_j x_i).

The first sends components as they are, the second sends scalars along tensors T of the pair's
direction, of parity σ. Several components may share a filter g(c). Every pair counts once, and
nothing of the size of pairs × features is ever stored: filters are evaluated on the way
(`splines`).

On the CPU loops compiled by Numba do the work; elsewhere torch operations do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_biasgrad.backbones.wanted import is_wanted
from ase_biasgrad.splines import TAPS


@dataclass(frozen=True)
class Pairs:
    """Pairs of `n` atoms, each once, and where their distances fall among the splines' knots."""

    i: Tensor  # (p,) int64
    j: Tensor  # (p,) int64
    n: int
    first: Tensor  # (p,) int64, first of six coefficients
    weights: Tensor  # (p, 6) of the coefficients


@dataclass(frozen=True)
class Components:
    """Which filter each component takes, and its sign when i and j change places."""

    filters: tuple[int, ...]
    parities: tuple[int, ...] = ()

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Filters that any component takes, that of each component, parities."""
        used = np.array(sorted(set(self.filters)), np.int64)
        return used, np.array(self.filters, np.int64), np.array(self.parities, np.int64)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Filter and parity of each component, `(c,)` and `(c, 1)`."""
        return _on_device(self, device)


@cache  # copies make a device wait
def _on_device(components: Components, device: torch.device) -> tuple[Tensor, Tensor]:
    parities = torch.tensor(components.parities, dtype=torch.float32, device=device)
    return torch.tensor(components.filters, device=device), parities[:, None]


def convolve(pairs: Pairs, x: Tensor, rows: Tensor, components: Components) -> Tensor:
    """Σ_j W_ij x_j for each atom i, `(n, c, f)`; twice differentiable.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, c, f)`.
    rows
        Spline coefficients of g filters, `(rows, g, f)`, of which some may be for others.
    components
        Which filter each of the `c` components takes.
    """
    if x.device.type != "cpu":
        return convolve_by_torch(pairs, x, rows, components)
    # contiguous here, because what a function saves must be its own input
    return _Convolve.apply(pairs, components, x.contiguous(), rows.contiguous(), pairs.weights)


def lift(pairs: Pairs, x: Tensor, rows: Tensor, tensors: Tensor, components: Components) -> Tensor:
    """Σ_j W_ij T_ij x_j for each atom i, `(n, c, f)`; twice differentiable.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, f)`.
    rows
        Spline coefficients of g filters, `(rows, g, f)`.
    tensors
        `(p, c)`, functions of the direction from i to j.
    components
        Which filter and parity each of the `c` components has.
    """
    if x.device.type != "cpu":
        return lift_by_torch(pairs, x, rows, tensors, components)
    inputs = (x.contiguous(), rows.contiguous(), pairs.weights, tensors.contiguous())
    return _Lift.apply(pairs, components, *inputs)


def convolve_by_torch(pairs: Pairs, x: Tensor, rows: Tensor, components: Components) -> Tensor:
    """`convolve` in torch operations, differentiable any number of times."""
    chosen, _ = components.on(x.device)
    filters = _filters(pairs, rows).index_select(1, chosen)  # (p, c, f)
    received = torch.zeros_like(x).index_add(0, pairs.i, filters * x[pairs.j])
    return received.index_add(0, pairs.j, filters * x[pairs.i])


def lift_by_torch(
    pairs: Pairs, x: Tensor, rows: Tensor, tensors: Tensor, components: Components
) -> Tensor:
    """`lift` in torch operations, differentiable any number of times."""
    chosen, parities = components.on(x.device)
    filters = _filters(pairs, rows).index_select(1, chosen) * tensors[:, :, None]  # (p, c, f)
    received = x.new_zeros((pairs.n, *filters.shape[1:]))
    received = received.index_add(0, pairs.i, filters * x[pairs.j][:, None])
    return received.index_add(0, pairs.j, parities.to(x.dtype) * filters * x[pairs.i][:, None])


def _filters(pairs: Pairs, rows: Tensor) -> Tensor:
    taps = pairs.first[:, None] + torch.arange(TAPS, device=rows.device)  # (p, 6)
    return torch.einsum("pt,ptgf->pgf", pairs.weights, rows[taps])


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, components: Components, *inputs: Tensor) -> Tensor:
        ctx.constants = pairs, components
        ctx.save_for_backward(*inputs)
        received = torch.zeros_like(inputs[0])
        convolve_loop(*_index_arrays(pairs, components), *_arrays(*inputs, received))
        return received

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        arguments = cotangents[0].contiguous(), *ctx.saved_tensors
        return None, None, *_ConvolveSlopes.apply(*ctx.constants, is_wanted(ctx, 1), *arguments)


class _ConvolveSlopes(torch.autograd.Function):
    """∂P/∂x, ∂P/∂C and ∂P/∂w."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Pairs, components: Components, wants_rows: bool, *arguments: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.constants = pairs, components
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        slopes = _zeros(arguments[1:], wants_rows)
        indices = _index_arrays(pairs, components)
        convolve_slopes_loop(*indices, *_arrays(*arguments, *slopes), wants_rows)
        return slopes[0], slopes[1] if wants_rows else None, slopes[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        arguments = ctx.saved_tensors
        slopes = [torch.zeros_like(argument) for argument in arguments]
        _convolve_curvature(
            *_index_arrays(*ctx.constants),
            *_arrays(*arguments, *_tangents(arguments[1:], cotangents), *slopes),
            cotangents[1] is not None,
            is_wanted(ctx, 3),
        )
        return None, None, None, *slopes


class _Lift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, components: Components, *inputs: Tensor) -> Tensor:
        x, _, _, tensors = inputs
        ctx.constants = pairs, components
        ctx.save_for_backward(*inputs)
        received = x.new_zeros((pairs.n, tensors.shape[1], x.shape[1]))
        lift_loop(*_index_arrays(pairs, components), *_arrays(*inputs, received))
        return received

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        arguments = cotangents[0].contiguous(), *ctx.saved_tensors
        return None, None, *_LiftSlopes.apply(*ctx.constants, is_wanted(ctx, 1), *arguments)


class _LiftSlopes(torch.autograd.Function):
    """∂Q/∂x, ∂Q/∂C, ∂Q/∂w and ∂Q/∂T."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Pairs, components: Components, wants_rows: bool, *arguments: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.constants = pairs, components
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        slopes = _zeros(arguments[1:], wants_rows)
        lift_slopes_loop(
            *_index_arrays(pairs, components), *_arrays(*arguments, *slopes), wants_rows
        )
        return slopes[0], slopes[1] if wants_rows else None, *slopes[2:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        arguments = ctx.saved_tensors
        slopes = [torch.zeros_like(argument) for argument in arguments]
        _lift_curvature(
            *_index_arrays(*ctx.constants),
            *_arrays(*arguments, *_tangents(arguments[1:], cotangents), *slopes),
            cotangents[1] is not None,
            is_wanted(ctx, 3) or is_wanted(ctx, 4),
        )
        return None, None, None, *slopes


def _zeros(arguments: tuple[Tensor, ...], wants_rows: bool) -> list[Tensor]:
    """Where slopes are added up, those of the coefficients (x, C, …) only if they are wanted."""
    x, rows, *others = arguments
    of_rows = torch.zeros_like(rows) if wants_rows else _nothing_like(rows)
    return [torch.zeros_like(x), of_rows, *(torch.zeros_like(other) for other in others)]


def _tangents(arguments: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Cotangents of (x, C, …); the loops are told whether there is one of the coefficients."""
    tangents = [
        torch.zeros_like(argument) if tangent is None and k != 1 else tangent
        for k, (argument, tangent) in enumerate(zip(arguments, cotangents, strict=True))
    ]
    return [_nothing_like(arguments[1]) if t is None else t.contiguous() for t in tangents]


def _nothing_like(rows: Tensor) -> Tensor:
    return rows.new_empty((0, *rows.shape[1:]))


def _index_arrays(pairs: Pairs, components: Components) -> tuple[np.ndarray, ...]:
    return pairs.i.numpy(), pairs.j.numpy(), pairs.first.numpy(), *components.arrays


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]


_loop = numba.njit(cache=True, fastmath=True, nogil=True, boundscheck=False)


@_loop
def _sample(rows, weights, m, g, out):  # type: ignore[no-untyped-def]
    w0, w1, w2, w3, w4, w5 = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5]
    c0, c1, c2 = rows[m, g], rows[m + 1, g], rows[m + 2, g]
    c3, c4, c5 = rows[m + 3, g], rows[m + 4, g], rows[m + 5, g]
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
def _add_sample(rows, weights, m, g, out):  # type: ignore[no-untyped-def]
    for t in range(6):
        row, weight = rows[m + t, g], weights[t]
        for f in range(len(out)):
            out[f] += weight * row[f]


@_loop
def _add_dots(rows, m, g, values, out):  # type: ignore[no-untyped-def]
    for t in range(6):
        row = rows[m + t, g]
        total = values[0] * row[0]
        for f in range(1, len(values)):
            total += values[f] * row[f]
        out[t] += total


@_loop
def _spread(values, weights, m, g, rows):  # type: ignore[no-untyped-def]
    for t in range(6):
        row, weight = rows[m + t, g], weights[t]
        for f in range(len(values)):
            row[f] += weight * values[f]


@_loop
def _spread_two(values, weights, others, other_weights, m, g, rows):  # type: ignore[no-untyped-def]
    for t in range(6):
        row, weight, other_weight = rows[m + t, g], weights[t], other_weights[t]
        for f in range(len(values)):
            row[f] += weight * values[f] + other_weight * others[f]


@_loop
def _combine(coefficients, parities, swapped, chosen, g, values, out):  # type: ignore[no-untyped-def]
    """Σ_c T_c v_c over the components of filter g, with their parities if swapped."""
    out[:] = 0
    for c in range(len(chosen)):
        if chosen[c] == g:
            factor = coefficients[c] * parities[c] if swapped else coefficients[c]
            value = values[c]
            for f in range(len(out)):
                out[f] += factor * value[f]


@_loop
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = a[0] * b[0]
    for f in range(1, len(a)):
        total += a[f] * b[f]
    return total


@_loop
def convolve_loop(i, j, first, used, chosen, parities, x, rows, weights, received):  # type: ignore[no-untyped-def]
    filters = np.empty(x.shape[2], x.dtype)
    for p in range(len(i)):
        a, b = i[p], j[p]
        for g in used:
            _sample(rows, weights[p], first[p], g, filters)
            for c in range(len(chosen)):
                if chosen[c] == g:
                    _add_product(received[a, c], filters, x[b, c])
                    _add_product(received[b, c], filters, x[a, c])


@_loop
def convolve_slopes_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, chosen, parities, s, x, rows, weights, gx, grows, gweights, wants_rows
):
    filters, products = np.empty(x.shape[2], x.dtype), np.empty(x.shape[2], x.dtype)
    for p in range(len(i)):
        a, b = i[p], j[p]
        for g in used:
            _sample(rows, weights[p], first[p], g, filters)
            products[:] = 0
            for c in range(len(chosen)):
                if chosen[c] == g:
                    _add_product(gx[b, c], filters, s[a, c])
                    _add_product(gx[a, c], filters, s[b, c])
                    _add_two_products(products, s[a, c], x[b, c], s[b, c], x[a, c])
            _add_dots(rows, first[p], g, products, gweights[p])
            if wants_rows:
                _spread(products, weights[p], first[p], g, grows)


@_loop
def _convolve_curvature(  # type: ignore[no-untyped-def]
    i, j, first, used, chosen, parities, s, x, rows, weights, dx, drows, dweights,
    gs, gx, grows, gweights, has_drows, wants_weights,
):  # fmt: skip
    """Derivatives in (s, x, C, w) of the change of P along (dx, dC, dw)."""
    features = x.shape[2]
    filters, dfilters = np.empty(features, x.dtype), np.empty(features, x.dtype)
    products, dproducts = np.empty(features, x.dtype), np.empty(features, x.dtype)
    for p in range(len(i)):
        a, b, m, w, dw = i[p], j[p], first[p], weights[p], dweights[p]
        for g in used:
            _sample(rows, w, m, g, filters)
            _sample(rows, dw, m, g, dfilters)
            if has_drows:
                _add_sample(drows, w, m, g, dfilters)
            products[:] = 0
            dproducts[:] = 0
            for c in range(len(chosen)):
                if chosen[c] == g:
                    _add_two_products(gs[a, c], filters, dx[b, c], dfilters, x[b, c])
                    _add_two_products(gs[b, c], filters, dx[a, c], dfilters, x[a, c])
                    _add_product(gx[b, c], dfilters, s[a, c])
                    _add_product(gx[a, c], dfilters, s[b, c])
                    _add_two_products(products, s[a, c], x[b, c], s[b, c], x[a, c])
                    _add_two_products(dproducts, s[a, c], dx[b, c], s[b, c], dx[a, c])
            _spread_two(dproducts, w, products, dw, m, g, grows)
            if wants_weights:
                _add_dots(rows, m, g, dproducts, gweights[p])
                if has_drows:
                    _add_dots(drows, m, g, products, gweights[p])


@_loop
def lift_loop(i, j, first, used, chosen, parities, x, rows, weights, tensors, received):  # type: ignore[no-untyped-def]
    filters = np.empty(x.shape[1], x.dtype)
    for p in range(len(i)):
        a, b = i[p], j[p]
        for g in used:
            _sample(rows, weights[p], first[p], g, filters)
            for c in range(len(chosen)):
                if chosen[c] == g:
                    t = tensors[p, c]
                    _add_scaled_product(received[a, c], t, filters, x[b])
                    _add_scaled_product(received[b, c], parities[c] * t, filters, x[a])


@_loop
def lift_slopes_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, chosen, parities, v, x, rows, weights, tensors,
    gx, grows, gweights, gtensors, wants_rows,
):  # fmt: skip
    features = x.shape[1]
    filters, products = np.empty(features, x.dtype), np.empty(features, x.dtype)
    va, vb = np.empty(features, x.dtype), np.empty(features, x.dtype)
    for p in range(len(i)):
        a, b, t = i[p], j[p], tensors[p]
        for g in used:
            _sample(rows, weights[p], first[p], g, filters)
            _combine(t, parities, False, chosen, g, v[a], va)
            _combine(t, parities, True, chosen, g, v[b], vb)
            _add_product(gx[b], filters, va)
            _add_product(gx[a], filters, vb)
            products[:] = 0
            _add_two_products(products, va, x[b], vb, x[a])
            _add_dots(rows, first[p], g, products, gweights[p])
            if wants_rows:
                _spread(products, weights[p], first[p], g, grows)
            for f in range(features):
                va[f], vb[f] = filters[f] * x[b, f], filters[f] * x[a, f]
            for c in range(len(chosen)):
                if chosen[c] == g:
                    gtensors[p, c] += _dot(va, v[a, c]) + parities[c] * _dot(vb, v[b, c])


@_loop
def _lift_curvature(  # type: ignore[no-untyped-def]
    i, j, first, used, chosen, parities, v, x, rows, weights, tensors,
    dx, drows, dweights, dtensors, gv, gx, grows, gweights, gtensors, has_drows, wants_geometry,
):  # fmt: skip
    """Derivatives in (v, x, C, w, T) of the change of Q along (dx, dC, dw, dT)."""
    features = x.shape[1]
    filters, dfilters = np.empty(features, x.dtype), np.empty(features, x.dtype)
    products, dproducts = np.empty(features, x.dtype), np.empty(features, x.dtype)
    va, vb = np.empty(features, x.dtype), np.empty(features, x.dtype)
    dva, dvb = np.empty(features, x.dtype), np.empty(features, x.dtype)
    sent, dsent = np.empty(features, x.dtype), np.empty(features, x.dtype)
    for p in range(len(i)):
        m, w, dw, t, dt = first[p], weights[p], dweights[p], tensors[p], dtensors[p]
        a, b = i[p], j[p]
        for g in used:
            _sample(rows, w, m, g, filters)
            _sample(rows, dw, m, g, dfilters)
            if has_drows:
                _add_sample(drows, w, m, g, dfilters)
            _combine(t, parities, False, chosen, g, v[a], va)
            _combine(t, parities, True, chosen, g, v[b], vb)
            _combine(dt, parities, False, chosen, g, v[a], dva)
            _combine(dt, parities, True, chosen, g, v[b], dvb)
            _add_two_products(gx[b], dfilters, va, filters, dva)
            _add_two_products(gx[a], dfilters, vb, filters, dvb)
            products[:] = 0
            dproducts[:] = 0
            _add_two_products(products, va, x[b], vb, x[a])
            _add_two_products(dproducts, va, dx[b], vb, dx[a])
            _add_two_products(dproducts, dva, x[b], dvb, x[a])
            _spread_two(dproducts, w, products, dw, m, g, grows)
            if wants_geometry:
                _add_dots(rows, m, g, dproducts, gweights[p])
                if has_drows:
                    _add_dots(drows, m, g, products, gweights[p])
            for to, of, is_swapped in ((a, b, False), (b, a, True)):
                for f in range(features):
                    sent[f] = filters[f] * x[of, f]
                    dsent[f] = dfilters[f] * x[of, f] + filters[f] * dx[of, f]
                for c in range(len(chosen)):
                    if chosen[c] == g:
                        sign = parities[c] if is_swapped else 1
                        target = gv[to, c]
                        for f in range(features):
                            target[f] += sign * (t[c] * dsent[f] + dt[c] * sent[f])
                        if wants_geometry:
                            gtensors[p, c] += sign * _dot(dsent, v[to, c])
