"""Tangents of tensors of rank two; those of what is linear in each input need nothing else."""

from __future__ import annotations

from ase_biasgrad.fused.operations import locate
from ase_biasgrad.fused.tensors import (
    both_ways,
    components,
    dot,
    dots,
    inverse_norms,
    matrix_of,
    minus,
    of_matrix,
    plus,
    put,
    store_components,
    store_sums,
    times,
    transposed,
)
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, splat


@compiled()
def normalise_vjp_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """The change of s g − 2 s² (g·x) x with s = 1 / (|x|² + 1)."""
    g, dg, x = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dx, out, step = locate(row, 7, place), locate(row, 9, place), row[2] // 9
    one = splat(memory.dtype.type(1))
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            of_y, v = components(memory, g + o), components(memory, x + o)
            dof_y, dv = components(memory, dg + o), components(memory, dx + o)
            s = one / (one + dot(v, v))
            twice, fall = (s + s) * s, (s + s) * dot(v, dv)  # fall = −ds / s
            along = twice * dot(of_y, v)
            dalong = twice * (dot(dof_y, v) + dot(of_y, dv)) - (fall + fall) * along
            change = times(s, minus(dof_y, times(fall, of_y)))
            change = minus(change, plus(times(dalong, v), times(along, dv)))
            put(memory, out + o, change, row[11])


@compiled()
def add_square_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """dy = dX + dD + D dD + dD D."""
    dx, d, dd = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dy, step, norms = locate(row, 7, place), row[2] // 9, inverse_norms(memory)
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            moved = components(memory, dd + o)
            matrix = matrix_of(components(memory, d + o), norms)
            square = of_matrix(both_ways(matrix, matrix_of(moved, norms)), norms)
            change = plus(components(memory, dx + o), plus(moved, square))
            store_components(memory, dy + o, change)


@compiled()
def add_square_vjp_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """The change of G + G Dᵀ + Dᵀ G."""
    g, dg, d = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    dd, out = locate(row, 7, place), locate(row, 9, place)
    step, norms = row[2] // 9, inverse_norms(memory)
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            moved = components(memory, dg + o)
            turned = transposed(matrix_of(components(memory, d + o), norms))
            bent = both_ways(matrix_of(moved, norms), turned)
            turned = transposed(matrix_of(components(memory, dd + o), norms))
            bent = plus(bent, both_ways(matrix_of(components(memory, g + o), norms), turned))
            put(memory, out + o, plus(moved, of_matrix(bent, norms)), row[11])


@compiled()
def squared_norms_tangent(row, place, memory):  # type: ignore[no-untyped-def]
    """dy = 2 Σ x dx over all components or those of each part."""
    x, dx, dy = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    step, width = row[2] // 9, row[6]
    for a in range(place.size):
        for f in range(0, step, WIDTH):
            o = a * row[2] + 9 * f
            one, two, three = dots(components(memory, x + o), components(memory, dx + o))
            twice = one + one, two + two, three + three
            store_sums(memory, dy + a * width + f, twice, step, width > step)
