"""Every module against finite differences in float64, averaging, and the same network in torch."""

import copy

import numpy as np
import pytest
import torch
from test_coulomb_matrix import some_molecules

from ase_biasgrad.dense.coulomb_matrix import PaddedMolecules, coulomb_matrices
from ase_biasgrad.dense.inputs import Centre, CoulombMatrix, Input, NormOrder, TanhExpansion
from ase_biasgrad.dense.modules import Linear, Module, Output, Sequential, Standardise, Tanh

LIMIT = 1e-6
OUTPUT = Output(np.array([-75.7, -56.3]))  # mean -66, deviation 9.7


def random_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


MODULES = {
    "linear": (lambda: Linear(6, 4, np.random.default_rng(1)), random_of(5, 6)),
    "tanh": (Tanh, random_of(5, 6)),
    "standardise": (lambda: Standardise.of(3 + random_of(9, 6, seed=2)), random_of(5, 6)),
    "standardise, common": (
        lambda: Standardise.of(3 + random_of(9, 6, seed=2), common=True),
        random_of(5, 6),
    ),
    "output": (lambda: OUTPUT, random_of(5, 1)),
    "expansion": (
        lambda: TanhExpansion.up_to(np.array([2.0, 0.5, 4.0]), 0.7),
        np.abs(random_of(5, 3)),
    ),
    "order": (NormOrder, coulomb_matrices(some_molecules(9)[1:2])),  # ethanol, no atom missing
}


def numerical(f, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """df/dx by central differences."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            sides.append(f(moved))
        gradient[place] = (sides[0] - sides[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", MODULES)
def test_backward_is_the_derivative(name):
    make, x = MODULES[name]
    module = make()
    weights = random_of(*module.forward(x).shape, seed=3)

    def loss(x):
        return float(np.sum(module.forward(x) * weights))

    expected = numerical(loss, x)
    module.forward(x)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(module.backward(weights), expected, atol=LIMIT)


@pytest.mark.parametrize("first", [[Input()], [Centre(), Input()], [CoulombMatrix(), NormOrder()]])
def test_derivatives_by_positions(first):
    network, molecules = Sequential(first), some_molecules(9)
    weights = random_of(*network.forward(molecules).shape, seed=3)
    present = (molecules.charges > 0)[:, :, None]

    def loss(positions):
        moved = PaddedMolecules(positions * present, molecules.charges)
        return float(np.sum(network.forward(moved) * weights))

    expected = numerical(loss, molecules.positions) * present
    network.forward(molecules)
    found = network.backward(weights)
    assert found.shape == (4, 9, 3)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found * present, expected, atol=LIMIT)


def test_linear_weights_derivatives_and_update():
    x, target = random_of(7, 5), random_of(7, 3, seed=1)
    layer = Linear(5, 3, np.random.default_rng(0))
    layer.B += 0.3

    def loss(weights, bias):
        return 0.5 * float(np.sum((x @ weights + bias - target) ** 2))

    layer.backward(layer.forward(x) - target)
    by_weights = numerical(lambda w: loss(w, layer.B), layer.W)
    by_bias = numerical(lambda b: loss(layer.W, b), layer.B)
    np.testing.assert_allclose(layer.DW, by_weights, atol=LIMIT)
    np.testing.assert_allclose(layer.DB, by_bias, atol=LIMIT)
    before = layer.W.copy(), layer.B.copy()
    layer.update(0.01)
    # its own factor 1/√m
    np.testing.assert_allclose(layer.W, before[0] - 0.01 / np.sqrt(5) * by_weights, atol=1e-8)
    np.testing.assert_allclose(layer.B, before[1] - 0.01 / np.sqrt(5) * by_bias, atol=1e-8)


def test_first_weights():
    layer = Linear(400, 300, np.random.default_rng(0))
    assert layer.W.std() == pytest.approx(1 / 20, rel=0.02)
    assert not layer.B.any()


def test_input_concatenates_positions_and_charges():
    molecules = some_molecules(9)
    x = Input().forward(molecules)
    assert x.shape == (4, 36)
    np.testing.assert_array_equal(x.reshape(4, 9, 4)[..., :3], molecules.positions)
    np.testing.assert_array_equal(x.reshape(4, 9, 4)[..., 3], molecules.charges)


def test_centring_takes_out_translations():
    molecules = some_molecules(9)
    moved = PaddedMolecules(
        molecules.positions + (molecules.charges > 0)[:, :, None] * np.array([1.0, -2.0, 3.0]),
        molecules.charges,
    )
    network = Sequential([Centre(), Input()])
    np.testing.assert_allclose(network.forward(moved), network.forward(molecules), atol=1e-12)
    assert np.abs(network.forward(molecules)).max() > 0.5


def test_running_average_has_its_closed_form():
    random = np.random.default_rng(0)
    iterates = [Linear(4, 3, random) for _ in range(30)]
    average = copy.deepcopy(iterates[0])
    share = np.zeros(30)
    for i, iterate in enumerate(iterates):
        a = 10 / (10 + i)
        average.average(iterate, a)
        share *= 1 - a
        share[i] = a
    assert share.sum() == pytest.approx(1.0)
    # Π (1 − a_j) telescopes into a ratio of rising factorials: Γ(i+10) Γ(31) / (Γ(i+1) Γ(40)) · 10
    from scipy.special import gammaln

    i = np.arange(30)
    closed = 10 * np.exp(gammaln(i + 10) - gammaln(i + 1) + gammaln(30) - gammaln(40))
    np.testing.assert_allclose(share, closed, rtol=1e-10)
    expected = np.einsum("i,imn->mn", closed, [layer.W for layer in iterates])
    np.testing.assert_allclose(average.W, expected, atol=1e-12)


def dense_92(random):
    layers: list[Module] = [Input()]
    for m, n in ((92, 400), (400, 100)):
        layers += [Linear(m, n, random), Tanh()]
    return Sequential([*layers, Linear(100, 1, random), OUTPUT])


def test_the_same_network_in_torch_gives_the_same_numbers():
    network, molecules = dense_92(np.random.default_rng(0)), some_molecules(23)
    # tanh of small inputs, so that nothing is saturated
    network.modules.insert(1, Standardise(np.zeros(92), np.array(3.0)))
    linear = [m for m in network.modules if isinstance(m, Linear)]
    theirs = [torch.nn.Linear(*layer.W.shape, dtype=torch.float64) for layer in linear]
    with torch.no_grad():
        for layer, their in zip(linear, theirs, strict=True):
            their.weight.copy_(torch.from_numpy(layer.W.T))
            their.bias.copy_(torch.from_numpy(layer.B))
    positions = torch.tensor(molecules.positions, requires_grad=True)
    charges = torch.tensor(molecules.charges)[:, :, None]
    x = torch.cat([positions, charges], dim=2).reshape(4, 92) / 3.0
    hidden = torch.tanh(theirs[1](torch.tanh(theirs[0](x))))
    expected = -66.0 + 9.7 * theirs[2](hidden)[:, 0]
    energies = network.forward(molecules)
    np.testing.assert_allclose(energies, expected.detach().numpy(), rtol=1e-12)
    assert np.ptp(energies) > 1
    targets = np.array([-60.0, -70.0, -55.0, -80.0])
    loss = 0.5 * (expected - torch.from_numpy(targets)).square().sum()
    loss.backward()
    by_positions = network.backward(energies - targets)
    np.testing.assert_allclose(by_positions, positions.grad.numpy(), atol=1e-9)
    for layer, their in zip(linear, theirs, strict=True):
        np.testing.assert_allclose(layer.DW, their.weight.grad.numpy().T, atol=1e-9)
        np.testing.assert_allclose(layer.DB, their.bias.grad.numpy(), atol=1e-9)
    kept = linear[0].DW
    network.forward(molecules)
    network.backward_to_weights(energies - targets)
    np.testing.assert_array_equal(linear[0].DW, kept)


def test_random_orders_are_drawn_anew_and_repeated_after_a_reseed():
    matrices, order = coulomb_matrices(some_molecules()), NormOrder(1.0, seed=5)
    first, second = order.forward(matrices), order.forward(matrices)
    assert not np.array_equal(first, second)
    order.reseed()
    np.testing.assert_array_equal(order.forward(matrices), first)


def test_constant_columns_are_left_alone():
    x = np.column_stack([np.full(8, 7.1), np.arange(8.0)])
    y = Standardise.of(x).forward(x)
    np.testing.assert_allclose(y[:, 0], 0, atol=1e-12)
    np.testing.assert_allclose([y[:, 1].mean(), y[:, 1].std()], [0, 1], atol=1e-12)
    assert Output(np.full(3, 2.0)).std == 1.0


def test_module_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Module()
