"""Execution of programs: segments, chunks of atoms, instructions, on one thread or several."""

from __future__ import annotations

from ase_biasgrad.fused.dense import (
    activate,
    add,
    embed,
    energies,
    layer_norm,
    layer_norm_vjp,
    linear,
    multiply,
    repeat,
)
from ase_biasgrad.fused.messages import (
    cfconv,
    cfconv_vjp,
    tensor_cfconv,
    tensor_cfconv_vjp,
    tensor_message,
    tensor_message_vjp,
    vector_message,
    vector_message_vjp,
)
from ase_biasgrad.fused.operations import Operation, Place
from ase_biasgrad.fused.tensors import (
    add_square,
    add_square_vjp,
    normalise,
    normalise_vjp,
    scale_irreps,
    scale_irreps_vjp,
    squared_norms,
    squared_norms_vjp,
    symmetric_product,
    symmetric_product_vjp,
)
from ase_biasgrad.fused.vectors import mix, mix_vjp, norms_and_products, norms_and_products_vjp
from ase_biasgrad.numerics.kernel_cache import compiled


@compiled()
def instruct(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    kind = row[0]
    if kind == Operation.EMBED:
        embed(row, place, memory, weights, edges)
    elif kind == Operation.LINEAR:
        linear(row, place, memory, weights, edges)
    elif kind == Operation.ACTIVATE:
        activate(row, place, memory, weights, edges)
    elif kind == Operation.MULTIPLY:
        multiply(row, place, memory, weights, edges)
    elif kind == Operation.ADD:
        add(row, place, memory, weights, edges)
    elif kind == Operation.LAYER_NORM:
        layer_norm(row, place, memory, weights, edges)
    elif kind == Operation.LAYER_NORM_VJP:
        layer_norm_vjp(row, place, memory, weights, edges)
    elif kind == Operation.ENERGIES:
        energies(row, place, memory, weights, edges)
    elif kind == Operation.REPEAT:
        repeat(row, place, memory, weights, edges)
    elif kind == Operation.NORMALISE:
        normalise(row, place, memory, weights, edges)
    elif kind == Operation.NORMALISE_VJP:
        normalise_vjp(row, place, memory, weights, edges)
    elif kind == Operation.SYMMETRIC_PRODUCT:
        symmetric_product(row, place, memory, weights, edges)
    elif kind == Operation.SYMMETRIC_PRODUCT_VJP:
        symmetric_product_vjp(row, place, memory, weights, edges)
    elif kind == Operation.ADD_SQUARE:
        add_square(row, place, memory, weights, edges)
    elif kind == Operation.ADD_SQUARE_VJP:
        add_square_vjp(row, place, memory, weights, edges)
    elif kind == Operation.SCALE_IRREPS:
        scale_irreps(row, place, memory, weights, edges)
    elif kind == Operation.SCALE_IRREPS_VJP:
        scale_irreps_vjp(row, place, memory, weights, edges)
    elif kind == Operation.SQUARED_NORMS:
        squared_norms(row, place, memory, weights, edges)
    elif kind == Operation.SQUARED_NORMS_VJP:
        squared_norms_vjp(row, place, memory, weights, edges)
    elif kind == Operation.TENSOR_MESSAGE:
        tensor_message(row, place, memory, weights, edges)
    elif kind == Operation.TENSOR_MESSAGE_VJP:
        tensor_message_vjp(row, place, memory, weights, edges)
    elif kind == Operation.TENSOR_CFCONV:
        tensor_cfconv(row, place, memory, weights, edges)
    elif kind == Operation.TENSOR_CFCONV_VJP:
        tensor_cfconv_vjp(row, place, memory, weights, edges)
    elif kind == Operation.CFCONV:
        cfconv(row, place, memory, weights, edges)
    elif kind == Operation.CFCONV_VJP:
        cfconv_vjp(row, place, memory, weights, edges)
    elif kind == Operation.VECTOR_MESSAGE:
        vector_message(row, place, memory, weights, edges)
    elif kind == Operation.VECTOR_MESSAGE_VJP:
        vector_message_vjp(row, place, memory, weights, edges)
    elif kind == Operation.MIX:
        mix(row, place, memory, weights, edges)
    elif kind == Operation.MIX_VJP:
        mix_vjp(row, place, memory, weights, edges)
    elif kind == Operation.NORMS_AND_PRODUCTS:
        norms_and_products(row, place, memory, weights, edges)
    elif kind == Operation.NORMS_AND_PRODUCTS_VJP:
        norms_and_products_vjp(row, place, memory, weights, edges)


@compiled()
def execute(  # type: ignore[no-untyped-def]
    block, blocks, instructions, segments, chunk, kept, local, memory, weights, edges
):
    """Run segments for one of several blocks of chunks of atoms.

    With more than one block, all must have run a segment before the next begins. Atoms without
    edges of their own, of other sub-domains, follow the others; they are only read.
    """
    n, rows = len(edges.ends), len(edges.numbers)
    chunks = (n + chunk - 1) // chunk
    first, last = chunks * block // blocks * chunk, min(chunks * (block + 1) // blocks * chunk, n)
    mine = kept * rows + local * chunk * block
    for s in range(len(segments)):
        for start in range(first, last, chunk):
            place = Place(rows, start, min(chunk, last - start), mine, chunk)
            for k in range(segments[s, 0], segments[s, 1]):
                instruct(instructions[k], place, memory, weights, edges)
