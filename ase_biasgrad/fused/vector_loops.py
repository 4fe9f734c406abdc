"""Loops of `vectors` on the CPU: over atoms and features.

Arrays are C-contiguous and of one floating-point type: mixed vectors `(n, 3, 2, f)`, v before w,
factors and vectors `(n, 3, f)`, scalars `(n, f)`. Features are taken in whole vectors; where their
number is no multiple of `simd.WIDTH`, copies are.
"""

from __future__ import annotations

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, for_any_width, load, splat, square_root, store

_loop = compiled(fastmath=True)


@for_any_width("mixed", "norm")
@_loop
def norm_loop(mixed, norm, epsilon):  # type: ignore[no-untyped-def]
    n, features = norm.shape
    added = splat(norm.dtype.type(epsilon))
    for a in range(n):
        for f in range(0, features, WIDTH):
            v1, v2, v3 = _vector(mixed, 6 * a * features + f, 2 * features)
            store(norm, a * features + f, square_root(v1 * v1 + v2 * v2 + v3 * v3 + added))


@for_any_width("g mixed norm", "adjoints")
@_loop
def norm_vjp_loop(g, mixed, norm, adjoints):  # type: ignore[no-untyped-def]
    n, features = norm.shape
    zero = splat(norm.dtype.type(0))
    for a in range(n):
        for f in range(0, features, WIDTH):
            q, o = a * features + f, 6 * a * features + f
            factor = load(g, q) / load(norm, q)
            for k in range(o, o + 6 * features, 2 * features):
                store(adjoints, k, factor * load(mixed, k))
                store(adjoints, k + features, zero)


@for_any_width("g mixed norm tangent", "jvp grad_mixed")
@_loop
def norm_second_order_loop(g, mixed, norm, tangent, jvp, grad_mixed):  # type: ignore[no-untyped-def]
    """Derivatives in (g, v) of the change of Σ g|v| along `tangent`."""
    n, features = norm.shape
    zero, one = splat(norm.dtype.type(0)), splat(norm.dtype.type(1))
    for a in range(n):
        for f in range(0, features, WIDTH):
            q, o = a * features + f, 6 * a * features + f
            inverse = one / load(norm, q)
            v1, v2, v3 = _vector(mixed, o, 2 * features)
            d1, d2, d3 = _vector(tangent, o, 2 * features)
            along = (v1 * d1 + v2 * d2 + v3 * d3) * inverse
            store(jvp, q, along)
            factor = load(g, q) * inverse
            along = along * inverse
            store(grad_mixed, o, factor * (d1 - along * v1))
            store(grad_mixed, o + 2 * features, factor * (d2 - along * v2))
            store(grad_mixed, o + 4 * features, factor * (d3 - along * v3))
            for k in range(o + features, o + 6 * features, 2 * features):
                store(grad_mixed, k, zero)


@for_any_width("factors mixed", "scalar vector")
@_loop
def mixing_loop(factors, mixed, scalar, vector):  # type: ignore[no-untyped-def]
    n, features = scalar.shape
    for a in range(n):
        for f in range(0, features, WIDTH):
            p, o = 3 * a * features + f, 6 * a * features + f
            a0, a1, a2 = _vector(factors, p, features)
            v1, v2, v3 = _vector(mixed, o, 2 * features)
            w1, w2, w3 = _vector(mixed, o + features, 2 * features)
            store(scalar, a * features + f, a0 + a2 * (v1 * w1 + v2 * w2 + v3 * w3))
            store(vector, p, a1 * w1)
            store(vector, p + features, a1 * w2)
            store(vector, p + 2 * features, a1 * w3)


@for_any_width("s m factors mixed", "adj_factors adj_mixed")
@_loop
def mixing_vjp_loop(s, m, factors, mixed, adj_factors, adj_mixed):  # type: ignore[no-untyped-def]
    n, features = s.shape
    for a in range(n):
        for f in range(0, features, WIDTH):
            p, o, g = 3 * a * features + f, 6 * a * features + f, load(s, a * features + f)
            m1, m2, m3 = _vector(m, p, features)
            v1, v2, v3 = _vector(mixed, o, 2 * features)
            w1, w2, w3 = _vector(mixed, o + features, 2 * features)
            store(adj_factors, p, g)
            store(adj_factors, p + features, m1 * w1 + m2 * w2 + m3 * w3)
            store(adj_factors, p + 2 * features, g * (v1 * w1 + v2 * w2 + v3 * w3))
            a1, both = load(factors, p + features), g * load(factors, p + 2 * features)
            store(adj_mixed, o, both * w1)
            store(adj_mixed, o + 2 * features, both * w2)
            store(adj_mixed, o + 4 * features, both * w3)
            store(adj_mixed, o + features, both * v1 + a1 * m1)
            store(adj_mixed, o + 3 * features, both * v2 + a1 * m2)
            store(adj_mixed, o + 5 * features, both * v3 + a1 * m3)


@for_any_width("s m factors mixed dfactors dmixed", "jvp_s jvp_m grad_factors grad_mixed")
@_loop
def mixing_second_order_loop(  # type: ignore[no-untyped-def]
    s, m, factors, mixed, dfactors, dmixed, jvp_s, jvp_m, grad_factors, grad_mixed
):
    """Derivatives in (s, m, a, v, w) of the change along (da, dv, dw)."""
    n, features = s.shape
    zero = splat(s.dtype.type(0))
    for a in range(n):
        for f in range(0, features, WIDTH):
            q, p, o = a * features + f, 3 * a * features + f, 6 * a * features + f
            m1, m2, m3 = _vector(m, p, features)
            v1, v2, v3 = _vector(mixed, o, 2 * features)
            w1, w2, w3 = _vector(mixed, o + features, 2 * features)
            dv1, dv2, dv3 = _vector(dmixed, o, 2 * features)
            dw1, dw2, dw3 = _vector(dmixed, o + features, 2 * features)
            da0, da1, da2 = _vector(dfactors, p, features)
            g, a1, a2 = load(s, q), load(factors, p + features), load(factors, p + 2 * features)
            dot = v1 * w1 + v2 * w2 + v3 * w3
            ddot = dv1 * w1 + dv2 * w2 + dv3 * w3 + v1 * dw1 + v2 * dw2 + v3 * dw3
            store(jvp_s, q, da0 + da2 * dot + a2 * ddot)
            store(jvp_m, p, da1 * w1 + a1 * dw1)
            store(jvp_m, p + features, da1 * w2 + a1 * dw2)
            store(jvp_m, p + 2 * features, da1 * w3 + a1 * dw3)
            store(grad_factors, p, zero)
            store(grad_factors, p + features, m1 * dw1 + m2 * dw2 + m3 * dw3)
            store(grad_factors, p + 2 * features, g * ddot)
            both, change = g * a2, g * da2
            store(grad_mixed, o, change * w1 + both * dw1)
            store(grad_mixed, o + 2 * features, change * w2 + both * dw2)
            store(grad_mixed, o + 4 * features, change * w3 + both * dw3)
            store(grad_mixed, o + features, change * v1 + both * dv1 + da1 * m1)
            store(grad_mixed, o + 3 * features, change * v2 + both * dv2 + da1 * m2)
            store(grad_mixed, o + 5 * features, change * v3 + both * dv3 + da1 * m3)


@for_any_width("factors mu", "sent")
@_loop
def message_loop(factors, mu, sent):  # type: ignore[no-untyped-def]
    """a² mu, added to components 1 to 3 of `sent` `(n, 4, f)`."""
    n, _, features = mu.shape
    for a in range(n):
        for f in range(0, features, WIDTH):
            factor = load(factors, (3 * a + 2) * features + f)
            for k in range(3):
                at = (4 * a + 1 + k) * features + f
                store(sent, at, load(sent, at) + factor * load(mu, (3 * a + k) * features + f))


@for_any_width("g factors mu", "adj_factors adj_mu")
@_loop
def message_vjp_loop(g, factors, mu, adj_factors, adj_mu):  # type: ignore[no-untyped-def]
    """VJP of `message_loop` from g `(n, 4, f)`; added."""
    n, _, features = mu.shape
    for a in range(n):
        for f in range(0, features, WIDTH):
            at = (3 * a + 2) * features + f
            factor, total = load(factors, at), load(adj_factors, at)
            for k in range(3):
                o = (3 * a + k) * features + f
                adjoint = load(g, (4 * a + 1 + k) * features + f)
                store(adj_mu, o, load(adj_mu, o) + factor * adjoint)
                total = total + adjoint * load(mu, o)
            store(adj_factors, at, total)


@_loop
def _vector(array, at, step):  # type: ignore[no-untyped-def]
    """Three vectors, `step` apart."""
    return load(array, at), load(array, at + step), load(array, at + 2 * step)
