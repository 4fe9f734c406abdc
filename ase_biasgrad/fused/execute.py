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
from ase_biasgrad.fused.vectors import (
    mix,
    mix_vjp,
    norms_and_products,
    norms_and_products_vjp,
)
from ase_biasgrad.numerics.kernel_cache import compiled

EMBED = int(Operation.EMBED)
LINEAR = int(Operation.LINEAR)
ACTIVATE = int(Operation.ACTIVATE)
MULTIPLY = int(Operation.MULTIPLY)
ADD = int(Operation.ADD)
LAYER_NORM = int(Operation.LAYER_NORM)
LAYER_NORM_VJP = int(Operation.LAYER_NORM_VJP)
ENERGIES = int(Operation.ENERGIES)
REPEAT = int(Operation.REPEAT)
NORMALISE = int(Operation.NORMALISE)
NORMALISE_VJP = int(Operation.NORMALISE_VJP)
SYMMETRIC_PRODUCT = int(Operation.SYMMETRIC_PRODUCT)
SYMMETRIC_PRODUCT_VJP = int(Operation.SYMMETRIC_PRODUCT_VJP)
ADD_SQUARE = int(Operation.ADD_SQUARE)
ADD_SQUARE_VJP = int(Operation.ADD_SQUARE_VJP)
SCALE_IRREPS = int(Operation.SCALE_IRREPS)
SCALE_IRREPS_VJP = int(Operation.SCALE_IRREPS_VJP)
SQUARED_NORMS = int(Operation.SQUARED_NORMS)
SQUARED_NORMS_VJP = int(Operation.SQUARED_NORMS_VJP)
TENSOR_MESSAGE = int(Operation.TENSOR_MESSAGE)
TENSOR_MESSAGE_VJP = int(Operation.TENSOR_MESSAGE_VJP)
TENSOR_CFCONV = int(Operation.TENSOR_CFCONV)
TENSOR_CFCONV_VJP = int(Operation.TENSOR_CFCONV_VJP)

CFCONV = int(Operation.CFCONV)
CFCONV_VJP = int(Operation.CFCONV_VJP)
VECTOR_MESSAGE = int(Operation.VECTOR_MESSAGE)
VECTOR_MESSAGE_VJP = int(Operation.VECTOR_MESSAGE_VJP)
MIX = int(Operation.MIX)
MIX_VJP = int(Operation.MIX_VJP)
NORMS_AND_PRODUCTS = int(Operation.NORMS_AND_PRODUCTS)
NORMS_AND_PRODUCTS_VJP = int(Operation.NORMS_AND_PRODUCTS_VJP)


@compiled()
def instruct(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    kind = row[0]
    if kind == EMBED:
        embed(row, place, memory, weights, edges)
    elif kind == LINEAR:
        linear(row, place, memory, weights, edges)
    elif kind == ACTIVATE:
        activate(row, place, memory, weights, edges)
    elif kind == MULTIPLY:
        multiply(row, place, memory, weights, edges)
    elif kind == ADD:
        add(row, place, memory, weights, edges)
    elif kind == LAYER_NORM:
        layer_norm(row, place, memory, weights, edges)
    elif kind == LAYER_NORM_VJP:
        layer_norm_vjp(row, place, memory, weights, edges)
    elif kind == ENERGIES:
        energies(row, place, memory, weights, edges)
    elif kind == REPEAT:
        repeat(row, place, memory, weights, edges)
    elif kind == NORMALISE:
        normalise(row, place, memory, weights, edges)
    elif kind == NORMALISE_VJP:
        normalise_vjp(row, place, memory, weights, edges)
    elif kind == SYMMETRIC_PRODUCT:
        symmetric_product(row, place, memory, weights, edges)
    elif kind == SYMMETRIC_PRODUCT_VJP:
        symmetric_product_vjp(row, place, memory, weights, edges)
    elif kind == ADD_SQUARE:
        add_square(row, place, memory, weights, edges)
    elif kind == ADD_SQUARE_VJP:
        add_square_vjp(row, place, memory, weights, edges)
    elif kind == SCALE_IRREPS:
        scale_irreps(row, place, memory, weights, edges)
    elif kind == SCALE_IRREPS_VJP:
        scale_irreps_vjp(row, place, memory, weights, edges)
    elif kind == SQUARED_NORMS:
        squared_norms(row, place, memory, weights, edges)
    elif kind == SQUARED_NORMS_VJP:
        squared_norms_vjp(row, place, memory, weights, edges)
    elif kind == TENSOR_MESSAGE:
        tensor_message(row, place, memory, weights, edges)
    elif kind == TENSOR_MESSAGE_VJP:
        tensor_message_vjp(row, place, memory, weights, edges)
    elif kind == TENSOR_CFCONV:
        tensor_cfconv(row, place, memory, weights, edges)
    elif kind == TENSOR_CFCONV_VJP:
        tensor_cfconv_vjp(row, place, memory, weights, edges)
    elif kind == CFCONV:
        cfconv(row, place, memory, weights, edges)
    elif kind == CFCONV_VJP:
        cfconv_vjp(row, place, memory, weights, edges)
    elif kind == VECTOR_MESSAGE:
        vector_message(row, place, memory, weights, edges)
    elif kind == VECTOR_MESSAGE_VJP:
        vector_message_vjp(row, place, memory, weights, edges)
    elif kind == MIX:
        mix(row, place, memory, weights, edges)
    elif kind == MIX_VJP:
        mix_vjp(row, place, memory, weights, edges)
    elif kind == NORMS_AND_PRODUCTS:
        norms_and_products(row, place, memory, weights, edges)
    elif kind == NORMS_AND_PRODUCTS_VJP:
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
