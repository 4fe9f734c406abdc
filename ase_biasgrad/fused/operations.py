"""Operations of programs, and where their variables lie."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import NamedTuple

from ase_biasgrad.numerics.kernel_cache import compiled


class Operation(IntEnum):
    """Names of the instructions."""

    EMBED = 0
    LINEAR = auto()
    ACTIVATE = auto()
    MULTIPLY = auto()
    ADD = auto()
    LAYER_NORM = auto()
    LAYER_NORM_VJP = auto()
    ENERGIES = auto()
    REPEAT = auto()
    NORMALISE = auto()
    NORMALISE_VJP = auto()
    SYMMETRIC_PRODUCT = auto()
    SYMMETRIC_PRODUCT_VJP = auto()
    ADD_SQUARE = auto()
    ADD_SQUARE_VJP = auto()
    SCALE_IRREPS = auto()
    SCALE_IRREPS_VJP = auto()
    SQUARED_NORMS = auto()
    SQUARED_NORMS_VJP = auto()
    TENSOR_MESSAGE = auto()
    TENSOR_MESSAGE_VJP = auto()
    TENSOR_CFCONV = auto()
    TENSOR_CFCONV_VJP = auto()
    CFCONV = auto()
    CFCONV_VJP = auto()
    VECTOR_MESSAGE = auto()
    VECTOR_MESSAGE_VJP = auto()
    MIX = auto()
    MIX_VJP = auto()
    NORMS_AND_PRODUCTS = auto()
    NORMS_AND_PRODUCTS_VJP = auto()
    # of the second order: tangents, and gradients of parameters
    ZERO = auto()
    ACTIVATE_TANGENT = auto()
    LAYER_NORM_TANGENT = auto()
    LAYER_NORM_VJP_TANGENT = auto()
    REPEAT_TANGENT = auto()
    EMBED_GRADIENT = auto()
    LINEAR_GRADIENT = auto()
    LAYER_NORM_GRADIENT = auto()
    ENERGIES_GRADIENT = auto()
    NORMALISE_VJP_TANGENT = auto()
    ADD_SQUARE_TANGENT = auto()
    ADD_SQUARE_VJP_TANGENT = auto()
    SQUARED_NORMS_TANGENT = auto()
    NORMS_AND_PRODUCTS_TANGENT = auto()
    NORMS_AND_PRODUCTS_VJP_TANGENT = auto()
    MIX_TANGENT = auto()
    MIX_VJP_TANGENT = auto()
    CFCONV_TANGENT = auto()
    CFCONV_VJP_TANGENT = auto()
    CFCONV_GRADIENT = auto()
    TENSOR_CFCONV_TANGENT = auto()
    TENSOR_CFCONV_VJP_TANGENT = auto()
    TENSOR_CFCONV_GRADIENT = auto()
    TENSOR_MESSAGE_TANGENT = auto()
    TENSOR_MESSAGE_VJP_TANGENT = auto()
    TENSOR_MESSAGE_GRADIENT = auto()
    VECTOR_MESSAGE_TANGENT = auto()
    VECTOR_MESSAGE_VJP_TANGENT = auto()
    VECTOR_MESSAGE_GRADIENT = auto()


class Place(NamedTuple):
    """The atoms that an instruction acts on, and the places of variables."""

    n: int  # atoms of the whole structure
    first: int  # of the chunk
    size: int  # atoms of the chunk
    local: int  # of the local variables
    chunk: int  # atoms that local variables have room for


@compiled()
def locate(row, k, place):  # type: ignore[no-untyped-def]
    """Place in the memory of the variable at numbers k and k + 1 of an instruction."""
    start, width = row[k], row[k + 1]
    if start >= 0:
        return start * place.n + place.first * width
    return place.local - (1 + start) * place.chunk
