"""Edges by their centres, in the order of programs."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled


@compiled()
def arrange(i, j, shift, chunk, found):  # type: ignore[no-untyped-def]
    """Write edges `(e,)` from i to j to candidates with room for all; return their number.

    Lower edges within a chunk are left out: their mirrors do their work.
    """
    n = len(found.inners)  # atoms of other sub-domains follow them
    places = np.zeros((n + 1, 3), np.int64)
    for e in range(len(i)):
        kind = _kind(i[e], j[e], shift[e], chunk, n)
        if kind < 3:
            places[i[e] + 1, kind] += 1
    count = 0
    for a in range(n):
        found.starts[a] = count
        inner, upper, lower = places[a + 1, 0], places[a + 1, 1], places[a + 1, 2]
        found.inners[a], found.middles[a] = count + inner, count + inner + upper
        places[a, 0], places[a, 1], places[a, 2] = count, count + inner, count + inner + upper
        count += inner + upper + lower
    found.starts[n] = count
    for e in range(len(i)):
        kind = _kind(i[e], j[e], shift[e], chunk, n)
        if kind < 3:
            to = places[i[e], kind]
            found.neighbour[to] = j[e]
            found.shift[to, 0], found.shift[to, 1], found.shift[to, 2] = (
                shift[e, 0], shift[e, 1], shift[e, 2],
            )  # fmt: skip
            places[i[e], kind] += 1
    return count


@compiled()
def _kind(i, j, shift, chunk, n):  # type: ignore[no-untyped-def]
    """0 for inner edges, 1 for other upper ones, 2 for other lower ones, 3 for those left out."""
    # lexicographic sign: of S1, or of S2 where S1 = 0, or of S3
    sign = shift[0] if shift[0] != 0 else (shift[1] if shift[1] != 0 else shift[2])
    upper = i < j or (i == j and sign > 0)
    inner = i // chunk == j // chunk and i != j and j < n
    if inner:
        return 0 if upper else 3
    return 1 if upper else 2
