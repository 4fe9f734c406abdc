"""Vectors of `WIDTH` numbers for numba: loops that must run at the speed of the hardware.

LLVM vectorises loops over several arrays only where it can prove that they do not overlap; with
explicit vectors it need not prove anything. Vectors lower to LLVM's `<8 x float>` or
`<8 x double>` (16 with AVX-512), which it maps to what the processor has (AVX, halves and quarters
on NEON). They have the precision of the array or number that they come from. Indices must be in
range: nothing is checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from ase_biasgrad.numerics.vector_memory import WIDTH

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, WIDTH)
INTEGERS = ir.VectorType(ir.IntType(32), WIDTH)


class VectorType(types.Type):
    """Numba's type of numbers of one floating-point type."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        super().__init__(name=f"Vector{WIDTH}x{element}")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        element = manager.lookup(kind.element).get_value_type()
        super().__init__(manager, kind, ir.VectorType(element, WIDTH))


def address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to element `index` of the memory of a C-contiguous array."""
    return builder.gep(cgutils.create_struct_proxy(kind)(context, builder, array).data, [index])


def splat_value(builder: Any, scalar: Any) -> Any:
    """A scalar in all places."""
    empty = ir.Constant(ir.VectorType(scalar.type, WIDTH), ir.Undefined)
    first = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(INTEGERS, [0] * WIDTH))


def load_value(builder: Any, pointer: Any) -> Any:
    element = pointer.type.pointee
    vector = ir.VectorType(element, WIDTH)
    loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    loaded.align = _bytes(element)
    return loaded


def store_value(builder: Any, vector: Any, pointer: Any) -> None:
    target = builder.bitcast(pointer, vector.type.as_pointer())
    builder.store(vector, target).align = _bytes(vector.type.element)


def _bytes(element: Any) -> int:
    """Numbers are aligned as numbers, not as vectors."""
    return 4 if isinstance(element, ir.FloatType) else 8


def fma_value(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, in one instruction where there is one."""
    product = builder.fmul(a, b, flags=["contract"])
    return builder.fadd(product, c, flags=["contract"])


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Elements of a contiguous array of floats, from flat `index` on."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return load_value(builder, address(context, builder, signature.args[0], *arguments))

    return VectorType(array.dtype)(array, types.intp), lower


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write elements of a contiguous array of the same floats, from flat `index` on."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = address(context, builder, signature.args[0], *arguments[:2])
        store_value(builder, arguments[2], pointer)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), lower


@intrinsic
def splat(typing: Any, scalar: Any) -> Any:
    """A float in all places."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat_value(builder, arguments[0])

    return VectorType(scalar)(scalar), lower


@intrinsic
def splat_like(typing: Any, scalar: Any, vector: Any) -> Any:
    """A number in all places, in the precision of `vector`."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return splat_value(builder, context.cast(builder, arguments[0], scalar, vector.element))

    return vector(scalar, vector), lower


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """Sum of all places."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind.element, [kind.element, kind]),
            f"llvm.vector.reduce.fadd.{_suffix(kind)}",
        )
        zero = ir.Constant(kind.element, 0.0)
        return builder.call(function, [zero, arguments[0]], fastmath=["reassoc"])

    return vector.element(vector), lower


def _suffix(vector: Any) -> str:
    """Ending of the names of LLVM's functions of such vectors."""
    return f"v{WIDTH}f{8 * _bytes(vector.element)}"


@intrinsic
def power_of_two(typing: Any, vector: Any) -> Any:
    """2 to the power of whole numbers in `vector`, which must be normal numbers of its type."""

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        bits, fraction, bias = (
            (32, 23, 127) if isinstance(kind.element, ir.FloatType) else (64, 52, 1023)
        )
        integers = ir.VectorType(ir.IntType(bits), WIDTH)
        whole = builder.fptosi(arguments[0], integers)
        biased = builder.add(whole, ir.Constant(integers, [bias] * WIDTH))
        return builder.bitcast(builder.shl(biased, ir.Constant(integers, [fraction] * WIDTH)), kind)

    return vector(vector), lower


def _lane(k: int) -> Callable[..., Any]:
    """Place `k` of a vector in all places."""

    @intrinsic
    def lane(typing: Any, vector: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            empty = ir.Constant(arguments[0].type, ir.Undefined)
            return builder.shuffle_vector(arguments[0], empty, ir.Constant(INTEGERS, [k] * WIDTH))

        return vector(vector), lower

    return lane


def _unary(name: str) -> Callable[..., Any]:
    """An LLVM function of one vector."""

    @intrinsic
    def function(typing: Any, vector: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = arguments[0].type
            called = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind]), f"llvm.{name}.{_suffix(kind)}"
            )
            return builder.call(called, arguments)

        return vector(vector), lower

    return function


def _binary(lowered: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    @intrinsic
    def function(typing: Any, a: Any, b: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return lowered(builder, *arguments)

        return a(a, b) if a == b else None, lower

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
        if isinstance(a, VectorType) and a == b:
            return lambda a, b: function(a, b)
        if isinstance(b, VectorType) and isinstance(a, types.Float):
            return lambda a, b: function(splat_like(a, b), b)
        return None


for _symbol, _function in (
    (operator.add, _add),
    (operator.sub, _subtract),
    (operator.mul, _multiply),
    (operator.truediv, _divide),
):
    _operator(_symbol, _function)
