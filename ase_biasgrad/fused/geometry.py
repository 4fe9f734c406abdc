"""Edges within the cutoff among candidates, forces of their adjoints, and tangents of both."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.fused.messages import dot
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
    n, kind = len(edges.ends), edges.unit.dtype
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
    `(structures, 3, 3)` in eV. Edges to atoms of other sub-domains, which follow the `n`, are
    counted there, too: half of their strain is here.
    """
    n = len(forces)
    for i in range(n):
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
            if j < n:
                forces[j, 0] -= a
                forces[j, 1] -= b
                forces[j, 2] -= c
            else:
                a, b, c = a / 2, b / 2, c / 2
            for m in range(3):
                total[0, m] += a * vectors[e, m]
                total[1, m] += b * vectors[e, m]
                total[2, m] += c * vectors[e, m]


@compiled(error_model="numpy")
def move_edges(  # type: ignore[no-untyped-def]
    moved, strain, owner, spacing, bins, slopes, bends, vectors, edges, tangents
):
    """Write the tangents of edges when atoms move by `moved (n, 3)` and cells by `strain`.

    strain `(structures, 3, 3)` is symmetric, r' = r (1 + ε). With the polynomials of the first and
    second derivatives of spline weights, `slopes (5, 6)` and `bends (4, 6)`. Adjoints become 0.
    """
    kind = edges.unit.dtype
    for i in range(len(moved)):
        turned = strain[owner[i]]
        for e in range(edges.starts[i], edges.ends[i]):
            j, d = edges.neighbour[e], vectors[e, 3]
            x, y, z = vectors[e, 0], vectors[e, 1], vectors[e, 2]
            a, b, c = _change((x, y, z), moved, i, j, turned)
            tangents.adjoints[e, :] = 0
            tangents.still[e] = a == 0 and b == 0 and c == 0
            if tangents.still[e]:
                tangents.unit[e, :] = 0
                tangents.weights[e, :, :] = 0
                continue
            x, y, z = x / d, y / d, z / d
            along = a * x + b * y + c * z
            tangents.unit[e, 0] = kind.type((a - along * x) / d)
            tangents.unit[e, 1] = kind.type((b - along * y) / d)
            tangents.unit[e, 2] = kind.type((c - along * z) / d)
            k = min(int(d / spacing), bins - 1)
            t, step = d / spacing - k, along / spacing
            for w in range(6):
                slope, bend = slopes[4, w], bends[3, w]
                for power in range(3, -1, -1):
                    slope = slope * t + slopes[power, w]
                for power in range(2, -1, -1):
                    bend = bend * t + bends[power, w]
                tangents.weights[e, 0, w] = kind.type(slope * step)
                tangents.weights[e, 1, w] = kind.type(bend * step)


@compiled(error_model="numpy")
def add_force_tangents(  # type: ignore[no-untyped-def]
    moved, strain, vectors, edges, tangents, owner, spacing, forces, strain_gradient
):
    """Add the change of what `add_forces` gives, for edges that `move_edges` has moved."""
    for i in range(len(forces)):
        turned, total = strain[owner[i]], strain_gradient[owner[i]]
        for e in range(edges.starts[i], edges.middles[i]):
            j, d = edges.neighbour[e], vectors[e, 3]
            r = vectors[e, 0], vectors[e, 1], vectors[e, 2]
            dr = _change(r, moved, i, j, turned)
            u = r[0] / d, r[1] / d, r[2] / d
            moved_d = dot(dr, u)
            du = _sum(1 / d, dr, -moved_d / d, u)
            a, da = edges.adjoints[e, 0] / spacing, tangents.adjoints[e, 0] / spacing
            b = edges.adjoints[e, 1], edges.adjoints[e, 2], edges.adjoints[e, 3]
            db = tangents.adjoints[e, 1], tangents.adjoints[e, 2], tangents.adjoints[e, 3]
            bu, dbu = dot(b, u), dot(db, u) + dot(b, du)
            along, dalong = a - bu / d, da - dbu / d + bu * moved_d / (d * d)
            g = _sum(along, u, 1 / d, b)  # the pull
            turns = _sum(1 / d, db, -moved_d / (d * d), b)
            dg = _sum(1.0, _sum(dalong, u, along, du), 1.0, turns)
            for m in range(3):
                forces[i, m] += dg[m]
                forces[j, m] -= dg[m]
                for k in range(3):
                    total[m, k] += dg[m] * r[k] + g[m] * dr[k]


@compiled(forceinline=True)
def _change(r, moved, i, j, turned):  # type: ignore[no-untyped-def]
    """Change of the vector r from atom i to j."""
    return (
        moved[j, 0] - moved[i, 0] + r[0] * turned[0, 0] + r[1] * turned[1, 0] + r[2] * turned[2, 0],
        moved[j, 1] - moved[i, 1] + r[0] * turned[0, 1] + r[1] * turned[1, 1] + r[2] * turned[2, 1],
        moved[j, 2] - moved[i, 2] + r[0] * turned[0, 2] + r[1] * turned[1, 2] + r[2] * turned[2, 2],
    )


@compiled(forceinline=True)
def _sum(s, a, t, b):  # type: ignore[no-untyped-def]
    """s a + t b of vectors."""
    return s * a[0] + t * b[0], s * a[1] + t * b[1], s * a[2] + t * b[2]
