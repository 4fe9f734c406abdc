"""Edges within the cutoff among candidates, and forces of their derivatives."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled


@compiled(error_model="numpy")  # coincident atoms: NaN, which is reported
def edges_within(  # type: ignore[no-untyped-def]
    block, blocks, positions, cells, owner, candidates, cutoff, spacing, bins, values, slopes,
    vectors, edges,
):  # fmt: skip
    """Write the edges of a block of atoms that are closer than `cutoff`, in order.

    positions `(n, 3)`, cells `(structures, 3, 3)`, owner `(n,)` of the atoms. The edges of an atom
    begin where its candidates do. Of each: vectors `(e, 4)`, r_j − r_i and its length in Å; and
    what `Edges` holds, with the polynomials of spline weights, `values (6, 6)` and
    `slopes (5, 6)`. Adjoints become 0.
    """
    n, kind = len(positions), edges.unit.dtype
    for i in range(n * block // blocks, n * (block + 1) // blocks):
        e, cell, inner, upper = (
            edges.starts[i], cells[owner[i]], candidates.inners[i], candidates.middles[i],
        )  # fmt: skip
        for c in range(edges.starts[i], edges.starts[i + 1]):
            if c == inner:
                edges.inners[i] = e
            if c == upper:
                edges.middles[i] = e
            j = candidates.neighbour[c]
            x = positions[j, 0] - positions[i, 0]
            y = positions[j, 1] - positions[i, 1]
            z = positions[j, 2] - positions[i, 2]
            s0, s1, s2 = candidates.shift[c, 0], candidates.shift[c, 1], candidates.shift[c, 2]
            if s0 != 0 or s1 != 0 or s2 != 0:
                x += s0 * cell[0, 0] + s1 * cell[1, 0] + s2 * cell[2, 0]
                y += s0 * cell[0, 1] + s1 * cell[1, 1] + s2 * cell[2, 1]
                z += s0 * cell[0, 2] + s1 * cell[1, 2] + s2 * cell[2, 2]
            d = np.sqrt(x * x + y * y + z * z)
            if d < cutoff:
                vectors[e, 0], vectors[e, 1], vectors[e, 2], vectors[e, 3] = x, y, z, d
                edges.neighbour[e] = j
                edges.unit[e, 0], edges.unit[e, 1] = kind.type(x / d), kind.type(y / d)
                edges.unit[e, 2] = kind.type(z / d)
                k = min(int(d / spacing), bins - 1)
                edges.bin[e] = k
                t = d / spacing - k
                for w in range(6):
                    value = values[5, w]
                    for power in range(4, -1, -1):
                        value = value * t + values[power, w]
                    edges.weights[e, 0, w] = kind.type(value)
                if c < upper:
                    for w in range(6):
                        slope = slopes[4, w]
                        for power in range(3, -1, -1):
                            slope = slope * t + slopes[power, w]
                        edges.weights[e, 1, w] = kind.type(slope)
                    edges.adjoints[e, :] = 0
                e += 1
        if inner == edges.starts[i + 1]:
            edges.inners[i] = e
        if upper == edges.starts[i + 1]:
            edges.middles[i] = e
        edges.ends[i] = e


@compiled(error_model="numpy")
def add_forces(vectors, edges, owner, spacing, forces, strain):  # type: ignore[no-untyped-def]
    """Add forces `(n, 3)` in eV/Å, and ∂E/∂ε of each structure, from the adjoints of upper edges.

    Adjoints `(e, 4)`: ∂E/∂d per spacing, and ∂E/∂u of the unit vectors. strain
    `(structures, 3, 3)` in eV.
    """
    for i in range(len(forces)):
        total = strain[owner[i]]
        for e in range(edges.starts[i], edges.middles[i]):
            d = vectors[e, 3]
            x, y, z = vectors[e, 0] / d, vectors[e, 1] / d, vectors[e, 2] / d
            a, b, c = edges.adjoints[e, 1], edges.adjoints[e, 2], edges.adjoints[e, 3]
            # a unit vector turns only across itself
            along = edges.adjoints[e, 0] / spacing - (a * x + b * y + c * z) / d
            a, b, c = along * x + a / d, along * y + b / d, along * z + c / d
            j = edges.neighbour[e]
            forces[i, 0] += a
            forces[i, 1] += b
            forces[i, 2] += c
            forces[j, 0] -= a
            forces[j, 1] -= b
            forces[j, 2] -= c
            for m in range(3):
                total[0, m] += a * vectors[e, m]
                total[1, m] += b * vectors[e, m]
                total[2, m] += c * vectors[e, m]
