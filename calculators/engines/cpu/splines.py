"""Quintic splines of a distance (`numerics.splines`), eight features at a time."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, lanes, load, splat, total
from ase_biasgrad.numerics.splines import TAPS, polynomials, slope_polynomials


def _eight_columns(polynomials: np.ndarray) -> np.ndarray:
    """Polynomials `(powers, 6)` of the taps, filled up to vectors."""
    return np.pad(polynomials, ((0, 0), (0, WIDTH - TAPS))).astype(np.float32)


VALUE, SLOPE = _eight_columns(polynomials()), _eight_columns(slope_polynomials())
lane0, lane1, lane2, lane3, lane4, lane5 = lanes[:TAPS]


@compiled()
def value_taps(place):  # type: ignore[no-untyped-def]
    """Weights of the six coefficients at a place, 0 to 1, of an interval: vectors."""
    return _taps(VALUE, place)


@compiled()
def slope_taps(place):  # type: ignore[no-untyped-def]
    """As `value_taps`, of the derivative by the place."""
    return _taps(SLOPE, place)


@compiled()
def _taps(polynomials, place):  # type: ignore[no-untyped-def]
    t, last = splat(place), len(polynomials) - 1
    w = load(polynomials, last * WIDTH)
    for power in range(last - 1, -1, -1):
        w = w * t + load(polynomials, power * WIDTH)
    return lane0(w), lane1(w), lane2(w), lane3(w), lane4(w), lane5(w)


@compiled()
def sample(rows, start, stride, taps):  # type: ignore[no-untyped-def]
    """Σ_s taps_s c_s, with coefficients `stride` apart in `rows` from `start` on."""
    a = taps[0] * load(rows, start) + taps[1] * load(rows, start + stride)
    b = taps[2] * load(rows, start + 2 * stride) + taps[3] * load(rows, start + 3 * stride)
    a = a + taps[4] * load(rows, start + 4 * stride)
    return a + (b + taps[5] * load(rows, start + 5 * stride))


@compiled()
def no_sums():  # type: ignore[no-untyped-def]
    """Six vectors of zeros."""
    zero = splat(np.float32(0))
    return zero, zero, zero, zero, zero, zero


@compiled()
def sample_and_add(rows, start, stride, taps, along, sums):  # type: ignore[no-untyped-def]
    """`sample`, and sums_s + c_s ∘ along: one reading of the coefficients serves both."""
    c0, c1 = load(rows, start), load(rows, start + stride)
    c2, c3 = load(rows, start + 2 * stride), load(rows, start + 3 * stride)
    c4, c5 = load(rows, start + 4 * stride), load(rows, start + 5 * stride)
    a, b = taps[0] * c0 + taps[1] * c1, taps[2] * c2 + taps[3] * c3
    value = (a + taps[4] * c4) + (b + taps[5] * c5)
    s0, s1, s2 = sums[0] + c0 * along, sums[1] + c1 * along, sums[2] + c2 * along
    s3, s4, s5 = sums[3] + c3 * along, sums[4] + c4 * along, sums[5] + c5 * along
    return value, (s0, s1, s2, s3, s4, s5)


@compiled()
def total_slope(sums, place):  # type: ignore[no-untyped-def]
    """The derivative by the place of Σ value ∘ along, from the sums of `sample_and_add`."""
    taps = slope_taps(place)
    a, b = taps[0] * sums[0] + taps[1] * sums[1], taps[2] * sums[2] + taps[3] * sums[3]
    a = a + taps[4] * sums[4]
    return total(a + (b + taps[5] * sums[5]))
