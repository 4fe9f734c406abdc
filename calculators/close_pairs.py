"""Pairs of atoms that are closer than a distance of their own, and neighbours of atoms."""

from __future__ import annotations

import math

from ase_biasgrad.numerics.kernel_cache import compiled


@compiled(error_model="numpy")
def measure_pairs(  # type: ignore[no-untyped-def]
    positions, cell, candidates, whole, none, kinds, low, high, counts, found
):
    """Count pairs that are too close, and atoms with too few or too many neighbours.

    Positions `(n, 3)` and cell `(3, 3)` in Å; pairs are `extrapolation.Candidates`. `found (2,)`
    gets the number of pairs that are closer than the closest in training, and that of the `counts
    (n, k)` outside of `low` and `high (n, k)`. These are the coordination numbers of
    `training_range.Coordination` by the `kinds (n,)` of neighbours, which count from `none` bond
    lengths on, and wholly within `whole`; with k = 0 there are none.
    """
    first, second, shift, squares, lengths = candidates
    counts[:] = 0.0
    closer = 0
    for p in range(len(first)):
        i, j = first[p], second[p]
        square = 0.0
        for k in range(3):
            d = positions[j, k] - positions[i, k]
            d += shift[p, 0] * cell[0, k] + shift[p, 1] * cell[1, k] + shift[p, 2] * cell[2, k]
            square += d * d
        if square < squares[p]:
            closer += 1
        if counts.shape[1] and square < (none * lengths[p]) ** 2:
            t = min(1.0, (none - math.sqrt(square) / lengths[p]) / (none - whole))
            share = t * t * (3.0 - 2.0 * t)
            counts[i, kinds[j]] += share
            counts[j, kinds[i]] += share
    outside = 0
    for i in range(counts.shape[0]):
        for k in range(counts.shape[1]):
            if counts[i, k] < low[i, k] or counts[i, k] > high[i, k]:
                outside += 1
    found[0], found[1] = closer, outside
