"""Tangents of PaiNN's mixing: parts that repeating the instructions themselves does not give."""

from __future__ import annotations

from ase_biasgrad.fused.operations import locate
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store


@compiled()
def norms_and_products_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """dq, d|V| = V·dV / |V| and d(V·W) = dV·W + V·dW."""
    dq, vw, dvw = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    joint, djoint, ddots = locate(row, 7, place), locate(row, 9, place), locate(row, 11, place)
    width, nothing = row[2], splat(memory.dtype.type(0))
    for a in range(place.size):
        for f in range(0, width, WIDTH):
            v, w = a * 6 * width + 3 * f, a * 6 * width + 3 * (width + f)
            along, ddot = nothing, nothing
            for k in range(0, 3 * WIDTH, WIDTH):
                one, done = load(memory, vw + v + k), load(memory, dvw + v + k)
                along = along + one * done
                ddot = ddot + done * load(memory, vw + w + k) + one * load(memory, dvw + w + k)
            o = a * 2 * width + f
            store(memory, djoint + o, load(memory, dq + a * width + f))
            store(memory, djoint + o + width, along / load(memory, joint + o + width))
            store(memory, ddots + a * width + f, ddot)


@compiled()
def norms_and_products_vjp_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """Adds the change by d(V, W) of g V / |V| + g⁺ W and g⁺ V, with adjoints g, g⁺ of |V|, V·W."""
    g, gdots, joint = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    djoint, vw, dvw = locate(row, 7, place), locate(row, 9, place), locate(row, 11, place)
    out, width = locate(row, 13, place), row[4]
    for a in range(place.size):
        for f in range(0, width, WIDTH):
            norm, v = a * 2 * width + f + width, a * 6 * width + 3 * f
            inverse = splat(memory.dtype.type(1)) / load(memory, joint + norm)
            of_norm, of_dot = load(memory, g + norm) * inverse, load(memory, gdots + a * width + f)
            bent = of_norm * inverse * load(memory, djoint + norm)
            for c in range(0, 3 * WIDTH, WIDTH):
                one, two = v + c, v + 3 * width + c
                moved, a1, a2 = (
                    load(memory, dvw + one),
                    load(memory, out + one),
                    load(memory, out + two),
                )
                a1 = a1 + of_dot * load(memory, dvw + two) + of_norm * moved
                store(memory, out + one, a1 - bent * load(memory, vw + one))
                store(memory, out + two, a2 + of_dot * moved)


@compiled()
def mix_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """Adds a² d(V·W) to dq and a³ dW to dμ."""
    a, ddots, dvw = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dq, dmu, width = locate(row, 7, place), locate(row, 9, place), row[4]
    for atom in range(place.size):
        for f in range(0, width, WIDTH):
            k, v = atom * width + f, atom * 3 * width + 3 * f
            change = load(memory, a + v + WIDTH) * load(memory, ddots + k)
            store(memory, dq + k, load(memory, dq + k) + change)
            factor, w = load(memory, a + v + 2 * WIDTH), dvw + atom * 6 * width + 3 * (width + f)
            for c in range(0, 3 * WIDTH, WIDTH):
                moved = load(memory, dmu + v + c) + factor * load(memory, w + c)
                store(memory, dmu + v + c, moved)


@compiled()
def mix_vjp_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """Adds the change of the adjoints of a, V·W and W by da, d(V·W) and dW.

    Without ∂E/∂μ if so.
    """
    gq, gmu, da = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    ddots, dvw, out_a = locate(row, 7, place), locate(row, 9, place), locate(row, 11, place)
    out_dots, out_vw, width = locate(row, 13, place), locate(row, 15, place), row[2]
    for atom in range(place.size):
        for f in range(0, width, WIDTH):
            k, v = atom * width + f, atom * 3 * width + 3 * f
            g, to = load(memory, gq + k), out_a + v + WIDTH
            store(memory, to, load(memory, to) + g * load(memory, ddots + k))
            to = out_dots + k
            store(memory, to, load(memory, to) + g * load(memory, da + v + WIDTH))
            if row[17]:
                w, factor = atom * 6 * width + 3 * (width + f), load(memory, da + v + 2 * WIDTH)
                dot = load(memory, out_a + v + 2 * WIDTH)
                for c in range(0, 3 * WIDTH, WIDTH):
                    of_mu, to = load(memory, gmu + v + c), out_vw + w + c
                    dot = dot + of_mu * load(memory, dvw + w + c)
                    store(memory, to, load(memory, to) + factor * of_mu)
                store(memory, out_a + v + 2 * WIDTH, dot)
