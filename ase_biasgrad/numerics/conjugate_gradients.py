"""Conjugate gradients for networks of springs: the elastic term of the force loss."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled

RESIDUAL = 1e-10  # of a solution, relative to the forces; far below the rounding of float32

# sums may be taken in any order that is the same each time; NaN stays NaN
_loop = compiled(fastmath={"reassoc", "contract"})


@_loop
def relax_springs(  # type: ignore[no-untyped-def]
    first_point, first_pair, i, j, along, forces, moved, lengths
):
    """Displacements u = K⁻¹ f of networks of springs that hang on a soft ground, in float64.

    K is the unit matrix and s sᵀ along each pair of points: (K x)_a = x_a + Σ s (s·(x_a − x_b)).
    Conjugate gradients for each network alone, so that it does not feel the others, until its
    residual is `RESIDUAL`. The mean of f is taken out of each network first.

    Parameters
    ----------
    first_point, first_pair
        Where the points and the pairs of each of `b` networks begin, and their number, `(b + 1,)`.
    i, j, along
        Points of each pair `(p,)`, and s `(p, 3)`.
    forces
        f `(n, 3)`.
    moved, lengths
        Get u `(n, 3)` and √(fᵀ u / 3N) `(b,)`, N the points of a network.
    """
    for structure in range(len(lengths)):
        begin, end = first_point[structure], first_point[structure + 1]
        low, high = first_pair[structure], first_pair[structure + 1]
        count = end - begin
        u, residual = moved[begin:end], _centred(forces[begin:end])
        given, direction = residual.copy(), residual.copy()
        u[:] = 0.0
        square = _product(residual, residual)
        goal = square * RESIDUAL**2
        # in exact arithmetic 3N iterations do; rounding takes some more
        for _ in range(30 * count + 100):
            if not square > goal:
                break
            image = _image(i[low:high], j[low:high], along[low:high], begin, direction)
            step = square / _product(direction, image)
            for a in range(count):
                for k in range(3):
                    u[a, k] += step * direction[a, k]
                    residual[a, k] -= step * image[a, k]
            before, square = square, _product(residual, residual)
            for a in range(count):
                for k in range(3):
                    direction[a, k] = residual[a, k] + square / before * direction[a, k]
        u[:] = _centred(u)
        lengths[structure] = np.sqrt(_product(given, u) / (3 * count))


@_loop
def multiply_kept(  # type: ignore[no-untyped-def]
    first_point, begin, inverses, forces, moved, lengths
):
    """Displacements of `relax_springs` by matrices K⁻¹, row by row from `inverses[begin[k]]` on."""
    for structure in range(len(lengths)):
        points = slice(first_point[structure], first_point[structure + 1])
        given = _centred(forces[points])
        flat, count = given.ravel(), given.size
        u = moved[points]
        for row in range(count):
            at, total = begin[structure] + row * count, 0.0
            for column in range(count):
                total += inverses[at + column] * flat[column]
            u[row // 3, row % 3] = total
        u[:] = _centred(u)
        lengths[structure] = np.sqrt(_product(given, u) / count)


@_loop
def _image(i, j, along, begin, direction):  # type: ignore[no-untyped-def]
    """K times a direction `(count, 3)`."""
    image = direction.copy()
    for pair in range(len(i)):
        a, b = i[pair] - begin, j[pair] - begin
        stretch = 0.0
        for k in range(3):
            stretch += along[pair, k] * (direction[b, k] - direction[a, k])
        for k in range(3):
            image[a, k] -= stretch * along[pair, k]
            image[b, k] += stretch * along[pair, k]
    return image


@_loop
def _centred(vectors):  # type: ignore[no-untyped-def]
    """Vectors `(count, 3)` less their mean."""
    result = vectors.copy()
    for k in range(3):
        mean = 0.0
        for a in range(len(vectors)):
            mean += vectors[a, k]
        for a in range(len(vectors)):
            result[a, k] -= mean / len(vectors)
    return result


@_loop
def _product(one, two):  # type: ignore[no-untyped-def]
    total = 0.0
    for a in range(len(one)):
        for k in range(3):
            total += one[a, k] * two[a, k]
    return total
