"""Radial functions on NumPy arrays against those of the backbones: values and slopes."""

import numpy as np
import pytest
import torch
from conftest import small_potential

from ase_biasgrad.backbones import tensornet as torch_tensornet
from ase_biasgrad.backbones.radial import shifted_softplus as torch_softplus
from ase_biasgrad.fused import painn, radial, schnet, tensornet
from ase_biasgrad.fused.networks import filters_of
from ase_biasgrad.numerics.splines import values_and_slopes

CUTOFF = 4.0
DISTANCES = np.concatenate([np.linspace(0.05, CUTOFF - 1e-4, 83), [CUTOFF + 1e-6, 5.0]])


def assert_the_same(ours, theirs, x: np.ndarray, tolerance: float = 1e-12) -> None:
    """Values and slopes of a function `(m,)` to `(m, …)`; `theirs` takes a tensor."""
    values, slopes = values_and_slopes(ours, x)
    leaf = torch.from_numpy(x).requires_grad_()
    expected = theirs(leaf).reshape(len(x), -1)
    rows = [torch.autograd.grad(y.sum(), leaf, retain_graph=True)[0] for y in expected.T]
    for found, exact in ((values, expected), (slopes, torch.stack(rows, dim=1))):
        exact = exact.detach().numpy()
        limit = tolerance * max(1.0, np.abs(exact).max())
        np.testing.assert_allclose(found.reshape(exact.shape), exact, rtol=0, atol=limit)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(radial.silu, torch.nn.functional.silu), (radial.shifted_softplus, torch_softplus)],
)
def test_activations(ours, theirs):
    x = np.concatenate([np.linspace(-12, 12, 50), [-800.0, -100.0, 0.0, 15.0, 100.0, 800.0]])
    # torch's softplus is linear from 20 on, where the rest is below 2e-9
    assert_the_same(ours, theirs, x)
    assert np.isfinite(ours(x + 1e-30j)).all()


def backbone_of(name: str, **arguments):
    return small_potential(name, cutoff=CUTOFF, **arguments).backbone.double().requires_grad_(False)


def weights_of(backbone) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in backbone.state_dict().items()}


@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
@pytest.mark.parametrize("envelope", ["cosine", "mollifier"])
def test_basis_and_cutoff(basis, envelope):
    backbone = backbone_of("schnet", radial_basis=basis, cutoff_function=envelope)
    arguments, weights = backbone.arguments, weights_of(backbone)
    torchs = backbone.representation.radial_basis, backbone.representation.cutoff_fn
    for k, theirs in enumerate(torchs):
        assert_the_same(
            lambda r, k=k: radial.basis_and_cutoff(arguments, weights, r)[k], theirs, DISTANCES
        )
    outside = radial.basis_and_cutoff(arguments, weights, np.array([CUTOFF, 7.0]))[1]
    assert (outside == 0).all()


def test_bessel_functions_are_defined_at_zero():
    backbone = backbone_of("schnet", radial_basis="bessel")
    functions, _ = radial.basis_and_cutoff(backbone.arguments, weights_of(backbone), np.zeros(1))
    expected = backbone.representation.radial_basis(torch.zeros(1, dtype=torch.float64))
    np.testing.assert_array_equal(functions, expected)


def test_cosine_cutoff():
    assert_the_same(
        lambda r: radial.cosine_cutoff(r, CUTOFF),
        lambda r: torch_tensornet.cosine_cutoff(r, CUTOFF),
        DISTANCES,
    )


def filters_of_schnet(backbone, r):
    layers = backbone.representation
    basis, envelope = layers.radial_basis(r), layers.cutoff_fn(r)[:, None]
    return torch.cat([k.filter_network(basis) for k in layers.interactions], dim=1) * envelope


def filters_of_painn(backbone, r):
    layers = backbone.representation
    return layers.filter_net(layers.radial_basis(r)) * layers.cutoff_fn(r)[:, None]


def filters_of_tensornet(backbone, r):
    return torch.cat([part.flatten(1) for part in backbone.filters(r)], dim=1)


FILTERS = {
    "schnet": (schnet, filters_of_schnet),
    "painn": (painn, filters_of_painn),
    "tensornet": (tensornet, filters_of_tensornet),
}


@pytest.mark.parametrize("arguments", [{}, {"radial_functions": 7, "features": 5}])
@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_of_the_backbone(name, arguments):
    backbone, (_, theirs) = backbone_of(name, **arguments), FILTERS[name]
    weights = weights_of(backbone)
    assert_the_same(
        filters_of(name, backbone.arguments, weights),
        lambda r: theirs(backbone, r),
        DISTANCES,
    )


@pytest.mark.parametrize(("name", "times"), [("schnet", 4), ("painn", 2)])
def test_bessel_functions_count_more(name, times):
    network, _ = FILTERS[name]
    plain, bessel = (
        network.radial_functions(backbone_of(name, radial_basis=basis).arguments)
        for basis in ("gaussian", "bessel")
    )
    assert bessel == times * plain
