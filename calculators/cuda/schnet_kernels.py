"""SchNet's convolution over edges sorted by centre, and its derivatives.

One program gathers for one centre. The backward pass gathers, too: an edge's mirror is in the
list, so what neighbour j receives from i is found in j's own row. Annotations must be objects,
not strings, for Triton to see its constants: no `__future__` import.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ase_biasgrad.calculators.cuda.geometry import Edges
from ase_biasgrad.calculators.cuda.tiles import (
    add_to_edges,
    edges_at_once,
    edges_of,
    slope_of,
    tile_of_edges,
    value_and_slope,
    value_of,
)

ELEMENTS = 1024


def convolve(y: Tensor, filters: Tensor, edges: Edges) -> Tensor:
    """Messages Σ_j w(d_ij) ∘ y_j; y `(members, n, width)`, filters `(members, rows, width)`."""
    members, atoms, width = y.shape
    out = torch.empty_like(y)
    _convolve[(atoms, members)](
        y, filters, edges.first, edges.count, edges.neighbour, edges.interval, edges.place, out,
        atoms, filters.stride(0), WIDTH=width, EDGES=edges_at_once(width, ELEMENTS),
    )  # fmt: skip
    return out


def convolve_backward(
    y: Tensor, gradient: Tensor, filters: Tensor, edges: Edges, slopes: Tensor
) -> Tensor:
    """∂E/∂y from gradient = ∂E/∂m `(members, n, width)`.

    slopes `(members, capacity)`, float64, += ∂E/∂d of the edge's pair per spacing of the grid.
    """
    members, atoms, width = y.shape
    out = torch.empty_like(y)
    _convolve_backward[(atoms, members)](
        y, gradient, filters, edges.first, edges.count, edges.neighbour, edges.interval,
        edges.place, out, slopes, atoms, slopes.shape[1], filters.stride(0),
        WIDTH=width, EDGES=edges_at_once(width, ELEMENTS),
    )  # fmt: skip
    return out


def radial_slopes(
    y: Tensor, gradient: Tensor, filters: Tensor, edges: Edges, slopes: Tensor
) -> None:
    """As `convolve_backward` where ∂E/∂y is not needed: at the embeddings."""
    members, atoms, width = y.shape
    _radial_slopes[(atoms, members)](
        y, gradient, filters, edges.first, edges.count, edges.neighbour, edges.interval,
        edges.place, slopes, atoms, slopes.shape[1], filters.stride(0),
        WIDTH=width, EDGES=edges_at_once(width, ELEMENTS),
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def _convolve(  # type: ignore[no-untyped-def]
    y, filters, first, count, neighbour, interval, place, out, n, filters_member,
    WIDTH: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, EDGES), tl.arange(0, WIDTH)[None, :]
    begin, end = edges_of(first, count, i)
    y += member * n * WIDTH
    filters += member * filters_member
    total = tl.zeros([EDGES, WIDTH], tl.float32)
    for start in range(begin, end, EDGES):
        e = start + k
        j, at, t, inside = tile_of_edges(neighbour, interval, place, e, end)
        w = value_of(filters + at * WIDTH + f, WIDTH, t, inside)
        total += w * tl.load(y + j * WIDTH + f, mask=inside, other=0.0)
    rows = out + (member * n + i) * WIDTH + tl.arange(0, WIDTH)
    tl.store(rows, tl.sum(total, 0))


@triton.jit(do_not_specialize=["n", "capacity"])
def _convolve_backward(  # type: ignore[no-untyped-def]
    y, gradient, filters, first, count, neighbour, interval, place, out, slopes, n, capacity,
    filters_member, WIDTH: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, EDGES), tl.arange(0, WIDTH)[None, :]
    begin, end = edges_of(first, count, i)
    y += member * n * WIDTH
    gradient += member * n * WIDTH
    filters += member * filters_member
    slopes += member * capacity
    own = i.to(tl.int64) * WIDTH + f
    yi, gi = tl.load(y + own), tl.load(gradient + own)
    total = tl.zeros([EDGES, WIDTH], tl.float32)
    for start in range(begin, end, EDGES):
        e = start + k
        j, at, t, inside = tile_of_edges(neighbour, interval, place, e, end)
        j = j * WIDTH + f
        w, slope = value_and_slope(filters + at * WIDTH + f, WIDTH, t, inside)
        yj = tl.load(y + j, mask=inside, other=0.0)
        gj = tl.load(gradient + j, mask=inside, other=0.0)
        total += w * gj
        add_to_edges(slopes + e, tl.sum(slope * (gi * yj + gj * yi), 1), e < end)
    rows = out + (member * n + i) * WIDTH + tl.arange(0, WIDTH)
    tl.store(rows, tl.sum(total, 0))


@triton.jit(do_not_specialize=["n", "capacity"])
def _radial_slopes(  # type: ignore[no-untyped-def]
    y, gradient, filters, first, count, neighbour, interval, place, slopes, n, capacity,
    filters_member, WIDTH: tl.constexpr, EDGES: tl.constexpr,
):  # fmt: skip
    i, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k, f = tl.arange(0, EDGES), tl.arange(0, WIDTH)[None, :]
    begin, end = edges_of(first, count, i)
    y += member * n * WIDTH
    gradient += member * n * WIDTH
    filters += member * filters_member
    slopes += member * capacity
    own = i.to(tl.int64) * WIDTH + f
    yi, gi = tl.load(y + own), tl.load(gradient + own)
    for start in range(begin, end, EDGES):
        e = start + k
        j, at, t, inside = tile_of_edges(neighbour, interval, place, e, end)
        j = j * WIDTH + f
        slope = slope_of(filters + at * WIDTH + f, WIDTH, t, inside)
        yj = tl.load(y + j, mask=inside, other=0.0)
        gj = tl.load(gradient + j, mask=inside, other=0.0)
        add_to_edges(slopes + e, tl.sum(slope * (gi * yj + gj * yi), 1), e < end)
