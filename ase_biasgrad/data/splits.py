"""Seeded splits of frames into disjoint parts, as index lists."""

from __future__ import annotations

import numpy as np


def random_split(
    n: int, sizes: dict[str, int | float], seed: int, contiguous: bool = False
) -> dict[str, np.ndarray]:
    """Disjoint sorted indices `(size,)` for each name in `sizes`.

    Parameters
    ----------
    n
        Number of frames.
    sizes
        Numbers of frames (integers), or shares of all frames (floats up to 1).
    seed
        The same seed gives the same split.
    contiguous
        Give each part one block of consecutive frames, the blocks in random order: frames of
        one trajectory are correlated, and neighbours in different parts flatter the errors.

    Raises
    ------
    ValueError
        If a size is neither, a part is empty, or together they need more frames than there are.
    """
    counts = {name: _count(name, size, n) for name, size in sizes.items()}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"the {name} part of {n} frames would be empty (size {sizes[name]})")
    if (total := sum(counts.values())) > n:
        raise ValueError(f"the parts {counts} need {total} frames, and there are {n}")
    random = np.random.default_rng(seed)
    if not contiguous:
        order = random.permutation(n)
        ends = np.cumsum(list(counts.values()))
        return {
            k: np.sort(order[end - counts[k] : end]) for k, end in zip(counts, ends, strict=True)
        }
    names = list(counts)
    first, parts = 0, {}
    for k in random.permutation(len(names)):
        parts[names[k]] = np.arange(first, first + counts[names[k]])
        first += counts[names[k]]
    return {name: parts[name] for name in names}


def _count(name: str, size: int | float, n: int) -> int:
    """Frames of a part: `size` itself, or that share of `n`, rounded down."""
    if isinstance(size, float) and 0 < size <= 1:
        return int(np.floor(size * n + 1e-9))
    if size != size or size < 0 or size != int(size):
        raise ValueError(f"the size of the {name} part is {size}; give a number or share of frames")
    return int(size)
