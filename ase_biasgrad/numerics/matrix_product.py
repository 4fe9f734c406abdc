"""Products of a tall matrix with constant weights, packed once for the vectors of the processor.

At the few rows of a molecule a BLAS spends most of its time on packing; here the weights are
packed beforehand, and 2 to 6 rows are kept in registers. From some hundred rows on both are
equally fast. Inputs, weights and results lie anywhere in two arrays of one floating-point type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import (
    WIDTH,
    address,
    fma_value,
    load_value,
    splat_value,
    store_value,
)

COLUMNS = 2 * WIDTH  # of a panel
ROWS = (
    6  # rows × 2 vectors of sums, 2 vectors of weights and one of inputs fill 16 registers of AVX2
)
ADD_BIAS, ACCUMULATE = 1, 2  # bits of a mode


def padded(width: int) -> int:
    """The next multiple of a panel's columns."""
    return -(-width // COLUMNS) * COLUMNS


def packed(weights: np.ndarray) -> np.ndarray:
    """Weights `(…, inputs, outputs)` as panels `(…, outputs / c, inputs, c)`, c = `COLUMNS`."""
    *lead, inputs, outputs = weights.shape
    panels = weights.reshape(*lead, inputs, outputs // COLUMNS, COLUMNS)
    return np.ascontiguousarray(np.moveaxis(panels, -2, -3))


def _tile(rows: int) -> Callable[..., Any]:
    """Code for `rows` rows times one panel."""

    @intrinsic
    def tile(
        typing: Any, memory: Any, weights: Any, places: Any, row: Any, column: Any, panel: Any,
        depth: Any, block: Any, bias: Any, mode: Any,
    ) -> Any:  # fmt: skip
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds, index = signature.args, ir.IntType(64)
            of_memory, of_weights, of_places, row, column, panel, depth, block, bias, mode = (
                arguments
            )

            def at(which: int, array: Any, place: Any) -> Any:
                return address(context, builder, kinds[which], array, place)

            def moved(place: Any, vector: int) -> Any:
                return builder.add(place, ir.Constant(index, vector * WIDTH))

            def has(bit: int) -> Any:
                masked = builder.and_(mode, ir.Constant(mode.type, bit))
                return builder.icmp_signed("!=", masked, ir.Constant(mode.type, 0))

            def place(r: int, which: int) -> Any:
                number = builder.add(builder.add(row, row), ir.Constant(index, 2 * r + which))
                return builder.load(at(2, of_places, number))

            starts = [at(0, of_memory, place(r, 0)) for r in range(rows)]
            places = [[builder.add(place(r, 1), column)] for r in range(rows)]
            for pair in places:
                pair.append(builder.add(pair[0], block))
            first = at(1, of_weights, panel)
            vector = ir.VectorType(first.type.pointee, WIDTH)
            zero = ir.Constant(vector, [0.0] * WIDTH)
            sums = [
                [cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(rows)
            ]
            for pair in sums:  # an alloca keeps its value from call to call when inlined
                for total in pair:
                    builder.store(zero, total)
            vector_width = ir.Constant(index, WIDTH)
            with cgutils.for_range(builder, builder.sdiv(depth, vector_width)) as loop:
                of_panel = builder.mul(loop.index, ir.Constant(index, WIDTH * COLUMNS))
                of_rows = builder.mul(loop.index, block)
                for k in range(WIDTH):
                    columns = [
                        load_value(builder, builder.gep(first, [moved(of_panel, k * 2 + v)]))
                        for v in range(2)
                    ]
                    input = builder.add(of_rows, ir.Constant(index, k))
                    for start, pair in zip(starts, sums, strict=True):
                        value = splat_value(builder, builder.load(builder.gep(start, [input])))
                        for column, total in zip(columns, pair, strict=True):
                            summed = fma_value(builder, value, column, builder.load(total))
                            builder.store(summed, total)
            with builder.if_then(has(ADD_BIAS)):
                for v in range(2):
                    more = load_value(builder, at(1, of_weights, moved(bias, v)))
                    for pair in sums:
                        builder.store(builder.fadd(builder.load(pair[v]), more), pair[v])
            with builder.if_then(has(ACCUMULATE)):
                for to, pair in zip(places, sums, strict=True):
                    for v, total in enumerate(pair):
                        more = load_value(builder, at(0, of_memory, to[v]))
                        builder.store(builder.fadd(builder.load(total), more), total)
            for to, pair in zip(places, sums, strict=True):
                for v, total in enumerate(pair):
                    pointer = at(0, of_memory, to[v])
                    store_value(builder, builder.load(total), pointer)
            return context.get_dummy_value()

        return types.void(memory, weights, places, *[types.intp] * 7), lower

    return tile


_tile1, _tile2, _tile3, _tile4, _tile5, _tile6 = (_tile(rows) for rows in range(1, ROWS + 1))


@compiled()
def product(  # type: ignore[no-untyped-def]
    memory,
    weights,
    x,
    x_step,
    depth,
    y,
    y_step,
    width,
    rows,
    group,
    interleaved,
    panels,
    bias,
    mode,
):
    """y = x W, plus `bias` and plus y if the bits of `mode` say so, for `rows` rows.

    Rows of inputs and results, of lengths `depth` and `width`, begin at x and y in the memory, W
    at `panels` and bias at `bias` in the weights. Groups of `group` rows are `x_step` and `y_step`
    apart, and lie among `interleaved` rows, a vector of each in turn: `(width / w, interleaved,
    w)`.
    """
    places = np.empty((rows, 2), np.int64)
    for row in range(rows):
        which, member = row // group, row % group * WIDTH
        places[row, 0] = x + which * x_step + member
        places[row, 1] = y + which * y_step + member
    tiles, block = (rows + ROWS - 1) // ROWS, interleaved * WIDTH
    for column in range(0, width, COLUMNS):
        panel, more, row, c = panels + column * depth, bias + column, 0, column * interleaved
        for tile in range(tiles):
            # rows spread evenly over the tiles: 9 are 5 + 4, not 6 + 3
            count = (rows - row + tiles - tile - 1) // (tiles - tile)
            if count == 6:
                _tile6(memory, weights, places, row, c, panel, depth, block, more, mode)
            elif count == 5:
                _tile5(memory, weights, places, row, c, panel, depth, block, more, mode)
            elif count == 4:
                _tile4(memory, weights, places, row, c, panel, depth, block, more, mode)
            elif count == 3:
                _tile3(memory, weights, places, row, c, panel, depth, block, more, mode)
            elif count == 2:
                _tile2(memory, weights, places, row, c, panel, depth, block, more, mode)
            else:
                _tile1(memory, weights, places, row, c, panel, depth, block, more, mode)
            row += count
