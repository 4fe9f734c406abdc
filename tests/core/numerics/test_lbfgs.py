"""Steps of many functions are those that each would take alone, by the textbook's formula."""

from __future__ import annotations

import numpy as np
import pytest

from ase_biasgrad.numerics.lbfgs import ManyLBFGS

SIZES = (3, 6, 1, 9)
CURVATURE = 7.0


def functions(seed: int = 0):
    """Gradients of quartic functions with one minimum each."""
    random = np.random.default_rng(seed)
    made = []
    for n in SIZES:
        a, minimum = random.normal(size=(n, n)), random.normal(size=n)
        hessian = a @ a.T + np.eye(n)
        made.append(
            lambda x, h=hessian, x0=minimum: h @ (x - x0) + 0.1 * np.sum((x - x0) ** 2) * (x - x0)
        )
    return made


def inverse_hessian(s: list[np.ndarray], y: list[np.ndarray]) -> np.ndarray:
    """H of the BFGS formula, as a matrix: H' = (1 − ρ s yᵀ) H (1 − ρ y sᵀ) + ρ s sᵀ."""
    n = len(s[0]) if s else 0
    h = np.eye(n) / CURVATURE
    for ds, dy in zip(s, y, strict=True):
        rho, one = 1 / (ds @ dy), np.eye(n)
        h = (one - rho * np.outer(ds, dy)) @ h @ (one - rho * np.outer(dy, ds))
        h += rho * np.outer(ds, ds)
    return h


@pytest.mark.parametrize("memory", [3, 50])
def test_steps_are_those_of_the_matrix(memory):
    """Also when some functions are done and others moved, and when the memory is full."""
    gradients, left = functions(), list(range(len(SIZES)))
    random = np.random.default_rng(1)
    x = [random.normal(size=n) for n in SIZES]
    many = ManyLBFGS(SIZES, CURVATURE, memory)
    history = [([], []) for _ in SIZES]
    for number in range(8):
        g = {k: gradients[k](x[k]) for k in left}
        step = many.step(np.concatenate([x[k] for k in left]), np.concatenate([*g.values()]))
        parts = dict(zip(left, np.split(step, many.starts[1:-1]), strict=True))
        for k in left:
            s, y = (values[-memory:] for values in history[k])
            expected = -inverse_hessian(s, y) @ g[k] if s else -g[k] / CURVATURE
            np.testing.assert_allclose(parts[k], expected, rtol=1e-7, atol=1e-10)
            new = x[k] + 0.7 * parts[k]
            history[k][0].append(new - x[k])
            history[k][1].append(gradients[k](new) - g[k])
            x[k] = new
        if number in (2, 5):
            before = left
            left = [before[0], *before[:1:-1]]  # without the second, and turned around
            many.keep([before.index(k) for k in left])


def test_minima_are_found():
    gradients, many = functions(3), ManyLBFGS(SIZES, 70.0, 100)
    x = np.concatenate([np.random.default_rng(2).normal(size=n) for n in SIZES])
    for _ in range(200):
        parts = np.split(x, many.starts[1:-1])
        g = np.concatenate([f(part) for f, part in zip(gradients, parts, strict=True)])
        if np.abs(g).max() < 1e-10:
            break
        x = x + many.step(x, g)
    assert np.abs(g).max() < 1e-10


def test_nothing_is_left():
    many = ManyLBFGS((3, 3), 70.0, 5)
    many.step(np.zeros(6), np.ones(6))
    many.keep([])
    assert many.step(np.zeros(0), np.zeros(0)).shape == (0,)
