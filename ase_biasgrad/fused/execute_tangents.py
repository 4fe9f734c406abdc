"""Execution of the tangents of programs, and of the gradients of their weights."""

from __future__ import annotations

from ase_biasgrad.fused.cfconv_tangents import (
    cfconv_gradient,
    cfconv_tangent,
    cfconv_vjp_tangent,
    tensor_cfconv_gradient,
    tensor_cfconv_tangent,
    tensor_cfconv_vjp_tangent,
)
from ase_biasgrad.fused.dense import repeat
from ase_biasgrad.fused.dense_tangents import (
    activate_tangent,
    embed_gradient,
    energies_gradient,
    layer_norm_gradient,
    layer_norm_tangent,
    layer_norm_vjp_tangent,
    linear_gradient,
    zero,
)
from ase_biasgrad.fused.execute import instruct
from ase_biasgrad.fused.operations import Operation, Place
from ase_biasgrad.fused.tensor_message_tangents import (
    tensor_message_gradient,
    tensor_message_tangent,
    tensor_message_vjp_tangent,
)
from ase_biasgrad.fused.tensor_tangents import (
    add_square_tangent,
    add_square_vjp_tangent,
    normalise_vjp_tangent,
    squared_norms_tangent,
)
from ase_biasgrad.fused.vector_message_tangents import (
    vector_message_gradient,
    vector_message_tangent,
    vector_message_vjp_tangent,
)
from ase_biasgrad.fused.vector_tangents import (
    mix_tangent,
    mix_vjp_tangent,
    norms_and_products_tangent,
    norms_and_products_vjp_tangent,
)
from ase_biasgrad.numerics.kernel_cache import compiled


@compiled()
def _instruct(row, place, memory, weights, edges, tangents, gradients):  # type: ignore[no-untyped-def]
    kind = row[0]
    if kind < Operation.ZERO:
        instruct(row, place, memory, weights, edges)
    elif kind == Operation.ZERO:
        zero(row, place, memory)
    elif kind == Operation.ACTIVATE_TANGENT:
        activate_tangent(row, place, memory)
    elif kind == Operation.LAYER_NORM_TANGENT:
        layer_norm_tangent(row, place, memory, weights)
    elif kind == Operation.LAYER_NORM_VJP_TANGENT:
        layer_norm_vjp_tangent(row, place, memory, weights)
    elif kind == Operation.REPEAT_TANGENT:
        repeat(row, place, memory, weights, tangents)  # of which adjoints move, too
    elif kind == Operation.EMBED_GRADIENT:
        embed_gradient(row, place, memory, edges, gradients)
    elif kind == Operation.LINEAR_GRADIENT:
        linear_gradient(row, place, memory, gradients)
    elif kind == Operation.LAYER_NORM_GRADIENT:
        layer_norm_gradient(row, place, memory, gradients)
    elif kind == Operation.ENERGIES_GRADIENT:
        energies_gradient(row, place, memory, edges, tangents, gradients)
    elif kind == Operation.NORMALISE_VJP_TANGENT:
        normalise_vjp_tangent(row, place, memory)
    elif kind == Operation.ADD_SQUARE_TANGENT:
        add_square_tangent(row, place, memory)
    elif kind == Operation.ADD_SQUARE_VJP_TANGENT:
        add_square_vjp_tangent(row, place, memory)
    elif kind == Operation.SQUARED_NORMS_TANGENT:
        squared_norms_tangent(row, place, memory)
    elif kind == Operation.NORMS_AND_PRODUCTS_TANGENT:
        norms_and_products_tangent(row, place, memory)
    elif kind == Operation.NORMS_AND_PRODUCTS_VJP_TANGENT:
        norms_and_products_vjp_tangent(row, place, memory)
    elif kind == Operation.MIX_TANGENT:
        mix_tangent(row, place, memory)
    elif kind == Operation.MIX_VJP_TANGENT:
        mix_vjp_tangent(row, place, memory)
    elif kind == Operation.CFCONV_TANGENT:
        cfconv_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.CFCONV_VJP_TANGENT:
        cfconv_vjp_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.CFCONV_GRADIENT:
        cfconv_gradient(row, place, memory, weights, edges, tangents, gradients)
    elif kind == Operation.TENSOR_CFCONV_TANGENT:
        tensor_cfconv_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.TENSOR_CFCONV_VJP_TANGENT:
        tensor_cfconv_vjp_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.TENSOR_CFCONV_GRADIENT:
        tensor_cfconv_gradient(row, place, memory, weights, edges, tangents, gradients)
    elif kind == Operation.TENSOR_MESSAGE_TANGENT:
        tensor_message_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.TENSOR_MESSAGE_VJP_TANGENT:
        tensor_message_vjp_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.TENSOR_MESSAGE_GRADIENT:
        tensor_message_gradient(row, place, memory, weights, edges, tangents, gradients)
    elif kind == Operation.VECTOR_MESSAGE_TANGENT:
        vector_message_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.VECTOR_MESSAGE_VJP_TANGENT:
        vector_message_vjp_tangent(row, place, memory, weights, edges, tangents)
    elif kind == Operation.VECTOR_MESSAGE_GRADIENT:
        vector_message_gradient(row, place, memory, weights, edges, tangents, gradients)


@compiled()
def execute_tangents(  # type: ignore[no-untyped-def]
    block, blocks, instructions, segments, chunk, kept, local, memory, weights, edges, tangents,
    gradients,
):  # fmt: skip
    """Run segments of the second order, as `execute` runs the others.

    Gradients are added to `gradients (w,)`, which only one block at a time may have.
    """
    n = len(edges.numbers)
    chunks = (n + chunk - 1) // chunk
    first, last = chunks * block // blocks * chunk, min(chunks * (block + 1) // blocks * chunk, n)
    mine = kept * n + local * chunk * block
    for s in range(len(segments)):
        for start in range(first, last, chunk):
            place = Place(n, start, min(chunk, last - start), mine, chunk)
            for k in range(segments[s, 0], segments[s, 1]):
                _instruct(instructions[k], place, memory, weights, edges, tangents, gradients)
