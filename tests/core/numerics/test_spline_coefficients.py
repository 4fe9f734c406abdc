"""Coefficients from values: the banded solution beside the inverse matrix, and its derivative."""

import numpy as np
import pytest
import torch

from ase_biasgrad.numerics.spline_coefficients import spline_coefficients
from ase_biasgrad.numerics.splines import Knots, interpolate


@pytest.mark.parametrize("count", [9, 57, 141, 379])
@pytest.mark.parametrize("shape", [(), (1,), (3, 70), (500,)])
def test_they_are_those_of_a_pivoting_solver(count, shape):
    knots = Knots(5.0, count)
    values = torch.randn(knots.n_coefficients, *shape, generator=torch.Generator().manual_seed(0))
    values = values.reshape(knots.n_coefficients, *shape) if shape else values[:, None]
    expected = interpolate(count, values.double().flatten(1).numpy()).reshape(values.shape)
    size = np.abs(expected).max()
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        found = spline_coefficients(knots, values.to(dtype))
        assert found.dtype == dtype
        assert np.abs(found.numpy() - expected).max() < tolerance * size


def test_derivatives():
    knots = Knots(4.0, 9)
    values = torch.randn(knots.n_coefficients, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: spline_coefficients(knots, v), (values,))
    assert torch.autograd.gradgradcheck(lambda v: spline_coefficients(knots, v), (values,))


def test_the_values_given_are_not_changed():
    knots = Knots(4.0, 9)
    values = torch.ones(knots.n_coefficients, 2)
    spline_coefficients(knots, values)
    assert (values == 1).all()


def test_solutions_hold_no_subnormal_numbers_but_what_is_not_a_number():
    knots = Knots(5.0, 300)
    for scale in (1.0, 1e-12):
        values = torch.zeros(knots.n_coefficients, 2)
        values[7] = scale  # its solution falls off with the distance from it
        values.requires_grad_()
        found = spline_coefficients(knots, values)
        found[7].sum().backward()
        for numbers in (found.detach(), values.grad):
            assert (numbers == 0).any()
            assert numbers[numbers != 0].abs().min() > torch.finfo(torch.float32).tiny
    values = torch.ones(knots.n_coefficients, 2)
    values[150, 1] = torch.nan
    found = spline_coefficients(knots, values)
    assert found[:, 1].isnan().all()
    assert found[:, 0].isfinite().all()
