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

from functools import partial

from ase_biasgrad.fused.operations import Operation
from ase_biasgrad.fused.program import Program, Rule, Variable
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


def product(operation: Operation) -> Rule:
    """z (+)= what is linear in x and in y."""

    def rule(p: Program, x: Variable, y: Variable, z: Variable, more: int) -> None:
        for a, b in ((x.tangent, y), (x, y.tangent)):
            if a is not None and b is not None:
                p.emit(operation, a, b, p.tangent(z, more), more)
                more = 1

    return rule


def product_vjp(operation: Operation) -> Rule:
    """Adjoints of x and y, linear in g and y, and in g and x."""

    def rule(
        p: Program, g: Variable, x: Variable, y: Variable, adj_x: Variable, adj_y: Variable,
        more: int, again: int,
    ) -> None:  # fmt: skip
        operands = []
        if moves(g):
            operands.append((p.tangent_or_zero(g), x, y))
        if moves(x, y):
            operands.append((g, p.tangent_or_zero(x), p.tangent_or_zero(y)))
        for three in operands:
            of_results = p.tangent(adj_x, more), p.tangent(adj_y, again)
            p.emit(operation, *three, *of_results, more, again)
            more, again = 1, 1

    return rule


def moves(*variables: Variable) -> bool:
    """Any of these variables has a tangent."""
    return any(x.tangent is not None for x in variables)


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


def normalise(p: Program, x: Variable, y: Variable) -> None:
    """The matrix of ∂y/∂x is symmetric: its product with a tangent is the VJP."""
    if x.tangent is not None:
        p.emit(Operation.NORMALISE_VJP, x.tangent, x, p.tangent(y, 0), 0)


def normalise_vjp(p: Program, g: Variable, x: Variable, out: Variable, more: int) -> None:
    """See `tensor_tangents`."""
    if moves(g, x):
        moved = p.tangent_or_zero(g), x, p.tangent_or_zero(x)
        p.emit(Operation.NORMALISE_VJP_TANGENT, g, *moved, p.tangent(out, more), more)


def add_square(p: Program, x: Variable, d: Variable, y: Variable) -> None:
    """y = x + d + d²."""
    if moves(x, d):
        moved = p.tangent_or_zero(x), d, p.tangent_or_zero(d)
        p.emit(Operation.ADD_SQUARE_TANGENT, *moved, p.tangent(y, 0))


def add_square_vjp(p: Program, g: Variable, d: Variable, out: Variable, more: int) -> None:
    """See `tensor_tangents`."""
    if moves(g, d):
        moved = p.tangent_or_zero(g), d, p.tangent_or_zero(d)
        p.emit(Operation.ADD_SQUARE_VJP_TANGENT, g, *moved, p.tangent(out, more), more)


def squared_norms(p: Program, x: Variable, y: Variable) -> None:
    """y = Σ x²."""
    if x.tangent is not None:
        p.emit(Operation.SQUARED_NORMS_TANGENT, x, x.tangent, p.tangent(y, 0))


def norms_and_products(
    p: Program, q: Variable, vw: Variable, joint: Variable, dots: Variable, epsilon: int
) -> None:
    """See `vectors.NormsAndProducts`."""
    if moves(q, vw):
        moved = p.tangent_or_zero(q), vw, p.tangent_or_zero(vw)
        of_results = p.tangent(joint, 0), p.tangent(dots, 0)
        p.emit(Operation.NORMS_AND_PRODUCTS_TANGENT, *moved, joint, *of_results)


def norms_and_products_vjp(
    p: Program, g: Variable, of_dots: Variable, joint: Variable, vw: Variable, gq: Variable,
    gvw: Variable, more: int, again: int,
) -> None:  # fmt: skip
    """Linear in g; what V and W change is added."""
    if moves(g, of_dots):
        p.emit(
            Operation.NORMS_AND_PRODUCTS_VJP, p.tangent_or_zero(g), p.tangent_or_zero(of_dots),
            joint, vw, p.tangent(gq, more), p.tangent(gvw, again), more, again,
        )  # fmt: skip
    if moves(vw):
        p.emit(
            Operation.NORMS_AND_PRODUCTS_VJP_TANGENT, g, of_dots, joint, p.tangent_or_zero(joint),
            vw, p.tangent_or_zero(vw), p.tangent(gvw, 1),
        )  # fmt: skip


def mix(p: Program, *operands: Variable) -> None:
    """The same of dq, dμ and da, which is linear in them; what V·W and W change is added."""
    q, mu, a, dots, vw, out_q, out_mu = operands
    if moves(q, mu, a, dots, vw):
        moved = [p.tangent_or_zero(x) for x in (q, mu, a)]
        of_results = p.tangent(out_q, 0), p.tangent(out_mu, 0)
        p.emit(Operation.MIX, *moved, dots, vw, *of_results)
        if moves(dots, vw):
            moved = [p.tangent_or_zero(x) for x in (dots, vw)]
            p.emit(Operation.MIX_TANGENT, a, *moved, *of_results)


def mix_vjp(
    p: Program, gq: Variable, gmu: Variable, a: Variable, dots: Variable, vw: Variable,
    ga: Variable, gdots: Variable, gvw: Variable, some: int,
) -> None:  # fmt: skip
    """Linear in the adjoints of the results; what a, V·W and W change is added."""
    of_results = [p.tangent(x, 0) for x in (ga, gdots, gvw)]
    moved = [p.tangent_or_zero(x) for x in ((gq, gmu) if some else (gq, gq))]
    p.emit(Operation.MIX_VJP, *moved, a, dots, vw, *of_results, some)
    if moves(a, dots, vw):
        moved = [p.tangent_or_zero(x) for x in (a, dots, vw)]
        given = (gq, gmu) if some else (gq, gq)  # nobody has written the adjoint of μ
        p.emit(Operation.MIX_VJP_TANGENT, *given, *moved, *of_results, some)


def cfconv(p: Program, x: Variable, y: Variable, coefficients: int) -> None:
    """See `messages.CFConv`."""
    p.emit_messages(
        Operation.CFCONV_TANGENT, x, x.tangent or x, p.tangent(y, 0), coefficients,
        int(x.tangent is not None),
    )  # fmt: skip


def cfconv_vjp(
    p: Program, g: Variable, x: Variable, out: Variable, coefficients: int, more: int,
    operation: Operation = Operation.CFCONV_VJP_TANGENT,
) -> None:  # fmt: skip
    """See `messages.CFConv`."""
    moved = g, p.tangent_or_zero(g), x, p.tangent_or_zero(x)
    of_out, more = (x, more) if more == 2 else _added(p, out, more)
    p.emit_messages(operation, *moved, of_out, coefficients, more)


def tensor_cfconv(p: Program, x: Variable, y: Variable, coefficients: int, own: int) -> None:
    """See `messages.TensorCFConv`."""
    moved = x, p.tangent_or_zero(x), p.tangent(y, 0)
    p.emit_messages(Operation.TENSOR_CFCONV_TANGENT, *moved, coefficients, own)


def tensor_cfconv_vjp(
    p: Program, g: Variable, x: Variable, out: Variable, coefficients: int, own: int, more: int,
    operation: Operation = Operation.TENSOR_CFCONV_VJP_TANGENT,
) -> None:  # fmt: skip
    """See `messages.TensorCFConv`."""
    moved = g, p.tangent_or_zero(g), x, p.tangent_or_zero(x)
    of_out, more = _added(p, out, more)
    p.emit_messages(operation, *moved, of_out, coefficients, own, more)


def tensor_message(p: Program, y: Variable, *constants: int) -> None:
    """See `messages.TensorMessage`."""
    p.emit_messages(Operation.TENSOR_MESSAGE_TANGENT, p.tangent(y, 0), *constants)


def tensor_message_vjp(
    p: Program, g: Variable, *constants: int,
    operation: Operation = Operation.TENSOR_MESSAGE_VJP_TANGENT,
) -> None:  # fmt: skip
    """See `messages.TensorMessage`."""
    p.emit_messages(operation, g, p.tangent_or_zero(g), *constants)


def vector_message(
    p: Program, x: Variable, q: Variable, mu: Variable, out_q: Variable, out_mu: Variable,
    coefficients: int, carries: int,
) -> None:  # fmt: skip
    """See `messages.VectorMessage`."""
    moved = x, q, mu
    if carries:
        moved = p.tangent_or_zero(x), p.tangent_or_zero(q), p.tangent_or_zero(mu)
    p.emit_messages(
        Operation.VECTOR_MESSAGE_TANGENT, x, mu, *moved, p.tangent(out_q, 0), p.tangent(out_mu, 0),
        coefficients, carries,
    )  # fmt: skip


def vector_message_vjp(
    p: Program, gq: Variable, gmu: Variable, mu: Variable, x: Variable, out_mu: Variable,
    out_x: Variable, coefficients: int, kind: int,
    operation: Operation = Operation.VECTOR_MESSAGE_VJP_TANGENT,
) -> None:  # fmt: skip
    """See `messages.VectorMessage`."""
    given = gq, p.tangent_or_zero(gq), gmu, p.tangent_or_zero(gmu)
    if kind == 1:
        moved = mu, p.tangent_or_zero(mu), x, p.tangent_or_zero(x)
        of_results = p.tangent(out_mu, 0), p.tangent(out_x, 0), p.variable(mu.width)
    else:  # x does not move
        of_x = p.tangent(out_x, 0) if kind == 2 else p.variable(x.width)
        moved, of_results = (x, x, x, x), (of_x, of_x, of_x)
    p.emit_messages(operation, *given, *moved, *of_results, coefficients, kind)


def _added(p: Program, variable: Variable, more: int) -> tuple[Variable, int]:
    """Tangent of a variable to be written, and 1 if it holds something to be added to, else 0."""
    more = int(more and variable.tangent is not None)
    return p.tangent(variable, more), more


HESSIAN: dict[Operation, Rule] = {
    Operation.EMBED: embed,
    Operation.LINEAR: linear,
    Operation.ACTIVATE: activate,
    Operation.MULTIPLY: product(Operation.MULTIPLY),
    Operation.ADD: add,
    Operation.LAYER_NORM: layer_norm,
    Operation.LAYER_NORM_VJP: layer_norm_vjp,
    Operation.ENERGIES: energies,
    Operation.REPEAT: repeat,
    Operation.NORMALISE: normalise,
    Operation.NORMALISE_VJP: normalise_vjp,
    Operation.SYMMETRIC_PRODUCT: product(Operation.SYMMETRIC_PRODUCT),
    Operation.SYMMETRIC_PRODUCT_VJP: product_vjp(Operation.SYMMETRIC_PRODUCT_VJP),
    Operation.ADD_SQUARE: add_square,
    Operation.ADD_SQUARE_VJP: add_square_vjp,
    Operation.SCALE_IRREPS: product(Operation.SCALE_IRREPS),
    Operation.SCALE_IRREPS_VJP: product_vjp(Operation.SCALE_IRREPS_VJP),
    Operation.SQUARED_NORMS: squared_norms,
    Operation.SQUARED_NORMS_VJP: product(Operation.SQUARED_NORMS_VJP),
    Operation.NORMS_AND_PRODUCTS: norms_and_products,
    Operation.NORMS_AND_PRODUCTS_VJP: norms_and_products_vjp,
    Operation.MIX: mix,
    Operation.MIX_VJP: mix_vjp,
    Operation.CFCONV: cfconv,
    Operation.CFCONV_VJP: cfconv_vjp,
    Operation.TENSOR_CFCONV: tensor_cfconv,
    Operation.TENSOR_CFCONV_VJP: tensor_cfconv_vjp,
    Operation.TENSOR_MESSAGE: tensor_message,
    Operation.TENSOR_MESSAGE_VJP: tensor_message_vjp,
    Operation.VECTOR_MESSAGE: vector_message,
    Operation.VECTOR_MESSAGE_VJP: vector_message_vjp,
}
# the VJP of messages gives gradients of filters in place of the change of forces
TRAINING: dict[Operation, Rule] = {
    **HESSIAN,
    Operation.CFCONV_VJP: partial(cfconv_vjp, operation=Operation.CFCONV_GRADIENT),
    Operation.TENSOR_CFCONV_VJP: partial(
        tensor_cfconv_vjp, operation=Operation.TENSOR_CFCONV_GRADIENT
    ),
    Operation.TENSOR_MESSAGE_VJP: partial(
        tensor_message_vjp, operation=Operation.TENSOR_MESSAGE_GRADIENT
    ),
    Operation.VECTOR_MESSAGE_VJP: partial(
        vector_message_vjp, operation=Operation.VECTOR_MESSAGE_GRADIENT
    ),
}
