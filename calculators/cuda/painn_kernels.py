"""PaiNN's messages over edges sorted by centre, and its mixing, with their derivatives.

Formulas and names as in `calculators/cpu/painn.py`; vectors μ are `(members, 3 n, width)`, row
3 i + k for component k of atom i. Kernels over edges gather for one centre in one program, the
backward pass from the mirrors in the centre's own row. Annotations must be objects, not
strings, for Triton to see its constants: no `__future__` import.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ase_biasgrad.calculators.cuda.geometry import Edges
from ase_biasgrad.calculators.cuda.tiles import (
    ROWS,
    add_to_edges,
    components,
    directions,
    edges_at_once,
    edges_of,
    own_components,
    row_grid,
    slope_of,
    tile_of_edges,
    value_and_slope,
    value_of,
)

# few enough that all values of a tile stay in registers
ELEMENTS = 512


def send(q: Tensor, x: Tensor, mu: Tensor, filters: Tensor, edges: Edges) -> Tensor:
    """q += Σ_j w1 ∘ x1_j, and returned μ + Σ_j (w2 ∘ x2_j) u + w3 ∘ x3_j ∘ μ_j.

    q `(members, n, width)`, x `(members, n, 3 width)`, filters `(members, rows, 3 width)`.
    """
    members, atoms, width = q.shape
    out = torch.empty_like(mu)
    _send[(atoms, members)](
        q, x, mu, filters, edges.first, edges.count, edges.neighbour, edges.interval, edges.place,
        edges.units, out, atoms, edges.units.shape[1], filters.stride(0),
        WIDTH=width, EDGES=edges_at_once(width, ELEMENTS),
    )  # fmt: skip
    return out


def send_first(q: Tensor, x: Tensor, filters: Tensor, edges: Edges) -> Tensor:
    """As `send` where all vectors are zero: in the first interaction."""
    members, atoms, width = q.shape
    out = q.new_empty(members, 3 * atoms, width)
    _send_first[(atoms, members)](
        q, x, filters, edges.first, edges.count, edges.neighbour, edges.interval, edges.place,
        edges.units, out, atoms, edges.units.shape[1], filters.stride(0),
        WIDTH=width, EDGES=edges_at_once(width, ELEMENTS),
    )  # fmt: skip
    return out


def send_backward(
    x: Tensor,
    mu: Tensor,
    gq: Tensor,
    gmu: Tensor,
    filters: Tensor,
    edges: Edges,
    slopes: Tensor,
    turns: Tensor,
) -> tuple[Tensor, Tensor]:
    """∂E/∂x and ∂E/∂μ before the messages from gq = ∂E/∂q and gmu = ∂E/∂μ after them.

    slopes `(members, capacity)` += ∂E/∂d of the edge's pair per spacing of the grid, turns
    `(members, 3, capacity)` += ∂E/∂u; both float64.
    """
    members, atoms, width = gq.shape
    gx, before = torch.empty_like(x), torch.empty_like(mu)
    _send_backward[(atoms, members)](
        x, mu, gq, gmu, filters, edges.first, edges.count, edges.neighbour, edges.interval,
        edges.place, edges.units, gx, before, slopes, turns, atoms, slopes.shape[1],
        filters.stride(0), WIDTH=width, EDGES=edges_at_once(width, ELEMENTS),
    )  # fmt: skip
    return gx, before


def send_first_backward(
    x: Tensor,
    gq: Tensor,
    gmu: Tensor,
    filters: Tensor,
    edges: Edges,
    slopes: Tensor,
    turns: Tensor,
) -> None:
    """As `send_backward` in the first interaction: only slopes and turns."""
    members, atoms, width = gq.shape
    _send_first_backward[(atoms, members)](
        x, gq, gmu, filters, edges.first, edges.count, edges.neighbour, edges.interval,
        edges.place, edges.units, slopes, turns, atoms, slopes.shape[1], filters.stride(0),
        WIDTH=width, EDGES=edges_at_once(width, ELEMENTS),
    )  # fmt: skip


def norms_and_products(q: Tensor, vw: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(q, |V|) `(members, n, 2 width)` and Σ_k V_k W_k; vw `(members, 3 n, 2 width)`."""
    members, atoms, width = q.shape
    joint, products = q.new_empty(members, atoms, 2 * width), torch.empty_like(q)
    _norms_and_products[row_grid(q)](q, vw, joint, products, epsilon, atoms, WIDTH=width, ROWS=ROWS)
    return joint, products


def mix(q: Tensor, mu: Tensor, a: Tensor, vw: Tensor, products: Tensor) -> Tensor:
    """q += a1 + a2 ∘ products, and returned μ + a3 ∘ W; a `(members, n, 3 width)`."""
    out = torch.empty_like(mu)
    _mix[row_grid(q)](q, mu, a, vw, products, out, q.shape[1], WIDTH=q.shape[2], ROWS=ROWS)
    return out


def mixing_gradients(gq: Tensor, gmu: Tensor, vw: Tensor, products: Tensor) -> Tensor:
    """∂E/∂a `(members, n, 3 width)` from ∂E/∂q and ∂E/∂μ after the mixing."""
    members, atoms, width = gq.shape
    ga = gq.new_empty(members, atoms, 3 * width)
    _mixing_gradients[row_grid(gq)](gq, gmu, vw, products, ga, atoms, WIDTH=width, ROWS=ROWS)
    return ga


def vector_gradients(
    gq: Tensor, gmu: Tensor, gjoint: Tensor, a: Tensor, vw: Tensor, epsilon: float
) -> Tensor:
    """∂E/∂(V, W) `(members, 3 n, 2 width)`; gq += ∂E/∂q through (q, |V|)."""
    gvw = torch.empty_like(vw)
    _vector_gradients[row_grid(gq)](
        gq, gmu, gjoint, a, vw, gvw, epsilon, gq.shape[1], WIDTH=gq.shape[2], ROWS=ROWS
    )
    return gvw


@triton.jit(do_not_specialize=["n", "capacity"])
def _send(  # type: ignore[no-untyped-def]
    q, x, mu, filters, first, count, neighbour, interval, place, units, out, n, capacity,
    filters_member, WIDTH: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, EDGES), tl.arange(0, WIDTH)[None, :]
    begin, end = edges_of(first, count, i)
    x += member * n * 3 * WIDTH
    mu += member * n * 3 * WIDTH
    filters += member * filters_member
    zero = tl.zeros([EDGES, WIDTH], tl.float32)
    scalar, mx, my, mz = zero, zero, zero, zero
    for start in range(begin, end, EDGES):
        e = start + k
        j, at, t, inside = tile_of_edges(neighbour, interval, place, e, end)
        j, at = j * 3 * WIDTH + f, at * 3 * WIDTH + f
        ux, uy, uz = directions(units, e, end, capacity)
        w = value_of(filters + at, 3 * WIDTH, t, inside)
        scalar += w * tl.load(x + j, mask=inside, other=0.0)
        w = value_of(filters + at + WIDTH, 3 * WIDTH, t, inside)
        a = w * tl.load(x + j + WIDTH, mask=inside, other=0.0)
        w = value_of(filters + at + 2 * WIDTH, 3 * WIDTH, t, inside)
        b = w * tl.load(x + j + 2 * WIDTH, mask=inside, other=0.0)
        jx, jy, jz = components(mu + j, WIDTH, inside)
        mx, my, mz = mx + a * ux + b * jx, my + a * uy + b * jy, mz + a * uz + b * jz
    row, own = (member * n + i) * WIDTH, tl.arange(0, WIDTH)
    tl.store(q + row + own, tl.load(q + row + own) + tl.sum(scalar, 0))
    out += member * n * 3 * WIDTH
    own += i.to(tl.int64) * 3 * WIDTH
    tl.store(out + own, tl.load(mu + own) + tl.sum(mx, 0))
    tl.store(out + own + WIDTH, tl.load(mu + own + WIDTH) + tl.sum(my, 0))
    tl.store(out + own + 2 * WIDTH, tl.load(mu + own + 2 * WIDTH) + tl.sum(mz, 0))


@triton.jit(do_not_specialize=["n", "capacity"])
def _send_first(  # type: ignore[no-untyped-def]
    q, x, filters, first, count, neighbour, interval, place, units, out, n, capacity,
    filters_member, WIDTH: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, EDGES), tl.arange(0, WIDTH)[None, :]
    begin, end = edges_of(first, count, i)
    x += member * n * 3 * WIDTH
    filters += member * filters_member
    zero = tl.zeros([EDGES, WIDTH], tl.float32)
    scalar, mx, my, mz = zero, zero, zero, zero
    for start in range(begin, end, EDGES):
        e = start + k
        j, at, t, inside = tile_of_edges(neighbour, interval, place, e, end)
        j, at = j * 3 * WIDTH + f, at * 3 * WIDTH + f
        w = value_of(filters + at, 3 * WIDTH, t, inside)
        scalar += w * tl.load(x + j, mask=inside, other=0.0)
        w = value_of(filters + at + WIDTH, 3 * WIDTH, t, inside)
        a = w * tl.load(x + j + WIDTH, mask=inside, other=0.0)
        ux, uy, uz = directions(units, e, end, capacity)
        mx, my, mz = mx + a * ux, my + a * uy, mz + a * uz
    row, own = (member * n + i) * WIDTH, tl.arange(0, WIDTH)
    tl.store(q + row + own, tl.load(q + row + own) + tl.sum(scalar, 0))
    out += 3 * row
    tl.store(out + own, tl.sum(mx, 0))
    tl.store(out + own + WIDTH, tl.sum(my, 0))
    tl.store(out + own + 2 * WIDTH, tl.sum(mz, 0))


@triton.jit(do_not_specialize=["n", "capacity"])
def _send_backward(  # type: ignore[no-untyped-def]
    x, mu, gq, gmu, filters, first, count, neighbour, interval, place, units, gx, before, slopes,
    turns, n, capacity, filters_member, WIDTH: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, EDGES), tl.arange(0, WIDTH)[None, :]
    begin, end = edges_of(first, count, i)
    x += member * n * 3 * WIDTH
    mu += member * n * 3 * WIDTH
    gq += member * n * WIDTH
    gmu += member * n * 3 * WIDTH
    filters += member * filters_member
    slopes += member * capacity
    turns += member * 3 * capacity
    row, own = i.to(tl.int64) * WIDTH + f, i.to(tl.int64) * 3 * WIDTH + f
    x1, x2, x3 = own_components(x + own, WIDTH)
    mx, my, mz = own_components(mu + own, WIDTH)
    gix, giy, giz = own_components(gmu + own, WIDTH)
    g = tl.load(gq + row)
    zero = tl.zeros([EDGES, WIDTH], tl.float32)
    scalar, radial, vx, vy, vz = zero, zero, zero, zero, zero
    for start in range(begin, end, EDGES):
        e = start + k
        j, at, t, inside = tile_of_edges(neighbour, interval, place, e, end)
        at = at * 3 * WIDTH + f
        ux, uy, uz = directions(units, e, end, capacity)
        # scalar messages
        gj = tl.load(gq + j * WIDTH + f, mask=inside, other=0.0)
        j = j * 3 * WIDTH + f
        w, slope = value_and_slope(filters + at, 3 * WIDTH, t, inside)
        scalar += w * gj
        along = slope * (tl.load(x + j, mask=inside, other=0.0) * g + x1 * gj)
        # messages along the unit vector, which the mirror has with the other sign
        gjx, gjy, gjz = components(gmu + j, WIDTH, inside)
        w, slope = value_and_slope(filters + at + WIDTH, 3 * WIDTH, t, inside)
        back = gjx * ux + gjy * uy + gjz * uz
        radial -= w * back
        xj = tl.load(x + j + WIDTH, mask=inside, other=0.0)
        along += slope * (xj * (gix * ux + giy * uy + giz * uz) - x2 * back)
        a, b = w * xj, w * x2
        add_to_edges(turns + e, tl.sum(a * gix - b * gjx, 1), e < end)
        add_to_edges(turns + capacity + e, tl.sum(a * giy - b * gjy, 1), e < end)
        add_to_edges(turns + 2 * capacity + e, tl.sum(a * giz - b * gjz, 1), e < end)
        # messages that carry vectors on
        w, slope = value_and_slope(filters + at + 2 * WIDTH, 3 * WIDTH, t, inside)
        vx += w * gjx
        vy += w * gjy
        vz += w * gjz
        jx, jy, jz = components(mu + j, WIDTH, inside)
        there = gix * jx + giy * jy + giz * jz
        xj = tl.load(x + j + 2 * WIDTH, mask=inside, other=0.0)
        along += slope * (xj * there + x3 * (gjx * mx + gjy * my + gjz * mz))
        add_to_edges(slopes + e, tl.sum(along, 1), e < end)
    gx += member * n * 3 * WIDTH
    before += member * n * 3 * WIDTH
    ax, ay, az = tl.sum(vx, 0)[None, :], tl.sum(vy, 0)[None, :], tl.sum(vz, 0)[None, :]
    tl.store(gx + own, tl.sum(scalar, 0)[None, :])
    tl.store(gx + own + WIDTH, tl.sum(radial, 0)[None, :])
    tl.store(gx + own + 2 * WIDTH, ax * mx + ay * my + az * mz)
    tl.store(before + own, gix + x3 * ax)
    tl.store(before + own + WIDTH, giy + x3 * ay)
    tl.store(before + own + 2 * WIDTH, giz + x3 * az)


@triton.jit(do_not_specialize=["n", "capacity"])
def _send_first_backward(  # type: ignore[no-untyped-def]
    x, gq, gmu, filters, first, count, neighbour, interval, place, units, slopes, turns, n,
    capacity, filters_member, WIDTH: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, EDGES), tl.arange(0, WIDTH)[None, :]
    begin, end = edges_of(first, count, i)
    x += member * n * 3 * WIDTH
    gq += member * n * WIDTH
    gmu += member * n * 3 * WIDTH
    filters += member * filters_member
    slopes += member * capacity
    turns += member * 3 * capacity
    row, own = i.to(tl.int64) * WIDTH + f, i.to(tl.int64) * 3 * WIDTH + f
    x1, x2, g = tl.load(x + own), tl.load(x + own + WIDTH), tl.load(gq + row)
    gix, giy, giz = own_components(gmu + own, WIDTH)
    for start in range(begin, end, EDGES):
        e = start + k
        j, at, t, inside = tile_of_edges(neighbour, interval, place, e, end)
        at = at * 3 * WIDTH + f
        ux, uy, uz = directions(units, e, end, capacity)
        gj = tl.load(gq + j * WIDTH + f, mask=inside, other=0.0)
        j = j * 3 * WIDTH + f
        slope = slope_of(filters + at, 3 * WIDTH, t, inside)
        along = slope * (tl.load(x + j, mask=inside, other=0.0) * g + x1 * gj)
        xj = tl.load(x + j + WIDTH, mask=inside, other=0.0)
        gjx, gjy, gjz = components(gmu + j, WIDTH, inside)
        tx, ty, tz = xj * gix - x2 * gjx, xj * giy - x2 * gjy, xj * giz - x2 * gjz
        w, slope = value_and_slope(filters + at + WIDTH, 3 * WIDTH, t, inside)
        along += slope * (tx * ux + ty * uy + tz * uz)
        add_to_edges(slopes + e, tl.sum(along, 1), e < end)
        add_to_edges(turns + e, tl.sum(w * tx, 1), e < end)
        add_to_edges(turns + capacity + e, tl.sum(w * ty, 1), e < end)
        add_to_edges(turns + 2 * capacity + e, tl.sum(w * tz, 1), e < end)


@triton.jit(do_not_specialize=["n"])
def _norms_and_products(  # type: ignore[no-untyped-def]
    q, vw, joint, products, epsilon, n, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    row, f = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = row < n
    row += tl.program_id(1).to(tl.int64) * n
    square, product = tl.zeros([ROWS, WIDTH], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    for component in tl.static_range(3):
        at = (3 * row + component) * 2 * WIDTH + f
        v = tl.load(vw + at, mask=inside, other=0.0)
        w = tl.load(vw + at + WIDTH, mask=inside, other=0.0)
        square += v * v
        product += v * w
    own = tl.load(q + row * WIDTH + f, mask=inside, other=0.0)
    tl.store(joint + row * 2 * WIDTH + f, own, mask=inside)
    tl.store(joint + row * 2 * WIDTH + WIDTH + f, tl.sqrt(square + epsilon), mask=inside)
    tl.store(products + row * WIDTH + f, product, mask=inside)


@triton.jit(do_not_specialize=["n"])
def _mix(  # type: ignore[no-untyped-def]
    q, mu, a, vw, products, out, n, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    row, f = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = row < n
    row += tl.program_id(1).to(tl.int64) * n
    at = row * 3 * WIDTH + f
    a1 = tl.load(a + at, mask=inside, other=0.0)
    a2 = tl.load(a + at + WIDTH, mask=inside, other=0.0)
    a3 = tl.load(a + at + 2 * WIDTH, mask=inside, other=0.0)
    change = a1 + a2 * tl.load(products + row * WIDTH + f, mask=inside, other=0.0)
    own = tl.load(q + row * WIDTH + f, mask=inside, other=0.0)
    tl.store(q + row * WIDTH + f, own + change, mask=inside)
    for component in tl.static_range(3):
        of = (3 * row + component) * 2 * WIDTH + WIDTH + f
        w = tl.load(vw + of, mask=inside, other=0.0)
        old = tl.load(mu + at + component * WIDTH, mask=inside, other=0.0)
        tl.store(out + at + component * WIDTH, old + a3 * w, mask=inside)


@triton.jit(do_not_specialize=["n"])
def _mixing_gradients(  # type: ignore[no-untyped-def]
    gq, gmu, vw, products, ga, n, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    row, f = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = row < n
    row += tl.program_id(1).to(tl.int64) * n
    g = tl.load(gq + row * WIDTH + f, mask=inside, other=0.0)
    product = tl.load(products + row * WIDTH + f, mask=inside, other=0.0)
    of_a3 = tl.zeros([ROWS, WIDTH], tl.float32)
    for component in tl.static_range(3):
        at = 3 * row + component
        w = tl.load(vw + at * 2 * WIDTH + WIDTH + f, mask=inside, other=0.0)
        of_a3 += tl.load(gmu + at * WIDTH + f, mask=inside, other=0.0) * w
    tl.store(ga + row * 3 * WIDTH + f, g, mask=inside)
    tl.store(ga + row * 3 * WIDTH + WIDTH + f, g * product, mask=inside)
    tl.store(ga + row * 3 * WIDTH + 2 * WIDTH + f, of_a3, mask=inside)


@triton.jit(do_not_specialize=["n"])
def _vector_gradients(  # type: ignore[no-untyped-def]
    gq, gmu, gjoint, a, vw, gvw, epsilon, n, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    row, f = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = row < n
    row += tl.program_id(1).to(tl.int64) * n
    g = tl.load(gq + row * WIDTH + f, mask=inside, other=0.0)
    of_product = g * tl.load(a + row * 3 * WIDTH + WIDTH + f, mask=inside, other=0.0)
    a3 = tl.load(a + row * 3 * WIDTH + 2 * WIDTH + f, mask=inside, other=0.0)
    square = tl.zeros([ROWS, WIDTH], tl.float32) + epsilon
    for component in tl.static_range(3):
        v = tl.load(vw + (3 * row + component) * 2 * WIDTH + f, mask=inside, other=0.0)
        square += v * v
    of_norm = tl.load(gjoint + row * 2 * WIDTH + WIDTH + f, mask=inside, other=0.0)
    of_norm = of_norm / tl.sqrt(square)
    for component in tl.static_range(3):
        at = (3 * row + component) * 2 * WIDTH + f
        v = tl.load(vw + at, mask=inside, other=0.0)
        w = tl.load(vw + at + WIDTH, mask=inside, other=0.0)
        of_mu = tl.load(gmu + (3 * row + component) * WIDTH + f, mask=inside, other=0.0)
        tl.store(gvw + at, of_product * w + of_norm * v, mask=inside)
        tl.store(gvw + at + WIDTH, of_product * v + a3 * of_mu, mask=inside)
    change = tl.load(gjoint + row * 2 * WIDTH + f, mask=inside, other=0.0)
    tl.store(gq + row * WIDTH + f, g + change, mask=inside)
