"""Count of the pairs of atoms that are closer than a distance of their own."""

from __future__ import annotations

from ase_biasgrad.numerics.kernel_cache import compiled


@compiled(error_model="numpy")
def count_closer(positions, cell, first, second, shift, squares, found):  # type: ignore[no-untyped-def]
    """Write to `found (1,)` how many pairs have a squared distance below `squares (p,)` Å².

    Positions `(n, 3)` and cell `(3, 3)` in Å, atoms `(p,)` of each pair and its shift `(p, 3)` by
    cells.
    """
    count = 0
    for p in range(len(first)):
        i, j = first[p], second[p]
        square = 0.0
        for k in range(3):
            d = positions[j, k] - positions[i, k]
            d += shift[p, 0] * cell[0, k] + shift[p, 1] * cell[1, k] + shift[p, 2] * cell[2, k]
            square += d * d
        if square < squares[p]:
            count += 1
    found[0] = count
