"""Quintic splines of a distance (`numerics.splines`), eight features at a time."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, lanes, load, splat, total
from ase_biasgrad.numerics.splines import N_WEIGHTS, polynomials, slope_polynomials


def _eight_columns(polynomials: np.ndarray) -> np.ndarray:
    """Polynomials `(powers, 6)` of the weights, filled up to vectors."""
    return np.pad(polynomials, ((0, 0), (0, WIDTH - N_WEIGHTS))).astype(np.float32)


VALUE, SLOPE = _eight_columns(polynomials()), _eight_columns(slope_polynomials())
lane0, lane1, lane2, lane3, lane4, lane5 = lanes[:N_WEIGHTS]


@compiled()
def value_weights(t):  # type: ignore[no-untyped-def]
    """Weights of the six coefficients at t, 0 to 1 over a bin: vectors."""
    return _weights(VALUE, t)


@compiled()
def slope_weights(t):  # type: ignore[no-untyped-def]
    """Weights of the derivative by t."""
    return _weights(SLOPE, t)


@compiled()
def _weights(polynomials, t):  # type: ignore[no-untyped-def]
    x, last = splat(t), len(polynomials) - 1
    w = load(polynomials, last * WIDTH)
    for power in range(last - 1, -1, -1):
        w = w * x + load(polynomials, power * WIDTH)
    return lane0(w), lane1(w), lane2(w), lane3(w), lane4(w), lane5(w)


@compiled()
def sample(coefficients, start, stride, weights):  # type: ignore[no-untyped-def]
    """Σ_s w_s c_s, with coefficients `stride` apart in `coefficients` from `start` on."""
    a = weights[0] * load(coefficients, start) + weights[1] * load(coefficients, start + stride)
    b = weights[2] * load(coefficients, start + 2 * stride) + weights[3] * load(
        coefficients, start + 3 * stride
    )
    a = a + weights[4] * load(coefficients, start + 4 * stride)
    return a + (b + weights[5] * load(coefficients, start + 5 * stride))


@compiled()
def no_sums():  # type: ignore[no-untyped-def]
    """Six vectors of zeros."""
    zero = splat(np.float32(0))
    return zero, zero, zero, zero, zero, zero


@compiled()
def sample_and_add(coefficients, start, stride, weights, along, sums):  # type: ignore[no-untyped-def]
    """`sample`, and sums_s + c_s ∘ along: one reading of the coefficients serves both."""
    c0, c1 = load(coefficients, start), load(coefficients, start + stride)
    c2, c3 = load(coefficients, start + 2 * stride), load(coefficients, start + 3 * stride)
    c4, c5 = load(coefficients, start + 4 * stride), load(coefficients, start + 5 * stride)
    a, b = weights[0] * c0 + weights[1] * c1, weights[2] * c2 + weights[3] * c3
    value = (a + weights[4] * c4) + (b + weights[5] * c5)
    s0, s1, s2 = sums[0] + c0 * along, sums[1] + c1 * along, sums[2] + c2 * along
    s3, s4, s5 = sums[3] + c3 * along, sums[4] + c4 * along, sums[5] + c5 * along
    return value, (s0, s1, s2, s3, s4, s5)


@compiled()
def total_slope(sums, t):  # type: ignore[no-untyped-def]
    """Derivative by t of Σ value ∘ along, from the sums of `sample_and_add`."""
    weights = slope_weights(t)
    a, b = weights[0] * sums[0] + weights[1] * sums[1], weights[2] * sums[2] + weights[3] * sums[3]
    a = a + weights[4] * sums[4]
    return total(a + (b + weights[5] * sums[5]))
