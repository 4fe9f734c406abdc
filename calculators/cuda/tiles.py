"""What the Triton kernels share: tile sizes, and cubics of the sampled filters.

Annotations must be objects, not strings, for Triton to see its constants: no `__future__` import.
"""

import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # of atoms in one program
MOST_EDGES = 32


def edges_at_once(width: int, elements: int) -> int:
    """How many edges a program of four warps takes together: `elements` features at a time."""
    return max(1, min(MOST_EDGES, elements // width))


def row_grid(rows: Tensor) -> tuple[int, int]:
    """Programs for the rows of `(members, n, width)`."""
    return triton.cdiv(rows.shape[1], ROWS), rows.shape[0]


@triton.jit
def edges_of(first, count, i):  # type: ignore[no-untyped-def]
    """Where the edges of centre i begin and end."""
    begin = tl.load(first + i)
    return begin, begin + tl.load(count + i)


@triton.jit
def tile_of_edges(neighbour, interval, place, e, end):  # type: ignore[no-untyped-def]
    """Neighbour, interval and place of edges `e`, and which of them lie before `end`; columns."""
    inside = e < end
    j = tl.load(neighbour + e, mask=inside, other=0).to(tl.int64)
    k = tl.load(interval + e, mask=inside, other=0).to(tl.int64)
    t = tl.load(place + e, mask=inside, other=0.0)
    return j[:, None], k[:, None], t[:, None], inside[:, None]


@triton.jit
def components(pointers, stride, inside):  # type: ignore[no-untyped-def]
    """Values at pointers, one stride and two strides behind."""
    x = tl.load(pointers, mask=inside, other=0.0)
    y = tl.load(pointers + stride, mask=inside, other=0.0)
    return x, y, tl.load(pointers + 2 * stride, mask=inside, other=0.0)


@triton.jit
def directions(units, e, end, capacity):  # type: ignore[no-untyped-def]
    """Unit vectors of edges `e`, as columns."""
    x, y, z = components(units + e, capacity, e < end)
    return x[:, None], y[:, None], z[:, None]


@triton.jit
def own_components(pointers, stride):  # type: ignore[no-untyped-def]
    """As `components`, all of them inside."""
    return tl.load(pointers), tl.load(pointers + stride), tl.load(pointers + 2 * stride)


@triton.jit
def add_to_edges(pointers, value, inside):  # type: ignore[no-untyped-def]
    """Add float32 sums to float64 memory of edges, which no other program has."""
    earlier = tl.load(pointers, mask=inside, other=0.0)
    tl.store(pointers, earlier + value.to(tl.float64), mask=inside)


@triton.jit
def cubic(at, stride, t, inside):  # type: ignore[no-untyped-def]
    """Value at place `t` of intervals, whose coefficients lie `stride` apart from `at` on."""
    c0 = tl.load(at, mask=inside, other=0.0)
    c1 = tl.load(at + stride, mask=inside, other=0.0)
    c2 = tl.load(at + 2 * stride, mask=inside, other=0.0)
    c3 = tl.load(at + 3 * stride, mask=inside, other=0.0)
    return c0 + t * (c1 + t * (c2 + t * c3))


@triton.jit
def cubic_slope(at, stride, t, inside):  # type: ignore[no-untyped-def]
    """As `cubic`, the derivative in `t`."""
    c1 = tl.load(at + stride, mask=inside, other=0.0)
    c2 = tl.load(at + 2 * stride, mask=inside, other=0.0)
    c3 = tl.load(at + 3 * stride, mask=inside, other=0.0)
    return c1 + t * (2.0 * c2 + 3.0 * t * c3)


@triton.jit
def cubic_with_slope(at, stride, t, inside):  # type: ignore[no-untyped-def]
    """Both of `cubic` and `cubic_slope`."""
    c0 = tl.load(at, mask=inside, other=0.0)
    c1 = tl.load(at + stride, mask=inside, other=0.0)
    c2 = tl.load(at + 2 * stride, mask=inside, other=0.0)
    c3 = tl.load(at + 3 * stride, mask=inside, other=0.0)
    return c0 + t * (c1 + t * (c2 + t * c3)), c1 + t * (2.0 * c2 + 3.0 * t * c3)
