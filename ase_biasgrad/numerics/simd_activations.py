"""Activation functions and their derivatives on vectors of eight float32.

Coefficients of exp: Cephes (S. Moshier), `expf`, within 2 ulp. log1p is the series of the inverse
hyperbolic tangent, log(1 + u) = 2 artanh(u / (2 + u)), within 2 ulp for 0 ≤ u ≤ 1.
"""

from __future__ import annotations

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import absolute, larger, power_of_two, rounded, smaller, splat_like

F = np.float32
LOG2E, LOG2 = F(1.44269504088896341), F(np.log(2.0))
# log 2 in two parts, so that the remainder is exact
LOG2_HIGH, LOG2_LOW = F(0.693359375), F(-2.12194440e-4)
E0, E1, E2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
E3, E4, E5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)
THIRD, FIFTH, SEVENTH = F(1 / 3), F(1 / 5), F(1 / 7)
NINTH, ELEVENTH, THIRTEENTH = F(1 / 9), F(1 / 11), F(1 / 13)
ONE, TWO, HALF, ZERO, LOWEST = F(1), F(2), F(0.5), F(0), F(-87)


@compiled()
def exp_negative(x):  # type: ignore[no-untyped-def]
    """exp(x) of a vector with x ≤ 0; below −87 as there. NaN stays NaN."""
    x = larger(x, splat_like(LOWEST, x))
    whole = rounded(x * splat_like(LOG2E, x))
    r = x - whole * splat_like(LOG2_HIGH, x) - whole * splat_like(LOG2_LOW, x)
    p = splat_like(E0, x) * r + splat_like(E1, x)
    p = p * r + splat_like(E2, x)
    p = p * r + splat_like(E3, x)
    p = p * r + splat_like(E4, x)
    p = p * r + splat_like(E5, x)
    return (p * r * r + r + splat_like(ONE, x)) * power_of_two(whole)


@compiled()
def log1p(u):  # type: ignore[no-untyped-def]
    """log(1 + u) of a vector with 0 ≤ u ≤ 1."""
    z = u / (u + splat_like(TWO, u))
    s = z * z
    p = splat_like(THIRTEENTH, u) * s + splat_like(ELEVENTH, u)
    p = p * s + splat_like(NINTH, u)
    p = p * s + splat_like(SEVENTH, u)
    p = p * s + splat_like(FIFTH, u)
    p = p * s + splat_like(THIRD, u)
    p = p * s + splat_like(ONE, u)
    return (z + z) * p


@compiled()
def logistic(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(−x)) of a vector."""
    e = exp_negative(splat_like(ZERO, x) - absolute(x))
    small = e / (splat_like(ONE, x) + e)  # of −|x|
    # exact for both signs: σ(x) = ½ + sign(x) (½ − small)
    sign = larger(smaller(x * splat_like(F(1e38), x), splat_like(ONE, x)), splat_like(-ONE, x))
    return splat_like(HALF, x) + sign * (splat_like(HALF, x) - small)
