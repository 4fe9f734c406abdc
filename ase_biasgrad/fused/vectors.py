"""PaiNN's mixing of scalars and vectors as instructions: vectors are `(f / w, 3, w)`."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.fused.operations import Operation, locate
from ase_biasgrad.fused.program import Program, Variable
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, square_root, store


class NormsAndProducts:
    """(q, |V|) `(2 f,)` with |V| = √(Σ_k V_k² + ε), and Σ_k V_k W_k `(f,)`, of vectors (V, W)."""

    def __init__(self, p: Program, q: Variable, vw: Variable, epsilon: float) -> None:
        self.q, self.vw = q, vw
        self.joint, self.dots = p.variable(2 * q.width), p.variable(q.width)
        p.emit(
            Operation.NORMS_AND_PRODUCTS, q, vw, self.joint, self.dots,
            p.constant(np.array([epsilon])),
        )  # fmt: skip
        p.add(self)

    def vjp(self, p: Program) -> None:
        of_joint, of_dots = p.adjoint(self.joint)[0], p.adjoint(self.dots)[0]
        (gq, more), (gvw, again) = p.adjoint(self.q), p.adjoint(self.vw)
        p.emit(
            Operation.NORMS_AND_PRODUCTS_VJP, of_joint, of_dots, self.joint, self.vw, gq, gvw,
            more, again,
        )  # fmt: skip


@compiled()
def norms_and_products(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    q, vw, joint = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dots, width, epsilon = locate(row, 7, place), row[2], splat(weights[row[9]])
    for a in range(place.size):
        for f in range(0, width, WIDTH):
            v = vw + a * 6 * width + 3 * f
            square, dot = epsilon, splat(memory.dtype.type(0))
            for k in range(0, 3 * WIDTH, WIDTH):
                one, two = load(memory, v + k), load(memory, v + 3 * width + k)
                square, dot = square + one * one, dot + one * two
            o = joint + a * 2 * width + f
            store(memory, o, load(memory, q + a * width + f))
            store(memory, o + width, square_root(square))
            store(memory, dots + a * width + f, dot)


@compiled()
def norms_and_products_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, gdots, joint = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    vw, gq, gvw = locate(row, 7, place), locate(row, 9, place), locate(row, 11, place)
    width = row[4]
    for a in range(place.size):
        for f in range(0, width, WIDTH):
            o, k = a * 2 * width + f, a * width + f
            change = load(memory, g + o)
            store(memory, gq + k, load(memory, gq + k) + change if row[13] else change)
            of_norm = load(memory, g + o + width) / load(memory, joint + o + width)
            of_dot, v = load(memory, gdots + k), a * 6 * width + 3 * f
            for c in range(0, 3 * WIDTH, WIDTH):
                one, two = v + c, v + 3 * width + c
                a1 = of_dot * load(memory, vw + two) + of_norm * load(memory, vw + one)
                a2 = of_dot * load(memory, vw + one)
                if row[14]:
                    a1, a2 = a1 + load(memory, gvw + one), a2 + load(memory, gvw + two)
                store(memory, gvw + one, a1)
                store(memory, gvw + two, a2)


class Mix:
    """q + a¹ + a² Σ_k V_k W_k and μ + a³ W of vectors (V, W), with a `(f / w, 3, w)`."""

    def __init__(
        self, p: Program, q: Variable, mu: Variable, a: Variable, dots: Variable, vw: Variable
    ) -> None:
        self.inputs = q, mu, a, dots, vw
        self.out_q, self.out_mu = p.variable(q.width), p.variable(mu.width)
        p.emit(Operation.MIX, q, mu, a, dots, vw, self.out_q, self.out_mu)
        p.add(self)

    def vjp(self, p: Program) -> None:
        q, mu, a, dots, vw = self.inputs
        gq, (gmu, some) = p.adjoint(self.out_q)[0], p.adjoint(self.out_mu)
        outs = [p.adjoint(value) for value in (a, dots, vw)]
        assert not any(more for _, more in outs)  # the first to add to them
        p.emit(Operation.MIX_VJP, gq, gmu, a, dots, vw, *(out for out, _ in outs), some)
        p.emit(Operation.ADD, gq, *p.adjoint(q))
        if some:
            p.emit(Operation.ADD, gmu, *p.adjoint(mu))


@compiled()
def mix(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    q, mu, a = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dots, vw = locate(row, 7, place), locate(row, 9, place)
    out_q, out_mu, width = locate(row, 11, place), locate(row, 13, place), row[2]
    for atom in range(place.size):
        for f in range(0, width, WIDTH):
            k, v = atom * width + f, atom * 3 * width + 3 * f
            change = load(memory, a + v) + load(memory, a + v + WIDTH) * load(memory, dots + k)
            store(memory, out_q + k, load(memory, q + k) + change)
            factor, w = load(memory, a + v + 2 * WIDTH), vw + atom * 6 * width + 3 * (width + f)
            for c in range(0, 3 * WIDTH, WIDTH):
                moved = load(memory, mu + v + c) + factor * load(memory, w + c)
                store(memory, out_mu + v + c, moved)


@compiled()
def mix_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """Adjoints of a, of the products and of (V, W), of which V gets none; without ∂E/∂μ if so."""
    gq, gmu, a = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dots, vw, ga = locate(row, 7, place), locate(row, 9, place), locate(row, 11, place)
    gdots, gvw, width = locate(row, 13, place), locate(row, 15, place), row[2]
    zero = splat(memory.dtype.type(0))
    for atom in range(place.size):
        for f in range(0, width, WIDTH):
            k, v = atom * width + f, atom * 3 * width + 3 * f
            g = load(memory, gq + k)
            one, factor, dot = atom * 6 * width + 3 * f, load(memory, a + v + 2 * WIDTH), zero
            two = one + 3 * width
            for c in range(0, 3 * WIDTH, WIDTH):
                store(memory, gvw + one + c, zero)
                if row[17]:
                    of_mu = load(memory, gmu + v + c)
                    dot = dot + of_mu * load(memory, vw + two + c)
                    store(memory, gvw + two + c, factor * of_mu)
                else:
                    store(memory, gvw + two + c, zero)
            store(memory, ga + v, g)
            store(memory, ga + v + WIDTH, g * load(memory, dots + k))
            store(memory, ga + v + 2 * WIDTH, dot)
            store(memory, gdots + k, g * load(memory, a + v + WIDTH))
