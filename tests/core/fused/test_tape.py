"""Four passes of every layer against autograd of the same function; tapes of layers."""

from types import SimpleNamespace

import pytest
import torch
from reference_layers import Pairs, cfconv, painn_mixing, tensor_message, vector_norms
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
    CFConv,
    Components,
    SplinePairs,
    TensorMessage,
    TensorPairs,
)
from ase_biasgrad.fused.tape import Tape, Variable
from ase_biasgrad.fused.tensors import (
    IrrepsLinear,
    Normalised,
    ScaleIrreps,
    SquaredNorms,
    SymmetricProduct,
)
from ase_biasgrad.fused.vectors import PaiNNAggregate, PaiNNMessage, PaiNNMixing, VectorNorms
from ase_biasgrad.numerics.activations import silu_jet, softplus_jet
from ase_biasgrad.numerics.spline_coefficients import spline_weights
from ase_biasgrad.numerics.splines import Knots

FUNCTIONS = torch.nn.functional
LOG2 = float(torch.log(torch.tensor(2.0, dtype=torch.float64)))


def random(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def as_tuple(results) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def passes(
    operation, active: list[Variable], inactive: list[Variable], adjoints, tangents, gradients
):
    """Results; slopes of inputs that move; tangents of results; gradients of all inputs."""
    for value, adjoint in zip(operation.results, adjoints, strict=True):
        value.adjoint = adjoint
    operation.vjp()
    for value, tangent in zip(active, tangents, strict=True):
        value.tangent = tangent
    operation.jvp()
    for value, gradient in zip(operation.results, gradients, strict=True):
        value.gradient = gradient
    operation.second_order()
    return (
        [value.data for value in operation.results],
        [value.adjoint for value in active],
        [value.tangent for value in operation.results],
        [value.gradient for value in (*active, *inactive)],
    )


def by_autograd(
    function, active: list[Tensor], inactive: list[Tensor], adjoints, tangents, gradients
):
    inputs = [tensor.clone().requires_grad_() for tensor in (*active, *inactive)]
    active_inputs, fixed = inputs[: len(active)], inputs[len(active) :]
    results = as_tuple(function(*inputs))
    weighted = sum((s * r).sum() for s, r in zip(adjoints, results, strict=True))
    of_inputs = torch.autograd.grad(weighted, active_inputs, retain_graph=True)
    _, changes = jvp(
        lambda *moved: as_tuple(function(*moved, *fixed)),
        tuple(active_inputs),
        tuple(tangents),
        create_graph=True,
    )
    learnt = sum((s * c).sum() for s, c in zip(adjoints, changes, strict=True))
    learnt = learnt + sum((g * r).sum() for g, r in zip(gradients, results, strict=True))
    of_all = torch.autograd.grad(learnt, inputs, materialize_grads=True)
    return results, of_inputs, changes, of_all


def assert_passes(build, function, active: list[Tensor], inactive: list[Tensor] | None = None):
    """`build` makes the operation from values, `function` its results from tensors."""
    inactive = inactive or []
    results = as_tuple(function(*active, *inactive))
    shapes = [result.shape for result in results]
    adjoints, gradients = random(*shapes, seed=1), random(*shapes, seed=2)
    tangents = random(*(tensor.shape for tensor in active), seed=3)
    values = [Variable(tensor) for tensor in active], [Variable(t, active=False) for t in inactive]
    found = passes(build(*values[0], *values[1]), *values, adjoints, tangents, gradients)
    expected = by_autograd(function, active, inactive, adjoints, tangents, gradients)
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
    assert_passes(lambda x: op.Scale(x, 0.5), lambda x: 0.5 * x, [x])
    assert_passes(lambda x: op.Slice(x, 1, 3), lambda x: x[:, 1:3], [x])
    assert_passes(op.Concatenate, lambda x, z: torch.cat([x, z], dim=1), [x, z])
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

    assert_passes(lambda m: VectorNorms(m, 0.1), lambda m: vector_norms(m, 0.1), [mixed])
    assert_passes(
        PaiNNMixing, lambda f, m: painn_mixing(f.unflatten(1, (3, -1)), m), [factors, mixed]
    )
    assert_passes(PaiNNMessage, send, [factors, mu])
    assert_passes(
        PaiNNAggregate, lambda s, v, r: (s + r[:, 0], v + r[:, 1:]), [scalars, mu, received]
    )


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
    assert_passes(lambda x, *w: IrrepsLinear(x, w), mixed, [x], weights)
    assert_passes(ScaleIrreps, lambda x, f: by_part(x, f.unflatten(1, (3, -1))), [x, factors])
    assert_passes(ScaleIrreps, by_part, [x], [own])
    assert_passes(lambda x: SquaredNorms(x, parts=False), lambda x: x.square().sum(1), [x])
    assert_passes(
        lambda x: SquaredNorms(x, parts=True), lambda x: sum_by_part(x.square()).flatten(1), [x]
    )


# with an image of an atom itself
ONE, TWO, FIRST = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 2, 2, 2, 3]), [0, 3, 1, 2, 2]


class Messages:
    """`CFConv` or `TensorMessage` with weights and tensors of pairs as inputs like any other."""

    def __init__(self, make, x, weights, tensors, coefficients, *centre):
        first = torch.tensor(FIRST)
        self.weights, self.tensors = weights, tensors
        self.pairs = SimpleNamespace(
            indices=(ONE.numpy(), TWO.numpy(), first.numpy()),
            weights=weights.data,
            tensors=tensors.data,
            adj_weights=torch.zeros_like(weights.data),
            adj_tensors=torch.zeros_like(tensors.data),
        )
        self.of = make(self.pairs, x, coefficients, *centre)
        self.results = self.of.results

    def vjp(self):
        self.of.vjp()
        self.weights.adjoint, self.tensors.adjoint = self.pairs.adj_weights, self.pairs.adj_tensors

    def jvp(self):
        self.pairs.weights_tangent = self.weights.tangent
        self.pairs.tensors_tangent = self.tensors.tangent
        self.of.jvp()

    def second_order(self):
        self.of.second_order()


@pytest.mark.parametrize("features", [8, 5])
@pytest.mark.parametrize("kind", ["cfconv", "tensor message", "tensor message with centre"])
def test_messages(kind, features):
    components = Components((0, 2, 2, 0), (1, -1, -1, 1))  # and a filter that none takes
    weights, tensors, coefficients = random((5, 6), (5, 4), (9, 3, features))
    shape = (4, 4, features) if kind == "cfconv" else (4, features)
    x, centre = random(shape, (4, features), seed=4)

    def make(pairs, x, coefficients, *centre):
        operation = CFConv if kind == "cfconv" else TensorMessage
        return operation(pairs, x, coefficients, components, *centre)

    def by_torch(x, weights, tensors, coefficients, *centre):
        pairs = Pairs(ONE, TWO, 4, torch.tensor(FIRST), weights)
        if kind == "cfconv":
            return cfconv(pairs, x, coefficients, components) + 0 * tensors.sum()
        received = tensor_message(pairs, x, coefficients, tensors, components)
        for of_atom in centre:
            ones = torch.ones_like(of_atom)
            received = received + of_atom[:, None] * tensor_message(
                pairs, ones, coefficients, tensors, components
            )
        return received

    active, inactive = [x, weights, tensors], [coefficients]
    if kind == "tensor message with centre":
        inactive.append(centre)
    shapes = as_tuple(by_torch(*active, *inactive))[0].shape
    adjoints, gradients = random(shapes, seed=1), random(shapes, seed=2)
    tangents = random(*(tensor.shape for tensor in active), seed=3)
    values = [Variable(tensor) for tensor in active], [Variable(t, active=False) for t in inactive]
    found = passes(Messages(make, *values[0], *values[1]), *values, adjoints, tangents, gradients)
    expected = by_autograd(by_torch, active, inactive, adjoints, tangents, gradients)
    # vectors learn nothing: no gradients of weights and tensors
    for ours, theirs in zip(found, expected, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            if one is not None:
                torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    assert [gradient is None for gradient in found[3]][:4] == [False, True, True, False]


@pytest.mark.parametrize("kind", [SplinePairs, TensorPairs])
def test_geometry(kind):
    """Slopes in the vectors and tangents along them, of weights of splines and tensors."""
    knots = Knots.for_functions(4.0, 8)
    (vectors,) = random((5, 3))
    vectors.requires_grad_()

    def seen(vectors):
        distances = vectors.square().sum(dim=1).sqrt()
        unit = vectors / distances[:, None]
        _, weights = spline_weights(knots, distances)
        return weights, pair_tensors(unit) if kind is TensorPairs else unit

    pairs = kind(ONE, TWO, 4, vectors.detach(), knots, torch.float64)
    adj_weights, adj_tensors = random((5, 6), (5, pairs.tensors.shape[1]), seed=1)
    for one, two in zip((pairs.weights, pairs.tensors), seen(vectors), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    pairs.adj_weights += adj_weights
    pairs.adj_tensors += adj_tensors
    total = sum(
        (g * s).sum() for g, s in zip((adj_weights, adj_tensors), seen(vectors), strict=True)
    )
    (expected,) = torch.autograd.grad(total, vectors)
    torch.testing.assert_close(pairs.vjp(), expected, rtol=1e-11, atol=1e-11)
    (along,) = random((5, 3), seed=2)
    pairs.jvp(along)
    _, changes = jvp(seen, vectors, along)
    for one, two in zip((pairs.weights_tangent, pairs.tensors_tangent), changes, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    pairs.clear_adjoints()
    assert not pairs.vjp().any()


def small_tape(parameter: Tensor, vectors: Tensor) -> Tensor:
    """Energies of four atoms that send the number 1, through a filter and a layer."""
    knots = Knots.for_functions(4.0, 8)
    pairs = SplinePairs(ONE, TWO, 4, vectors.detach(), knots, torch.float64)
    tape = Tape(pairs)
    coefficients = tape.parameter(
        torch.linspace(-1, 1, knots.n_coefficients, dtype=torch.float64)[:, None, None]
    )
    ones = tape.parameter(torch.ones(4, 1, dtype=torch.float64))
    received = tape.add(CFConv(pairs, ones, coefficients, Components((0,))))
    hidden = tape.add(op.Linear(received, tape.parameter(parameter)))
    tape.add(op.Energies(tape.add(op.Activation(hidden, silu_jet)), 1.0))
    return tape.energies(vectors)


def test_a_network_is_differentiable_as_often_as_training_needs_it_and_not_more():
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: small_tape(parameter, v), vectors)
    assert torch.autograd.gradcheck(lambda p: small_tape(p, vectors), parameter)

    def loss(parameter, energy_weight):
        energies = small_tape(parameter, vectors)
        (adjoints,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        return adjoints.square().sum() + energy_weight * energies.square().sum()

    for weight in (0.0, 0.5):
        (gradient,) = torch.autograd.grad(loss(parameter, weight), parameter)
        step = 1e-5
        ends = [float(loss(parameter + change, weight)) for change in (step, -step)]
        assert float(gradient) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-7)
    energies = small_tape(parameter, vectors)
    with pytest.raises(RuntimeError, match="no second derivatives in its parameters"):
        torch.autograd.grad(energies.sum(), parameter, create_graph=True)


def test_passes_in_any_order_give_the_same():
    """A graph that is kept may be gone through again, with energies before forces."""
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    energies = small_tape(parameter, vectors)
    (adjoints,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    forces_first = [
        torch.autograd.grad(value, parameter, retain_graph=True)[0]
        for value in (adjoints.square().sum(), energies.sum(), adjoints.square().sum())
    ]
    assert torch.equal(forces_first[0], forces_first[2])
    assert not torch.equal(forces_first[0], forces_first[1])


def test_slopes_of_several_energies_from_one_graph():
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)

    def gradient(k: int, others: bool) -> Tensor:
        energies = small_tape(parameter, vectors)
        adjoints = [
            torch.autograd.grad(energies[i], vectors, create_graph=True)[0]
            for i in (range(4) if others else [k])
        ]
        one = adjoints[k] if others else adjoints[0]
        return torch.autograd.grad(one.square().sum(), parameter)[0]

    for k in range(4):
        torch.testing.assert_close(gradient(k, others=True), gradient(k, others=False))
    assert gradient(0, others=False) != gradient(1, others=False)


def test_parameters_that_have_changed_since_are_refused():
    (vectors,) = random((5, 3))
    vectors.requires_grad_()
    parameter = torch.full((1, 1), 0.7, dtype=torch.float64, requires_grad=True)
    energies = small_tape(parameter, vectors)
    (adjoints,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    with torch.no_grad():
        parameter += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        adjoints.sum().backward()
