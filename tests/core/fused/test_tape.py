"""Every operation's four passes against autograd of the same function; networks of them."""

from types import SimpleNamespace

import pytest
import torch
from reference_layers import Pairs, convolve, lift, norms, updates
from torch import Tensor
from torch.autograd.functional import jvp

from ase_biasgrad.backbones.tensornet import (
    PartwiseLinear,
    by_part,
    normalised,
    pair_tensors,
    sum_by_part,
    symmetric_product,
)
from ase_biasgrad.fused import layers as op
from ase_biasgrad.fused.messages import (
    Components,
    Convolve,
    Lift,
    SampledPairs,
    TensorPairs,
)
from ase_biasgrad.fused.tape import Network, Value
from ase_biasgrad.fused.tensors import ByPart, Mixed, Normalised, Squares, SymmetricProduct
from ase_biasgrad.fused.vectors import Norms, Receive, Send, Updates
from ase_biasgrad.numerics.activations import silu_jet, softplus_jet
from ase_biasgrad.numerics.splines import Knots

FUNCTIONS = torch.nn.functional
LOG2 = float(torch.log(torch.tensor(2.0, dtype=torch.float64)))


def random(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def as_tuple(results) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def four_passes(operation, moving: list[Value], still: list[Value], slopes, tangents, gradients):
    """Results; slopes of inputs that move; tangents of results; gradients of all inputs."""
    for value, slope in zip(operation.results, slopes, strict=True):
        value.slope = slope
    operation.reverse()
    for value, tangent in zip(moving, tangents, strict=True):
        value.tangent = tangent
    operation.tangent()
    for value, gradient in zip(operation.results, gradients, strict=True):
        value.gradient = gradient
    operation.learn()
    return (
        [value.data for value in operation.results],
        [value.slope for value in moving],
        [value.tangent for value in operation.results],
        [value.gradient for value in (*moving, *still)],
    )


def by_autograd(function, moving: list[Tensor], still: list[Tensor], slopes, tangents, gradients):
    inputs = [tensor.clone().requires_grad_() for tensor in (*moving, *still)]
    movable, fixed = inputs[: len(moving)], inputs[len(moving) :]
    results = as_tuple(function(*inputs))
    weighted = sum((s * r).sum() for s, r in zip(slopes, results, strict=True))
    of_inputs = torch.autograd.grad(weighted, movable, retain_graph=True)
    _, changes = jvp(
        lambda *moved: as_tuple(function(*moved, *fixed)),
        tuple(movable),
        tuple(tangents),
        create_graph=True,
    )
    learnt = sum((s * c).sum() for s, c in zip(slopes, changes, strict=True))
    learnt = learnt + sum((g * r).sum() for g, r in zip(gradients, results, strict=True))
    of_all = torch.autograd.grad(learnt, inputs, materialize_grads=True)
    return results, of_inputs, changes, of_all


def assert_passes(build, function, moving: list[Tensor], still: list[Tensor] | None = None):
    """`build` makes the operation from values, `function` its results from tensors."""
    still = still or []
    results = as_tuple(function(*moving, *still))
    shapes = [result.shape for result in results]
    slopes, gradients = random(*shapes, seed=1), random(*shapes, seed=2)
    tangents = random(*(tensor.shape for tensor in moving), seed=3)
    values = [Value(tensor) for tensor in moving], [Value(t, moves=False) for t in still]
    found = four_passes(build(*values[0], *values[1]), *values, slopes, tangents, gradients)
    expected = by_autograd(function, moving, still, slopes, tangents, gradients)
    for ours, theirs in zip(found, expected, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
            assert float(two.abs().max()) > 1e-3


def test_linear():
    x, weight, bias = random((5, 3, 4), (6, 4), (6,))
    assert_passes(op.Linear, FUNCTIONS.linear, [x], [weight, bias])
    assert_passes(op.Linear, FUNCTIONS.linear, [x[:, 0]], [weight])


@pytest.mark.parametrize(
    ("jet", "function"),
    [
        (silu_jet, FUNCTIONS.silu),
        (softplus_jet, lambda x: FUNCTIONS.softplus(x) - LOG2),
    ],
)
def test_activations(jet, function):
    assert_passes(lambda x: op.Activation(x, jet), function, random((5, 4)))


def test_sums_and_parts():
    x, y, z = random((5, 4), (5, 4), (5, 3))
    assert_passes(op.Sum, lambda x, y: x + y, [x, y])
    assert_passes(op.Sum, lambda x, y, w: x + y + w, [x, y, 2 * x])
    assert_passes(lambda x: op.Scaled(x, 0.5), lambda x: 0.5 * x, [x])
    assert_passes(lambda x: op.Columns(x, 1, 3), lambda x: x[:, 1:3], [x])
    assert_passes(op.Joined, lambda x, z: torch.cat([x, z], dim=1), [x, z])
    assert_passes(lambda x: op.Energies(x, 0.3), lambda x: 0.3 * x[:, 0], [z[:, :1]])


def layer_norm(x, weight, bias, epsilon):
    centred = x - x.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return centred / (variance + epsilon).sqrt() * weight + bias


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_layer_norm(epsilon):
    x, weight, bias = random((5, 8), (8,), (8,))
    assert_passes(
        lambda *inputs: op.LayerNorm(*inputs, epsilon),
        lambda x, w, b: layer_norm(x, w, b, epsilon),
        [x],
        [weight, bias],
    )


@pytest.mark.parametrize("features", [8, 5])  # whole vectors of a loop, and not
def test_vector_products(features):
    mixed, factors, mu = random((4, 3, 2 * features), (4, 3 * features), (4, 3, features))
    scalars, received = random((4, features), (4, 4, features))

    def send(factors, mu):
        first, _, last = factors.unflatten(1, (3, -1)).unbind(1)
        return torch.cat([first[:, None], last[:, None] * mu], dim=1)

    assert_passes(lambda m: Norms(m, 0.1), lambda m: norms(m, 0.1), [mixed])
    assert_passes(Updates, lambda f, m: updates(f.unflatten(1, (3, -1)), m), [factors, mixed])
    assert_passes(Send, send, [factors, mu])
    assert_passes(Receive, lambda s, v, r: (s + r[:, 0], v + r[:, 1:]), [scalars, mu, received])


@pytest.mark.parametrize("features", [8, 5])
def test_tensor_products(features):
    x, y, own = random((4, 9, features), (4, 9, features), (1, 3, features))
    (factors,) = random((4, 3 * features), seed=5)
    weights = random(*[(features, features)] * 3, seed=6)
    mix = PartwiseLinear(features)

    def mixed(x, *weights):
        named = {f"parts.{k}.weight": weight for k, weight in enumerate(weights)}
        return torch.func.functional_call(mix, named, (x,))

    assert_passes(SymmetricProduct, symmetric_product, [x, y])
    assert_passes(lambda x: SymmetricProduct(x, x), lambda x: symmetric_product(x, x), [x])
    assert_passes(Normalised, normalised, [x])
    assert_passes(lambda x, *w: Mixed(x, w), mixed, [x], weights)
    assert_passes(ByPart, lambda x, f: by_part(x, f.unflatten(1, (3, -1))), [x, factors])
    assert_passes(ByPart, by_part, [x], [own])
    assert_passes(lambda x: Squares(x, parts=False), lambda x: x.square().sum(1), [x])
    assert_passes(
        lambda x: Squares(x, parts=True), lambda x: sum_by_part(x.square()).flatten(1), [x]
    )


# with an image of an atom itself
ONE, TWO, FIRST = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 2, 2, 2, 3]), [0, 3, 1, 2, 2]


class Messages:
    """`Convolve` or `Lift` with weights and tensors of pairs as inputs like any other."""

    def __init__(self, make, x, weights, tensors, rows, *centre):
        first = torch.tensor(FIRST)
        self.weights, self.tensors = weights, tensors
        self.pairs = SimpleNamespace(
            indices=(ONE.numpy(), TWO.numpy(), first.numpy()),
            weights=weights.data,
            tensors=tensors.data,
            of_weights=torch.zeros_like(weights.data),
            of_tensors=torch.zeros_like(tensors.data),
        )
        self.of = make(self.pairs, x, rows, *centre)
        self.results = self.of.results

    def reverse(self):
        self.of.reverse()
        self.weights.slope, self.tensors.slope = self.pairs.of_weights, self.pairs.of_tensors

    def tangent(self):
        self.pairs.weights_tangent = self.weights.tangent
        self.pairs.tensors_tangent = self.tensors.tangent
        self.of.tangent()

    def learn(self):
        self.of.learn()


@pytest.mark.parametrize("features", [8, 5])
@pytest.mark.parametrize("kind", ["convolve", "lift", "lift with centre"])
def test_messages(kind, features):
    components = Components((0, 2, 2, 0), (1, -1, -1, 1))  # and a filter that none takes
    weights, tensors, rows = random((5, 6), (5, 4), (9, 3, features))
    shape = (4, 4, features) if kind == "convolve" else (4, features)
    x, centre = random(shape, (4, features), seed=4)

    def make(pairs, x, rows, *centre):
        operation = Convolve if kind == "convolve" else Lift
        return operation(pairs, x, rows, components, *centre)

    def by_torch(x, weights, tensors, rows, *centre):
        pairs = Pairs(ONE, TWO, 4, torch.tensor(FIRST), weights)
        if kind == "convolve":
            return convolve(pairs, x, rows, components) + 0 * tensors.sum()
        received = lift(pairs, x, rows, tensors, components)
        for of_atom in centre:
            ones = torch.ones_like(of_atom)
            received = received + of_atom[:, None] * lift(pairs, ones, rows, tensors, components)
        return received

    moving, still = [x, weights, tensors], [rows]
    if kind == "lift with centre":
        still.append(centre)
    shapes = as_tuple(by_torch(*moving, *still))[0].shape
    slopes, gradients = random(shapes, seed=1), random(shapes, seed=2)
    tangents = random(*(tensor.shape for tensor in moving), seed=3)
    values = [Value(tensor) for tensor in moving], [Value(t, moves=False) for t in still]
    found = four_passes(
        Messages(make, *values[0], *values[1]), *values, slopes, tangents, gradients
    )
    expected = by_autograd(by_torch, moving, still, slopes, tangents, gradients)
    # vectors learn nothing: no gradients of weights and tensors
    for ours, theirs in zip(found, expected, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            if one is not None:
                torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    assert [gradient is None for gradient in found[3]][:4] == [False, True, True, False]


@pytest.mark.parametrize("kind", [SampledPairs, TensorPairs])
def test_geometry(kind):
    """Slopes in the vectors and tangents along them, of weights of splines and tensors."""
    knots = Knots.for_functions(4.0, 8)
    (vectors,) = random((5, 3))
    vectors.requires_grad_()

    def seen(vectors):
        distances = vectors.square().sum(dim=1).sqrt()
        unit = vectors / distances[:, None]
        _, weights = knots.weights(distances)
        return weights, pair_tensors(unit) if kind is TensorPairs else unit

    pairs = kind(ONE, TWO, 4, vectors.detach(), knots, torch.float64)
    of_weights, of_tensors = random((5, 6), (5, pairs.tensors.shape[1]), seed=1)
    for one, two in zip((pairs.weights, pairs.tensors), seen(vectors), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    pairs.of_weights += of_weights
    pairs.of_tensors += of_tensors
    total = sum((g * s).sum() for g, s in zip((of_weights, of_tensors), seen(vectors), strict=True))
    (expected,) = torch.autograd.grad(total, vectors)
    torch.testing.assert_close(pairs.slopes(), expected, rtol=1e-11, atol=1e-11)
    (along,) = random((5, 3), seed=2)
    pairs.move(along)
    _, changes = jvp(seen, vectors, along)
    for one, two in zip((pairs.weights_tangent, pairs.tensors_tangent), changes, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    pairs.forget()
    assert not pairs.slopes().any()


def small_network(parameter: Tensor, vectors: Tensor) -> Tensor:
    """Energies of four atoms that send the number 1, through a filter and a layer."""
    knots = Knots.for_functions(4.0, 8)
    pairs = SampledPairs(ONE, TWO, 4, vectors.detach(), knots, torch.float64)
    network = Network(pairs)
    rows = network.learns(torch.linspace(-1, 1, knots.n_rows, dtype=torch.float64)[:, None, None])
    ones = network.learns(torch.ones(4, 1, dtype=torch.float64))
    received = network.add(Convolve(pairs, ones, rows, Components((0,))))
    hidden = network.add(op.Linear(received, network.learns(parameter)))
    network.add(op.Energies(network.add(op.Activation(hidden, silu_jet)), 1.0))
    return network.energies(vectors)


def test_a_network_is_differentiable_as_often_as_training_needs_it_and_not_more():
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: small_network(parameter, v), vectors)
    assert torch.autograd.gradcheck(lambda p: small_network(p, vectors), parameter)

    def loss(parameter, energy_weight):
        energies = small_network(parameter, vectors)
        (slopes,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        return slopes.square().sum() + energy_weight * energies.square().sum()

    for weight in (0.0, 0.5):
        (gradient,) = torch.autograd.grad(loss(parameter, weight), parameter)
        step = 1e-5
        ends = [float(loss(parameter + change, weight)) for change in (step, -step)]
        assert float(gradient) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-7)
    energies = small_network(parameter, vectors)
    with pytest.raises(RuntimeError, match="no second derivatives in its parameters"):
        torch.autograd.grad(energies.sum(), parameter, create_graph=True)


def test_passes_in_any_order_give_the_same():
    """A graph that is kept may be gone through again, with energies before forces."""
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    energies = small_network(parameter, vectors)
    (slopes,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    forces_first = [
        torch.autograd.grad(value, parameter, retain_graph=True)[0]
        for value in (slopes.square().sum(), energies.sum(), slopes.square().sum())
    ]
    assert torch.equal(forces_first[0], forces_first[2])
    assert not torch.equal(forces_first[0], forces_first[1])


def test_slopes_of_several_energies_from_one_graph():
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)

    def gradient(k: int, others: bool) -> Tensor:
        energies = small_network(parameter, vectors)
        slopes = [
            torch.autograd.grad(energies[i], vectors, create_graph=True)[0]
            for i in (range(4) if others else [k])
        ]
        one = slopes[k] if others else slopes[0]
        return torch.autograd.grad(one.square().sum(), parameter)[0]

    for k in range(4):
        torch.testing.assert_close(gradient(k, others=True), gradient(k, others=False))
    assert gradient(0, others=False) != gradient(1, others=False)


def test_parameters_that_have_changed_since_are_refused():
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    energies = small_network(parameter, vectors)
    (slopes,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    with torch.no_grad():
        parameter += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        slopes.sum().backward()
