"""What the Triton kernels share: tile sizes, and splines of the sampled filters.

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
def _outer(t):  # type: ignore[no-untyped-def]
    """The quintic B-spline in its last interval; those before it are `_middle`, `_inner`, and
    mirrors of the three. `ase_biasgrad.splines.polynomials` has the same."""
    square = t * t
    return square * square * t * (1.0 / 120.0)


@triton.jit
def _middle(t):  # type: ignore[no-untyped-def]
    return (1.0 + t * (5.0 + t * (10.0 + t * (10.0 + t * (5.0 - 5.0 * t))))) * (1.0 / 120.0)


@triton.jit
def _inner(t):  # type: ignore[no-untyped-def]
    high = 20.0 + t * (-20.0 + t * (-20.0 + 10.0 * t))
    return (26.0 + t * (50.0 + t * high)) * (1.0 / 120.0)


@triton.jit
def _outer_slope(t):  # type: ignore[no-untyped-def]
    square = t * t
    return square * square * (1.0 / 24.0)


@triton.jit
def _middle_slope(t):  # type: ignore[no-untyped-def]
    return (1.0 + t * (4.0 + t * (6.0 + t * (4.0 - 5.0 * t)))) * (1.0 / 24.0)


@triton.jit
def _inner_slope(t):  # type: ignore[no-untyped-def]
    return (5.0 + t * (4.0 + t * (-6.0 + t * (-8.0 + 5.0 * t)))) * (1.0 / 12.0)


@triton.jit
def value_and_slope(at, stride, t, inside):  # type: ignore[no-untyped-def]
    """Quintic splines at place `t` of intervals, and their derivatives by `t`; their six
    coefficients lie `stride` apart from `at` on."""
    u = 1.0 - t
    c = tl.load(at, mask=inside, other=0.0)
    value, slope = _outer(u) * c, -_outer_slope(u) * c
    c = tl.load(at + stride, mask=inside, other=0.0)
    value, slope = value + _middle(u) * c, slope - _middle_slope(u) * c
    c = tl.load(at + 2 * stride, mask=inside, other=0.0)
    value, slope = value + _inner(u) * c, slope - _inner_slope(u) * c
    c = tl.load(at + 3 * stride, mask=inside, other=0.0)
    value, slope = value + _inner(t) * c, slope + _inner_slope(t) * c
    c = tl.load(at + 4 * stride, mask=inside, other=0.0)
    value, slope = value + _middle(t) * c, slope + _middle_slope(t) * c
    c = tl.load(at + 5 * stride, mask=inside, other=0.0)
    return value + _outer(t) * c, slope + _outer_slope(t) * c


@triton.jit
def value_of(at, stride, t, inside):  # type: ignore[no-untyped-def]
    """The first of `value_and_slope`; the compiler drops what only the other needs."""
    value, _ = value_and_slope(at, stride, t, inside)
    return value


@triton.jit
def slope_of(at, stride, t, inside):  # type: ignore[no-untyped-def]
    """The second of `value_and_slope`."""
    _, slope = value_and_slope(at, stride, t, inside)
    return slope
