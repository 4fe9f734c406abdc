"""From candidate edges to those within the cutoff, and from their derivatives to forces.

One program has the edges of one centre, so nothing is added to from two sides: no atomics, and
the same result in every run. Annotations must be objects, not strings, for Triton to see its
constants: no `__future__` import.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ase_biasgrad.calculators.cuda.buffers import Buffers

EDGES = 32


@dataclass(frozen=True)
class Edges:
    """Directed edges within the cutoff; those of atom i from `first[i]` on, `count[i]` of them.

    Every edge is there with its mirror. Places behind a row's last edge are not written.
    """

    first: Tensor  # (n + 1,) int32
    count: Tensor  # (n,) int32
    neighbour: Tensor  # (capacity,) int32
    interval: Tensor  # (capacity,) int32, on the grid of the filters
    place: Tensor  # (capacity,) float32, 0 to 1 in the interval
    vectors: Tensor  # (3, capacity) float64, r_j − r_i in Å
    units: Tensor  # (3, capacity) float32, the same of length 1


def within_cutoff(buffers: Buffers, grid: Tensor, intervals: int) -> Edges:
    """The candidates of `buffers` closer than the cutoff.

    grid: cutoff and spacing of the filters in Å, float64, on the device (Triton would pass
    numbers as float32).
    """
    atoms, capacity, device = len(buffers.numbers), len(buffers.neighbour), grid.device
    edges = Edges(
        buffers.first,
        torch.empty(atoms, dtype=torch.int32, device=device),
        torch.empty(capacity, dtype=torch.int32, device=device),
        torch.empty(capacity, dtype=torch.int32, device=device),
        torch.empty(capacity, dtype=torch.float32, device=device),
        torch.empty(3, capacity, dtype=torch.float64, device=device),
        torch.empty(3, capacity, dtype=torch.float32, device=device),
    )
    _within_cutoff[(atoms,)](
        buffers.positions, buffers.cells, buffers.structure, buffers.first, buffers.neighbour,
        buffers.shift, grid, intervals, edges.count, edges.neighbour, edges.interval, edges.place,
        edges.vectors, edges.units, capacity, EDGES=EDGES, num_warps=1,
    )  # fmt: skip
    return edges


def radial_forces(edges: Edges, slopes: Tensor, grid: Tensor, result: Tensor) -> None:
    """Write forces and virials of ∂E/∂d of the pairs into `result`.

    slopes `(members, capacity)`, float64, in eV per spacing of the grid; result
    `(members, n, 13)`: force in columns 1 to 3 (eV/Å), the atom's half of ∂E/∂ε in 4 to 12 (eV).
    """
    _forces(edges, slopes, slopes, grid, result, turning=False)


def directed_forces(
    edges: Edges, slopes: Tensor, turns: Tensor, grid: Tensor, result: Tensor
) -> None:
    """As `radial_forces`, with turns `(members, 3, capacity)`: ∂E/∂u of the unit vectors, in eV."""
    _forces(edges, slopes, turns, grid, result, turning=True)


def _forces(
    edges: Edges, slopes: Tensor, turns: Tensor, grid: Tensor, result: Tensor, turning: bool
) -> None:
    members, atoms, columns = result.shape
    _sum_of_rows[(atoms, members)](
        edges.first, edges.count, edges.vectors, slopes, turns, grid, result, atoms,
        edges.vectors.shape[1], COLUMNS=columns, TURNING=turning, EDGES=EDGES, num_warps=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["capacity", "intervals"])
def _within_cutoff(  # type: ignore[no-untyped-def]
    positions, cells, structure, first, candidate, shift, grid, intervals,
    count, neighbour, interval, place, vectors, units, capacity, EDGES: tl.constexpr,
):  # fmt: skip
    i, k = tl.program_id(0), tl.arange(0, EDGES)
    begin, end = tl.load(first + i), tl.load(first + i + 1)
    cutoff, spacing = tl.load(grid), tl.load(grid + 1)
    xi, yi = tl.load(positions + 3 * i), tl.load(positions + 3 * i + 1)
    zi = tl.load(positions + 3 * i + 2)
    cell = cells + 9 * tl.load(structure + i)
    found = begin
    for start in range(begin, end, EDGES):
        e = start + k
        listed = e < end
        j = tl.load(candidate + e, mask=listed, other=0)
        s0 = tl.load(shift + e, mask=listed, other=0).to(tl.float64)
        s1 = tl.load(shift + capacity + e, mask=listed, other=0).to(tl.float64)
        s2 = tl.load(shift + 2 * capacity + e, mask=listed, other=0).to(tl.float64)
        x = tl.load(positions + 3 * j, mask=listed, other=0.0) - xi
        y = tl.load(positions + 3 * j + 1, mask=listed, other=0.0) - yi
        z = tl.load(positions + 3 * j + 2, mask=listed, other=0.0) - zi
        x += s0 * tl.load(cell) + s1 * tl.load(cell + 3) + s2 * tl.load(cell + 6)
        y += s0 * tl.load(cell + 1) + s1 * tl.load(cell + 4) + s2 * tl.load(cell + 7)
        z += s0 * tl.load(cell + 2) + s1 * tl.load(cell + 5) + s2 * tl.load(cell + 8)
        d = tl.sqrt(x * x + y * y + z * z)
        inside = listed & (d < cutoff)
        # those inside close up to the front of the row, in order
        earlier = (k[None, :] < k[:, None]) & (inside[None, :])
        at = found + tl.sum(earlier.to(tl.int32), 1)
        on_grid = d / spacing
        n = tl.minimum(tl.where(inside, on_grid, 0.0).to(tl.int32), intervals - 1)
        tl.store(neighbour + at, j, mask=inside)
        tl.store(interval + at, n, mask=inside)
        tl.store(place + at, (on_grid - n).to(tl.float32), mask=inside)
        tl.store(vectors + at, x, mask=inside)
        tl.store(vectors + capacity + at, y, mask=inside)
        tl.store(vectors + 2 * capacity + at, z, mask=inside)
        inverse = 1.0 / d
        tl.store(units + at, (x * inverse).to(tl.float32), mask=inside)
        tl.store(units + capacity + at, (y * inverse).to(tl.float32), mask=inside)
        tl.store(units + 2 * capacity + at, (z * inverse).to(tl.float32), mask=inside)
        found += tl.sum(inside.to(tl.int32), 0)
    tl.store(count + i, found - begin)


@triton.jit(do_not_specialize=["n", "capacity"])
def _sum_of_rows(  # type: ignore[no-untyped-def]
    first, count, vectors, slopes, turns, grid, result, n, capacity,
    COLUMNS: tl.constexpr, TURNING: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member, k = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, EDGES)
    begin = tl.load(first + i)
    end = begin + tl.load(count + i)
    spacing = tl.load(grid + 1)
    slopes += member * capacity
    turns += member * 3 * capacity
    zero = tl.zeros([EDGES], tl.float64)
    fx, fy, fz = zero, zero, zero
    xx, xy, xz = zero, zero, zero
    yx, yy, yz = zero, zero, zero
    zx, zy, zz = zero, zero, zero
    for start in range(begin, end, EDGES):
        e = start + k
        inside = e < end
        x = tl.load(vectors + e, mask=inside, other=1.0)
        y = tl.load(vectors + capacity + e, mask=inside, other=1.0)
        z = tl.load(vectors + 2 * capacity + e, mask=inside, other=1.0)
        square = x * x + y * y + z * z
        d = tl.sqrt(square)
        along = tl.load(slopes + e, mask=inside, other=0.0) / (spacing * d)
        # ∂E/∂(r_j − r_i): an edge and its mirror both hold all of their pair's
        gx, gy, gz = along * x, along * y, along * z
        if TURNING:
            tx = tl.load(turns + e, mask=inside, other=0.0) / d
            ty = tl.load(turns + capacity + e, mask=inside, other=0.0) / d
            tz = tl.load(turns + 2 * capacity + e, mask=inside, other=0.0) / d
            # a unit vector turns only across itself
            back = (tx * x + ty * y + tz * z) / square
            gx, gy, gz = gx + tx - back * x, gy + ty - back * y, gz + tz - back * z
        fx, fy, fz = fx + gx, fy + gy, fz + gz
        xx, xy, xz = xx + gx * x, xy + gx * y, xz + gx * z
        yx, yy, yz = yx + gy * x, yy + gy * y, yz + gy * z
        zx, zy, zz = zx + gz * x, zy + gz * y, zz + gz * z
    out = result + (member * n + i) * COLUMNS
    tl.store(out + 1, tl.sum(fx, 0))
    tl.store(out + 2, tl.sum(fy, 0))
    tl.store(out + 3, tl.sum(fz, 0))
    tl.store(out + 4, 0.5 * tl.sum(xx, 0))
    tl.store(out + 5, 0.5 * tl.sum(xy, 0))
    tl.store(out + 6, 0.5 * tl.sum(xz, 0))
    tl.store(out + 7, 0.5 * tl.sum(yx, 0))
    tl.store(out + 8, 0.5 * tl.sum(yy, 0))
    tl.store(out + 9, 0.5 * tl.sum(yz, 0))
    tl.store(out + 10, 0.5 * tl.sum(zx, 0))
    tl.store(out + 11, 0.5 * tl.sum(zy, 0))
    tl.store(out + 12, 0.5 * tl.sum(zz, 0))
