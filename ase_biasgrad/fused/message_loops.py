"""Loops of `messages` on the CPU: over pairs, filters, features and components.

Arrays are those of `messages`, C-contiguous and of one floating-point type. Features are
taken in whole vectors; where their number is no multiple of `simd.WIDTH`, copies are. Filter k of
those `used` belongs to the components `order[ends[k]:ends[k + 1]]`. Everything is added to what
the results hold; results that are not wanted may be empty.
"""

from __future__ import annotations

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, for_any_width, load, splat, store, total

_loop = compiled(fastmath=True)


@for_any_width("x coefficients", "received")
@_loop
def cfconv_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, ends, order, parities, x, coefficients, weights, received
):
    _, components, features = x.shape
    step = coefficients.shape[1] * features
    for p in range(len(i)):
        a, b, w = i[p] * components, j[p] * components, _splats(weights, p)
        for k in range(len(used)):
            at = first[p] * step + used[k] * features
            for f in range(0, features, WIDTH):
                value = _sampled(coefficients, at + f, step, w)
                for c in order[ends[k] : ends[k + 1]]:
                    one, two = (a + c) * features + f, (b + c) * features + f
                    _add(received, one, value * load(x, two))
                    _add(received, two, value * load(x, one))


@for_any_width("s x coefficients", "adj_x adj_coefficients")
@_loop
def cfconv_vjp_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, ends, order, parities, s, x, coefficients, weights,
    adj_x, adj_coefficients, adj_weights, wants_coefficients, wants_weights,
):  # fmt: skip
    _, components, features = x.shape
    step, zero = coefficients.shape[1] * features, splat(x.dtype.type(0))
    products = np.empty(features, x.dtype)
    for p in range(len(i)):
        a, b, w = i[p] * components, j[p] * components, _splats(weights, p)
        for k in range(len(used)):
            at = first[p] * step + used[k] * features
            for f in range(0, features, WIDTH):
                value, product = _sampled(coefficients, at + f, step, w), zero
                for c in order[ends[k] : ends[k + 1]]:
                    one, two = (a + c) * features + f, (b + c) * features + f
                    s1, s2 = load(s, one), load(s, two)
                    _add(adj_x, two, value * s1)
                    _add(adj_x, one, value * s2)
                    product = product + s1 * load(x, two) + s2 * load(x, one)
                store(products, f, product)
            if wants_weights:
                _add_dots(coefficients, at, step, products, adj_weights, p)
            if wants_coefficients:
                _spread(products, w, adj_coefficients, at, step)


@for_any_width("s x coefficients dx", "jvp grad_x grad_coefficients")
@_loop
def cfconv_second_order_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, ends, order, parities, s, x, coefficients, weights, dx, dweights,
    jvp, grad_x, grad_coefficients,
):  # fmt: skip
    """Derivatives in (s, x, C) of the change of P along (dx, dw)."""
    _, components, features = x.shape
    step, zero = coefficients.shape[1] * features, splat(x.dtype.type(0))
    products, dproducts = np.empty(features, x.dtype), np.empty(features, x.dtype)
    for p in range(len(i)):
        a, b = i[p] * components, j[p] * components
        w, dw = _splats(weights, p), _splats(dweights, p)
        for k in range(len(used)):
            at = first[p] * step + used[k] * features
            for f in range(0, features, WIDTH):
                value, dvalue = _both_sampled(coefficients, at + f, step, w, dw)
                product, dproduct = zero, zero
                for c in order[ends[k] : ends[k + 1]]:
                    one, two = (a + c) * features + f, (b + c) * features + f
                    s1, s2, x1, x2 = load(s, one), load(s, two), load(x, one), load(x, two)
                    dx1, dx2 = load(dx, one), load(dx, two)
                    _add(jvp, one, value * dx2 + dvalue * x2)
                    _add(jvp, two, value * dx1 + dvalue * x1)
                    _add(grad_x, two, dvalue * s1)
                    _add(grad_x, one, dvalue * s2)
                    product = product + s1 * x2 + s2 * x1
                    dproduct = dproduct + s1 * dx2 + s2 * dx1
                store(products, f, product)
                store(dproducts, f, dproduct)
            _spread_both(dproducts, w, products, dw, grad_coefficients, at, step)


@for_any_width("x centre coefficients", "received")
@_loop
def tensor_message_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, ends, order, parities, x, centre, coefficients, weights, tensors, received
):
    _, components, features = received.shape
    step = coefficients.shape[1] * features
    for p in range(len(i)):
        a, b, w = i[p], j[p], _splats(weights, p)
        for k in range(len(used)):
            at = first[p] * step + used[k] * features
            for f in range(0, features, WIDTH):
                value = _sampled(coefficients, at + f, step, w)
                x1, x2 = _sent(x, centre, a * features + f, b * features + f)
                x1, x2 = value * x1, value * x2
                for c in order[ends[k] : ends[k + 1]]:
                    t = tensors[p, c]
                    _add(received, (a * components + c) * features + f, t * x2)
                    _add(received, (b * components + c) * features + f, parities[c] * t * x1)


@for_any_width("v x centre coefficients", "adj_x adj_centre adj_coefficients")
@_loop
def tensor_message_vjp_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, ends, order, parities, v, x, centre, coefficients, weights, tensors,
    adj_x, adj_centre, adj_coefficients, adj_weights, adj_tensors, wants_coefficients,
    wants_geometry,
):  # fmt: skip
    _, components, features = v.shape
    step, zero = coefficients.shape[1] * features, splat(x.dtype.type(0))
    products = np.empty(features, x.dtype)
    sent1, sent2 = np.empty(features, x.dtype), np.empty(features, x.dtype)
    for p in range(len(i)):
        a, b, w = i[p], j[p], _splats(weights, p)
        for k in range(len(used)):
            at = first[p] * step + used[k] * features
            chosen = order[ends[k] : ends[k + 1]]
            for f in range(0, features, WIDTH):
                value, v1, v2 = _sampled(coefficients, at + f, step, w), zero, zero
                for c in chosen:
                    t = tensors[p, c]
                    v1 = v1 + t * load(v, (a * components + c) * features + f)
                    v2 = v2 + parities[c] * t * load(v, (b * components + c) * features + f)
                x1, x2 = _sent(x, centre, a * features + f, b * features + f)
                _add_sent_vjp(
                    adj_x, adj_centre, a * features + f, b * features + f, value * v2, value * v1
                )
                store(products, f, v1 * x2 + v2 * x1)
                store(sent1, f, value * x1)
                store(sent2, f, value * x2)
            if wants_coefficients:
                _spread(products, w, adj_coefficients, at, step)
            if wants_geometry:
                _add_dots(coefficients, at, step, products, adj_weights, p)
                for c in chosen:
                    one, two = (a * components + c) * features, (b * components + c) * features
                    of_one, of_two = _two_dots(sent2, v, one, sent1, v, two)
                    adj_tensors[p, c] += of_one + parities[c] * of_two


@for_any_width("v x centre coefficients dx", "jvp grad_x grad_centre grad_coefficients")
@_loop
def tensor_message_second_order_loop(  # type: ignore[no-untyped-def]
    i, j, first, used, ends, order, parities, v, x, centre, coefficients, weights, tensors,
    dx, dweights, dtensors, jvp, grad_x, grad_centre, grad_coefficients,
):  # fmt: skip
    """Derivatives in (v, x, C) of the change of Q along (dx, dw, dT)."""
    _, components, features = v.shape
    step, zero = coefficients.shape[1] * features, splat(x.dtype.type(0))
    products, dproducts = np.empty(features, x.dtype), np.empty(features, x.dtype)
    for p in range(len(i)):
        a, b, w, dw = i[p], j[p], _splats(weights, p), _splats(dweights, p)
        for k in range(len(used)):
            at = first[p] * step + used[k] * features
            chosen = order[ends[k] : ends[k + 1]]
            for f in range(0, features, WIDTH):
                value, dvalue = _both_sampled(coefficients, at + f, step, w, dw)
                x1, x2 = _sent(x, centre, a * features + f, b * features + f)
                dx1, dx2 = load(dx, a * features + f), load(dx, b * features + f)
                sent_1, sent_2 = value * x1, value * x2
                dsent_1, dsent_2 = dvalue * x1 + value * dx1, dvalue * x2 + value * dx2
                v1, v2, dv1, dv2 = zero, zero, zero, zero
                for c in chosen:
                    t, dt = tensors[p, c], dtensors[p, c]
                    one, two = (a * components + c) * features, (b * components + c) * features
                    of_one, of_two = load(v, one + f), parities[c] * load(v, two + f)
                    v1, dv1 = v1 + t * of_one, dv1 + dt * of_one
                    v2, dv2 = v2 + t * of_two, dv2 + dt * of_two
                    _add(jvp, one + f, t * dsent_2 + dt * sent_2)
                    _add(jvp, two + f, parities[c] * (t * dsent_1 + dt * sent_1))
                v1s, v2s = dvalue * v1 + value * dv1, dvalue * v2 + value * dv2
                _add_sent_vjp(grad_x, grad_centre, a * features + f, b * features + f, v2s, v1s)
                store(products, f, v1 * x2 + v2 * x1)
                store(dproducts, f, v1 * dx2 + v2 * dx1 + dv1 * x2 + dv2 * x1)
            _spread_both(dproducts, w, products, dw, grad_coefficients, at, step)


@_loop
def _splats(weights, p):  # type: ignore[no-untyped-def]
    return (
        splat(weights[p, 0]), splat(weights[p, 1]), splat(weights[p, 2]),
        splat(weights[p, 3]), splat(weights[p, 4]), splat(weights[p, 5]),
    )  # fmt: skip


@_loop
def _add(array, at, vector):  # type: ignore[no-untyped-def]
    store(array, at, load(array, at) + vector)


@_loop
def _sent(x, centre, one, two):  # type: ignore[no-untyped-def]
    """Features sent from the atom at `one` to that at `two`, and back; `centre` may be empty."""
    x1, x2 = load(x, one), load(x, two)
    if len(centre):
        x1, x2 = x1 + load(centre, two), x2 + load(centre, one)
    return x1, x2


@_loop
def _add_sent_vjp(adj_x, adj_centre, one, two, g1, g2):  # type: ignore[no-untyped-def]
    """VJP of `_sent`: add its adjoints g1, g2."""
    _add(adj_x, one, g1)
    _add(adj_x, two, g2)
    if len(adj_centre):
        _add(adj_centre, two, g1)
        _add(adj_centre, one, g2)


@_loop
def _sampled(c, at, step, w):  # type: ignore[no-untyped-def]
    """The spline with weights w of the six coefficients from `at` on, `step` apart."""
    one = w[0] * load(c, at) + w[1] * load(c, at + step)
    two = w[2] * load(c, at + 2 * step) + w[3] * load(c, at + 3 * step)
    return one + two + w[4] * load(c, at + 4 * step) + w[5] * load(c, at + 5 * step)


@_loop
def _both_sampled(c, at, step, w, dw):  # type: ignore[no-untyped-def]
    """The splines with weights w and dw."""
    row = load(c, at)
    value, dvalue = w[0] * row, dw[0] * row
    for t in range(1, 6):
        row = load(c, at + t * step)
        value, dvalue = value + w[t] * row, dvalue + dw[t] * row
    return value, dvalue


@_loop
def _add_dots(c, at, step, values, out, p):  # type: ignore[no-untyped-def]
    """Products of the six coefficients with `values`, summed over features, to `out[p]`."""
    value = load(values, 0)
    t0, t1 = value * load(c, at), value * load(c, at + step)
    t2, t3 = value * load(c, at + 2 * step), value * load(c, at + 3 * step)
    t4, t5 = value * load(c, at + 4 * step), value * load(c, at + 5 * step)
    for f in range(WIDTH, len(values), WIDTH):
        value, k = load(values, f), at + f
        t0, t1 = t0 + value * load(c, k), t1 + value * load(c, k + step)
        t2, t3 = t2 + value * load(c, k + 2 * step), t3 + value * load(c, k + 3 * step)
        t4, t5 = t4 + value * load(c, k + 4 * step), t5 + value * load(c, k + 5 * step)
    out[p, 0] += total(t0)
    out[p, 1] += total(t1)
    out[p, 2] += total(t2)
    out[p, 3] += total(t3)
    out[p, 4] += total(t4)
    out[p, 5] += total(t5)


@_loop
def _two_dots(a, b, at, c, d, dt):  # type: ignore[no-untyped-def]
    """a · b[at:] and c · d[dt:], over the features that a and c have."""
    one, two = load(a, 0) * load(b, at), load(c, 0) * load(d, dt)
    for f in range(WIDTH, len(a), WIDTH):
        one = one + load(a, f) * load(b, at + f)
        two = two + load(c, f) * load(d, dt + f)
    return total(one), total(two)


@_loop
def _spread(values, w, c, at, step):  # type: ignore[no-untyped-def]
    """`values` to the six coefficients, each by its weight: the transpose of `_sampled`."""
    for f in range(0, len(values), WIDTH):
        value, k = load(values, f), at + f
        _add(c, k, w[0] * value)
        _add(c, k + step, w[1] * value)
        _add(c, k + 2 * step, w[2] * value)
        _add(c, k + 3 * step, w[3] * value)
        _add(c, k + 4 * step, w[4] * value)
        _add(c, k + 5 * step, w[5] * value)


@_loop
def _spread_both(values, w, others, dw, c, at, step):  # type: ignore[no-untyped-def]
    """`values` by w and `others` by dw."""
    for f in range(0, len(values), WIDTH):
        one, two, k = load(values, f), load(others, f), at + f
        _add(c, k, w[0] * one + dw[0] * two)
        _add(c, k + step, w[1] * one + dw[1] * two)
        _add(c, k + 2 * step, w[2] * one + dw[2] * two)
        _add(c, k + 3 * step, w[3] * one + dw[3] * two)
        _add(c, k + 4 * step, w[4] * one + dw[4] * two)
        _add(c, k + 5 * step, w[5] * one + dw[5] * two)
