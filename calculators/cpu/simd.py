"""Vectors of eight float32 for numba: loops that must run at the speed of the hardware.

LLVM vectorises loops over several arrays only where it can prove that they do not overlap; with
explicit vectors it need not prove anything. `Vector` lowers to LLVM's `<8 x float>`, which it
maps to what the processor has (AVX, two halves on NEON). Indices must be in range: nothing is
checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

WIDTH = 8
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, WIDTH)
INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)


class VectorType(types.Type):
    """Numba's type of eight float32."""

    def __init__(self) -> None:
        super().__init__(name="Vector8xFloat32")


Vector = VectorType()


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` of the memory of a C-contiguous array."""
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, array).data, [index])


def splat_value(builder: Any, scalar: Any) -> Any:
    """A scalar in all places."""
    empty = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(INTEGERS, [0] * WIDTH))


def load_value(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(builder.bitcast(pointer, VECTOR.as_pointer()))
    loaded.align = 4
    return loaded


def store_value(builder: Any, vector: Any, pointer: Any) -> None:
    builder.store(vector, builder.bitcast(pointer, VECTOR.as_pointer())).align = 4


def fma_value(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, in one instruction where there is one."""
    product = builder.fmul(a, b, flags=["contract"])
    return builder.fadd(product, c, flags=["contract"])


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Eight elements of a contiguous float32 array, from flat `index` on."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return load_value(builder, address(context, builder, signature.args[0], *arguments))

    return Vector(array, types.intp), lower


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write eight elements of a contiguous float32 array, from flat `index` on."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = address(context, builder, signature.args[0], *arguments[:2])
        store_value(builder, arguments[2], pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, Vector), lower


@intrinsic
def splat(typing: Any, scalar: Any) -> Any:
    """A float32 in all eight places."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat_value(builder, arguments[0])

    return Vector(types.float32), lower


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """Sum of the eight places, as float32."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"llvm.vector.reduce.fadd.v{WIDTH}f32"
        kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        zero = ir.Constant(FLOAT, 0.0)
        return builder.call(function, [zero, arguments[0]], fastmath=["reassoc"])

    return types.float32(Vector), lower


@intrinsic
def power_of_two(typing: Any, vector: Any) -> Any:
    """2 to the power of the whole numbers in `vector`, which must lie between −126 and 127."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], INTEGERS)
        biased = builder.add(whole, ir.Constant(INTEGERS, [127] * WIDTH))
        return builder.bitcast(builder.shl(biased, ir.Constant(INTEGERS, [23] * WIDTH)), VECTOR)

    return Vector(Vector), lower


def _lane(k: int) -> Callable[..., Any]:
    """Place `k` of a vector in all places."""

    @intrinsic
    def lane(typing: Any, vector: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            empty = ir.Constant(VECTOR, ir.Undefined)
            return builder.shuffle_vector(arguments[0], empty, ir.Constant(INTEGERS, [k] * WIDTH))

        return Vector(Vector), lower

    return lane


def _unary(name: str) -> Callable[..., Any]:
    """An LLVM function of one vector."""

    @intrinsic
    def function(typing: Any, vector: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(VECTOR, [VECTOR])
            called = cgutils.get_or_insert_function(
                builder.module, kind, f"llvm.{name}.v{WIDTH}f32"
            )
            return builder.call(called, arguments)

        return Vector(Vector), lower

    return function


def _binary(lowered: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    @intrinsic
    def function(typing: Any, a: Any, b: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return lowered(builder, *arguments)

        return Vector(Vector, Vector), lower

    return function


def _larger(builder: Any, a: Any, b: Any) -> Any:
    # where a is NaN the result is a: no NaN is lost
    return builder.select(builder.fcmp_ordered("<", a, b), b, a)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), b, a)


lanes = tuple(_lane(k) for k in range(WIDTH))
absolute = _unary("fabs")
square_root = _unary("sqrt")
rounded = _unary("rint")
larger = _binary(_larger)
smaller = _binary(_smaller)
_add = _binary(lambda builder, a, b: builder.fadd(a, b, flags=["contract"]))
_subtract = _binary(lambda builder, a, b: builder.fsub(a, b, flags=["contract"]))
_multiply = _binary(lambda builder, a, b: builder.fmul(a, b, flags=["contract"]))
_divide = _binary(lambda builder, a, b: builder.fdiv(a, b))


def _operator(symbol: Callable[..., Any], function: Callable[..., Any]) -> None:
    @overload(symbol)  # numba wants equal signatures, annotations included
    def of_vectors(a, b):  # type: ignore[no-untyped-def]
        if isinstance(a, VectorType) and isinstance(b, VectorType):
            return lambda a, b: function(a, b)
        return None


for _symbol, _function in (
    (operator.add, _add),
    (operator.sub, _subtract),
    (operator.mul, _multiply),
    (operator.truediv, _divide),
):
    _operator(_symbol, _function)
