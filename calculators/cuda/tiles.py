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
