"""Products of a tall matrix with constant weights, packed once for the vectors of the processor.

At the few rows of a molecule a BLAS spends most of its time on packing; here the weights are
packed when the engine is made, and 2 to 6 rows are kept in registers. From some hundred rows on
both are equally fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ase_biasgrad.calculators.engines.weights import Readout, single, widened
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import (
    VECTOR,
    WIDTH,
    address,
    fma_value,
    load_value,
    splat_value,
    store_value,
)

COLUMNS = 2 * WIDTH  # of a panel
ROWS = 6  # rows × 2 vectors of sums, 2 vectors of weights and one of inputs fill 16 registers


def padded(width: int) -> int:
    """The next multiple of a panel's columns."""
    return -(-width // COLUMNS) * COLUMNS


def packed(weights: np.ndarray) -> np.ndarray:
    """Weights `(…, inputs, outputs)` as panels `(…, outputs / 16, inputs, 16)` of float32."""
    *lead, inputs, outputs = weights.shape
    panels = weights.reshape(*lead, inputs, outputs // COLUMNS, COLUMNS)
    return np.ascontiguousarray(np.moveaxis(panels, -2, -3), dtype=np.float32)


def _tile(rows: int) -> Callable[..., Any]:
    """Code for `rows` rows times one panel."""

    @intrinsic
    def tile(typing: Any, inputs: Any, panel: Any, out: Any, row: Any, column: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            index = ir.IntType(64)
            kinds, row, column = signature.args, arguments[3], arguments[4]
            shape = [
                cgutils.create_struct_proxy(kinds[k])(context, builder, arguments[k]).shape
                for k in (0, 2)
            ]
            depth, width = (builder.extract_value(s, 1) for s in shape)
            zero = ir.Constant(VECTOR, [0.0] * WIDTH)
            sums = [
                [cgutils.alloca_once_value(builder, zero) for _ in range(2)] for _ in range(rows)
            ]
            which = [builder.add(row, ir.Constant(index, r)) for r in range(rows)]
            starts = [
                address(context, builder, kinds[0], arguments[0], builder.mul(r, depth))
                for r in which
            ]
            with cgutils.for_range(builder, depth) as loop:
                first = builder.mul(loop.index, ir.Constant(index, COLUMNS))
                weights = [
                    load_value(
                        builder,
                        address(
                            context,
                            builder,
                            kinds[1],
                            arguments[1],
                            builder.add(first, ir.Constant(index, v * WIDTH)),
                        ),
                    )
                    for v in range(2)
                ]
                for start, pair in zip(starts, sums, strict=True):
                    value = splat_value(builder, builder.load(builder.gep(start, [loop.index])))
                    for weight, total in zip(weights, pair, strict=True):
                        builder.store(fma_value(builder, value, weight, builder.load(total)), total)
            for r, pair in zip(which, sums, strict=True):
                for v, total in enumerate(pair):
                    flat = builder.add(builder.mul(r, width), column)
                    flat = builder.add(flat, ir.Constant(index, v * WIDTH))
                    pointer = address(context, builder, kinds[2], arguments[2], flat)
                    store_value(builder, builder.load(total), pointer)
            return context.get_dummy_value()

        return types.void(inputs, panel, out, types.intp, types.intp), lower

    return tile


_tile1, _tile2, _tile3, _tile4, _tile5, _tile6 = (_tile(rows) for rows in range(1, ROWS + 1))


@compiled()
def product(inputs, panels, out, first, last):  # type: ignore[no-untyped-def]
    """out[first:last] = inputs[first:last] @ weights.

    inputs `(rows, depth)`, panels as `packed` makes them, out `(rows, width)`; all float32 and
    C-contiguous.
    """
    tiles = (last - first + ROWS - 1) // ROWS
    for q in range(panels.shape[0]):
        panel, column, row = panels[q], q * COLUMNS, first
        for tile in range(tiles):
            # rows spread evenly over the tiles: 9 are 5 + 4, not 6 + 3
            rows = (last - row + tiles - tile - 1) // (tiles - tile)
            if rows == 6:
                _tile6(inputs, panel, out, row, column)
            elif rows == 5:
                _tile5(inputs, panel, out, row, column)
            elif rows == 4:
                _tile4(inputs, panel, out, row, column)
            elif rows == 3:
                _tile3(inputs, panel, out, row, column)
            elif rows == 2:
                _tile2(inputs, panel, out, row, column)
            else:
                _tile1(inputs, panel, out, row, column)
            row += rows


def transposed(weights: np.ndarray) -> np.ndarray:
    return np.swapaxes(weights, -1, -2)


def packed_readout(
    readout: Readout, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """panels, readout, readout_t, readout_bias, last_weight, last_bias of the kernels."""
    hidden = widened(readout.hidden, width, width)
    return (
        np.array([padded(w) // COLUMNS for w in readout.widths], np.int64),
        packed(hidden),
        packed(transposed(hidden)),
        single(widened(readout.hidden_bias, width)),
        single(widened(readout.last, width)),
        np.asarray(readout.last_bias, np.float64),
    )
