"""Half neighbour lists: every pair once, for engines in which a pair and its mirror share work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ase_biasgrad.neighbours import Edges


@dataclass(frozen=True)
class HalfPairs:
    """Atoms i `(p,)` and j `(p,)`, int32, and the cell shift `(p, 3)` of j.

    They hold every pair within the cutoff, and some beyond it.
    """

    i: np.ndarray
    j: np.ndarray
    shift: np.ndarray


def half(edges: Edges) -> HalfPairs:
    """One of each two directed edges that mirror each other; self-images by the sign of shifts."""
    i, j, s = edges.centre, edges.neighbour, edges.shift
    # lexicographic sign: of S1, or of S2 where S1 = 0, or of S3
    first = np.where(s[:, 0] != 0, s[:, 0], np.where(s[:, 1] != 0, s[:, 1], s[:, 2]))
    keep = (i < j) | ((i == j) & (first > 0))
    return HalfPairs(*(np.ascontiguousarray(part[keep], dtype=np.int32) for part in (i, j, s)))


def joined(lists: Sequence[HalfPairs], sizes: Sequence[int]) -> HalfPairs:
    """Pairs of several structures with `sizes` atoms as those of one."""
    first = np.cumsum([0, *sizes[:-1]]).astype(np.int32)
    return HalfPairs(
        np.concatenate([pairs.i + start for pairs, start in zip(lists, first, strict=True)]),
        np.concatenate([pairs.j + start for pairs, start in zip(lists, first, strict=True)]),
        np.concatenate([pairs.shift for pairs in lists]),
    )
