"""The normalised Laplacian, dense and sparse, against its formula."""

import numpy as np
import pytest
import torch

from ase_biasgrad.differentiable_graph import normalised_laplacian, sparse_normalised_laplacian
from ase_biasgrad.differentiable_graph.adjacency import symmetrised


@pytest.fixture
def adjacency():
    """Seven atoms, the last of them alone, the first with an image of itself."""
    random = torch.Generator().manual_seed(0)
    centre = torch.randint(0, 6, (20,), generator=random)
    neighbour = torch.randint(0, 6, (20,), generator=random)
    values = torch.rand(20, generator=random, dtype=torch.float64)
    centre[0] = neighbour[0] = 0
    return symmetrised(centre, neighbour, values, 7)


def test_formula_dense_and_sparse(adjacency):
    a = adjacency.dense().numpy()
    degrees = a.sum(axis=1)
    roots = np.diag(np.array([d**-0.5 if d > 0 else 0.0 for d in degrees]))
    expected = np.eye(7) - roots @ a @ roots
    assert a[0, 0] > 0
    np.testing.assert_allclose(normalised_laplacian(adjacency.dense()), expected, atol=1e-14)
    sparse = sparse_normalised_laplacian(adjacency)
    np.testing.assert_allclose(sparse.dense(), expected, atol=1e-14)
    features = torch.randn(7, 3, dtype=torch.float64)
    np.testing.assert_allclose(sparse.matmul(features), expected @ features.numpy(), atol=1e-13)
    eigenvalues = np.linalg.eigvalsh(expected)
    assert eigenvalues.min() > -1e-12
    assert eigenvalues.max() < 2 + 1e-12


def test_an_isolated_atom_is_no_error(adjacency):
    weights = adjacency.dense().requires_grad_()
    laplacian = normalised_laplacian(weights)
    assert laplacian[6].tolist() == [0] * 6 + [1]
    (gradient,) = torch.autograd.grad(laplacian.square().sum(), weights)
    assert bool(torch.isfinite(gradient).all())
    empty = normalised_laplacian(torch.zeros(2, 2))
    assert empty.tolist() == [[1, 0], [0, 1]]


def test_a_common_factor_changes_nothing(adjacency):
    one = normalised_laplacian(adjacency.dense())
    torch.testing.assert_close(normalised_laplacian(37.0 * adjacency.dense()), one)


def test_gradcheck(adjacency):
    values = adjacency.values.clone().requires_grad_()

    def sparse(v):
        return sparse_normalised_laplacian(type(adjacency)(adjacency.index, v, 7)).values

    def dense(v):
        return normalised_laplacian(type(adjacency)(adjacency.index, v, 7).dense())

    for function in (sparse, dense):
        assert torch.autograd.gradcheck(function, values)
        assert torch.autograd.gradgradcheck(function, values)
