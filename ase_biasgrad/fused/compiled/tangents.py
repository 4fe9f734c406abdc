"""Tangents of instructions: how their results change when positions move along a direction.

The tangents of all instructions of forward pass and VJP (the R-operator, Pearlmutter 1994, Neural
Computation 6, 147) give the change of the gradient ∂E/∂r, the product of the Hessian with the
direction. For weights W of y = x W with the adjoint ȳ of y,

    d/dε ∂E/∂W = ẋᵀ ȳ + xᵀ d/dε ȳ,

the gradient of a loss of forces and energies if positions move along ∂L/∂(∂E/∂r) and the adjoints
of the energies along ∂L/∂E: so training needs no pass of its own.

A rule takes the operands of an instruction and appends instructions for the tangents of its
results. Variables without tangent do not change. Results that are linear in each of several
variables get the instruction once for each of them.
"""

from __future__ import annotations

from ase_biasgrad.fused.compiled.operations import Operation
from ase_biasgrad.fused.compiled.program import Program, Rule, Variable
from ase_biasgrad.numerics.matrix_product import ACCUMULATE


def embed(p: Program, y: Variable, table: int) -> None:
    """Nothing: elements do not move."""


def linear(p: Program, x: Variable, y: Variable, *numbers: int) -> None:
    """y = x W (+ b) (+ y)."""
    if x.tangent is not None:
        more = numbers[-1] & ACCUMULATE
        p.emit(Operation.LINEAR, x.tangent, p.tangent(y, more), *numbers[:-2], 0, more)


def activate(p: Program, x: Variable, y: Variable, derivative: Variable, kind: int) -> None:
    """y = f(x), f′(x)."""
    if x.tangent is not None:
        of_results = p.tangent(y, 0), p.tangent(derivative, 0)
        p.emit(Operation.ACTIVATE_TANGENT, x, x.tangent, *of_results, kind)


def multiply(p: Program, x: Variable, y: Variable, z: Variable, more: int) -> None:
    """z = x y (+ z)."""
    for a, b in ((x.tangent, y), (x, y.tangent)):
        if a is not None and b is not None:
            p.emit(Operation.MULTIPLY, a, b, p.tangent(z, more), more)
            more = 1


def add(p: Program, x: Variable, y: Variable, more: int) -> None:
    """y = x (+ y)."""
    if x.tangent is not None:
        p.emit(Operation.ADD, x.tangent, p.tangent(y, more), more)


def layer_norm(
    p: Program, x: Variable, y: Variable, unit: Variable, inverse: Variable, *constants: int
) -> None:
    """See `dense.LayerNorm`."""
    if x.tangent is not None:
        of_results = p.tangent(y, 0), p.tangent(unit, 0), p.tangent(inverse, 0)
        p.emit(Operation.LAYER_NORM_TANGENT, x.tangent, unit, inverse, *of_results, constants[0])


def layer_norm_vjp(
    p: Program, g: Variable, out: Variable, unit: Variable, inverse: Variable, *numbers: int
) -> None:
    """See `dense.LayerNorm`."""
    moved = [p.tangent_or_zero(x) for x in (g, unit, inverse)]
    p.emit(
        Operation.LAYER_NORM_VJP_TANGENT,
        g,
        unit,
        inverse,
        *moved,
        p.tangent(out, numbers[-1]),
        *numbers,
    )


def energies(p: Program, x: Variable, weight: int, bias: int) -> None:
    """Nothing: the change of the energies is known from the forces."""


def repeat(p: Program, y: Variable, weight: int) -> None:
    """y = w times the adjoints of the energies, which may change."""
    p.emit(Operation.REPEAT_TANGENT, p.tangent(y, 0), weight)


HESSIAN: dict[Operation, Rule] = {
    Operation.EMBED: embed,
    Operation.LINEAR: linear,
    Operation.ACTIVATE: activate,
    Operation.MULTIPLY: multiply,
    Operation.ADD: add,
    Operation.LAYER_NORM: layer_norm,
    Operation.LAYER_NORM_VJP: layer_norm_vjp,
    Operation.ENERGIES: energies,
    Operation.REPEAT: repeat,
}
# the VJP of messages gives gradients of filters in place of the change of forces
TRAINING: dict[Operation, Rule] = {**HESSIAN}
