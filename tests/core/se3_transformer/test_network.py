"""The SE(3)-Transformer turns with its input, and the fused layers do what the plain ones do."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from se3_plain import PlainSE3Transformer, kernel_basis, spherical_harmonics
from torch import nn

from ase_biasgrad.se3_transformer import SE3Transformer, transformer_blocks, uniform_fiber
from ase_biasgrad.se3_transformer.attention import AttentionBlock
from ase_biasgrad.se3_transformer.compiled import CompiledFrames
from ase_biasgrad.se3_transformer.convolution import Convolution, ConvolutionBlock, KernelOptions
from ase_biasgrad.se3_transformer.couplings import KernelShape, clebsch_gordan
from ase_biasgrad.se3_transformer.edges import EdgeContext, edge_softmax
from ase_biasgrad.se3_transformer.fibers import Group
from ase_biasgrad.se3_transformer.frames import Frames, MessageShape, edge_frames, wigner_matrices
from ase_biasgrad.se3_transformer.nonlinearity import NormBias, NormLayerNorm, SmoothGate
from ase_biasgrad.se3_transformer.self_interaction import AttentiveSelfInteraction

POINTS = 7


def rotation(dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(Rotation.from_euler("xyz", [0.3, 1.1, -2.0]).as_matrix(), dtype=dtype)


def wigner(degree: int, matrix: torch.Tensor) -> torch.Tensor:
    """D with Y_l(R x) = D Y_l(x), from harmonics at many points; holds for reflections too."""
    x = torch.randn(64, 3, dtype=torch.float64)
    before, after = (
        spherical_harmonics(y, degree)[:, degree**2 :] for y in (x, x @ matrix.double().T)
    )
    return torch.linalg.lstsq(before, after).solution.T.to(matrix.dtype)


def rotated(features: dict[int, torch.Tensor], matrix: torch.Tensor) -> dict[int, torch.Tensor]:
    """Features of natural parity (-1)^l under a rotation or reflection."""
    return {
        degree: torch.einsum("ab,nbc->nac", wigner(degree, matrix), value)
        for degree, value in features.items()
    }


def random_features(fiber, dtype=torch.float64) -> dict[int, torch.Tensor]:
    return {k: torch.randn(POINTS, 2 * k + 1, c, dtype=dtype) for k, c in fiber.items()}


def pairs(points: int = POINTS) -> torch.Tensor:
    return torch.nonzero(~torch.eye(points, dtype=torch.bool)).T


def small_network(**options) -> SE3Transformer:
    torch.manual_seed(0)
    fiber_in, hidden = {0: 3, 1: 2}, {0: 4, 1: 4, 2: 8}
    kernels = KernelOptions(inputs=2, **options)
    blocks = transformer_blocks(fiber_in, hidden, 2, 2, 2, kernels, NormLayerNorm)
    last = AttentionBlock(hidden, {1: 2, 0: 4}, 2, 1, kernels, attentive=True)
    return SE3Transformer(fiber_in, [*blocks, last]).double()


@pytest.fixture
def points() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(POINTS, 3, dtype=torch.float64)


@pytest.fixture
def scalars() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(POINTS * (POINTS - 1), 1, dtype=torch.float64)


def vectors_of(points: torch.Tensor) -> torch.Tensor:
    centre, neighbour = pairs(len(points))
    return points[neighbour] - points[centre]


def largest(one: dict, two: dict) -> float:
    return max(float((one[k] - two[k]).abs().max()) for k in one)


# --- frames --------------------------------------------------------------------------------


def test_degree_one_is_cartesian(points):
    unit = points / points.norm(dim=1, keepdim=True)
    harmonics = spherical_harmonics(points, 6)
    torch.testing.assert_close(harmonics[:, 1:4], 3**0.5 * unit)
    turned = edge_frames(points) @ unit[:, :, None]
    torch.testing.assert_close(turned[:, :, 0], torch.eye(3).double()[[1] * POINTS])


def test_the_coupling_of_three_vectors_is_the_cross_product():
    epsilon = clebsch_gordan(1, 1, 1)  # (J, in, out)
    x, y = torch.randn(2, 3, dtype=torch.float64)
    crossed = torch.einsum("jab,j,a->b", epsilon, x, y)
    assert torch.allclose(crossed.abs(), (torch.linalg.cross(x, y) / 2**0.5).abs())


def test_wigner_matrices_turn_harmonics(points):
    x = torch.randn(POINTS, 3, dtype=torch.float64)
    turns = edge_frames(points)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(POINTS).double())
    before = spherical_harmonics(x, 5)
    after = spherical_harmonics((turns @ x[:, :, None])[:, :, 0], 5)
    for degree, matrix in enumerate(wigner_matrices(turns, 5)):
        own = slice(degree**2, (degree + 1) ** 2)
        torch.testing.assert_close((matrix @ before[:, own, None])[:, :, 0], after[:, own])


@pytest.mark.parametrize("vector", [[0.0, 1, 0], [0, -2, 0], [1, 0, 0], [0, 0, -1], [1, 1, 1]])
def test_frames_and_their_derivatives_are_finite_along_axes(vector):
    x = torch.tensor([vector], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(edge_frames(x).pow(3).sum(), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("odd_paths", [True, False])
@pytest.mark.parametrize(("degree", "out"), [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 3)])
def test_kernels_commute_with_rotations(points, odd_paths, degree, out):
    shape, matrix = KernelShape(degree, (out,), odd_paths), rotation()

    def mapped(x, feature):  # every path applied to one feature of degree l
        return torch.einsum("ekap,ea->ekp", kernel_basis(x, shape), feature)

    feature = torch.randn(POINTS, 2 * degree + 1, dtype=torch.float64)
    turned = rotated({degree: feature[:, :, None]}, matrix)[degree][:, :, 0]
    before, after = mapped(points, feature), mapped(points @ matrix.T, turned)
    torch.testing.assert_close(after, rotated({out: before}, matrix)[out], atol=1e-10, rtol=0)
    assert before.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("odd_paths", [True, False])
@pytest.mark.parametrize(
    ("degrees_in", "degrees_out", "edges"),
    [((0, 1, 2, 3), (0, 1, 2, 3), 40), ((0,), (0, 1), 16), ((1, 3), (2,), 3), ((2, 0), (1, 4), 90)],
)
def test_compiled_messages_are_those_of_torch(degrees_in, degrees_out, edges, odd_paths, dtype):
    torch.manual_seed(0)
    shape = MessageShape(degrees_in, degrees_out, odd_paths)
    vectors, neighbour = torch.randn(edges, 3, dtype=dtype), torch.randint(5, (edges,))
    channels, channels_out = 3, 2
    parities = 2 if odd_paths else 1
    rows = [one * two * (parities if m else 1) for m, (one, two) in enumerate(shape.members)]
    components = sum(2 * degree + 1 for degree in degrees_in)
    leaves = [
        torch.randn(5, components, channels, dtype=dtype),
        torch.randn(edges, 7, dtype=dtype),
        *(torch.randn(channels * channels_out * k, 7, dtype=dtype) for k in rows),
    ]
    results = []
    for frames in (
        Frames.of(vectors, neighbour, [shape]),
        CompiledFrames.of(vectors, neighbour, 4),
    ):
        features, hidden, *kernels = own = [leaf.clone().requires_grad_() for leaf in leaves]
        messages = frames.messages(features, hidden, kernels, shape)
        results.append([messages, *torch.autograd.grad(messages.pow(3).sum(), own)])
    assert results[0][0].shape == (edges, channels_out, shape.components_out)
    for one, two in zip(*results, strict=True):
        close = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(one, two, rtol=0, atol=close * float(one.abs().max()))


# --- layers --------------------------------------------------------------------------------

FIBER = {0: 4, 1: 4, 2: 2}
LAYERS = {
    "attention": lambda: AttentionBlock(FIBER, {0: 4, 1: 4, 3: 4}, 2, 2, KernelOptions()),
    "attentive": lambda: AttentionBlock(FIBER, {1: 2}, 1, 1, KernelOptions(), attentive=True),
    "convolution": lambda: ConvolutionBlock(FIBER, {0: 3, 2: 5, 3: 1}, KernelOptions()),
    "norm bias": lambda: NormBias(FIBER),
    "norm layer norm": lambda: NormLayerNorm(FIBER),
    "smooth gate": lambda: SmoothGate(FIBER),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_turns_with_its_input(name, points):
    torch.manual_seed(0)
    layer, features, matrix = LAYERS[name]().double(), random_features(FIBER), rotation()
    outputs = []
    for x, f in ((points, features), (points @ matrix.T, rotated(features, matrix))):
        network = SE3Transformer(FIBER, [layer, LAYERS["convolution"]().double()])
        edges = network.edge_context(vectors_of(x), pairs())
        outputs.append(layer(f, edges))
    assert largest(rotated(outputs[0], matrix), outputs[1]) < 1e-10
    assert all(value.abs().max() > 0.05 for value in outputs[0].values())


def test_attentive_self_interaction_is_a_mean_of_channels():
    layer = AttentiveSelfInteraction({1: 3}, {1: 2}).double()
    same = torch.randn(POINTS, 3, 1, dtype=torch.float64)
    torch.testing.assert_close(layer({1: same.expand(-1, -1, 3)})[1], same.expand(-1, -1, 2))


def test_messages_have_about_the_variance_of_their_input(points):
    torch.manual_seed(0)
    layer = Convolution(FIBER, [Group((0, 1, 2, 3), 64)], KernelOptions()).double()
    x = torch.randn(60, 3, dtype=torch.float64)
    each = torch.arange(60)
    frames = Frames.of(x, each, layer.shapes)
    edges = EdgeContext(each, x.norm(dim=1)[:, None], frames, None)
    features = {k: torch.randn(60, 2 * k + 1, c, dtype=torch.float64) for k, c in FIBER.items()}
    (messages,) = layer(features, edges)
    start = 0
    for k in range(4):
        variance = messages[:, :, start : start + 2 * k + 1].var()
        assert 0.4 < variance < 2.5
        start += 2 * k + 1


# --- the network ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_network_turns_with_its_input(points, scalars, dtype):
    network = small_network().to(dtype)
    features = random_features(network.fiber_in, dtype)
    points, scalars, matrix = points.to(dtype), scalars.to(dtype), rotation(dtype)
    one = network(features, vectors_of(points), pairs(), scalars)
    two = network(rotated(features, matrix), vectors_of(points @ matrix.T), pairs(), scalars)
    scale = max(float(value.abs().max()) for value in one.values())
    assert largest(rotated(one, matrix), two) < scale * (1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("odd_paths", [True, False])
def test_reflections(points, scalars, odd_paths):
    network = small_network(odd_paths=odd_paths)
    features, matrix = random_features(network.fiber_in), -rotation()
    one = network(features, vectors_of(points), pairs(), scalars)
    two = network(rotated(features, matrix), vectors_of(points @ matrix.T), pairs(), scalars)
    error = largest(rotated(one, matrix), two)
    assert error > 1e-3 if odd_paths else error < 1e-11


def test_the_order_of_points_and_of_edges_does_not_matter(points, scalars):
    network = small_network()
    features = random_features(network.fiber_in)
    one = network(features, vectors_of(points), pairs(), scalars)
    order, shuffle = torch.randperm(POINTS), torch.randperm(len(scalars))
    place = torch.argsort(order)
    index = place[pairs()][:, shuffle]
    moved = {degree: value[order] for degree, value in features.items()}
    two = network(moved, vectors_of(points)[shuffle], index, scalars[shuffle])
    assert largest({degree: value[order] for degree, value in one.items()}, two) < 1e-11


@pytest.mark.parametrize("odd_paths", [True, False])
def test_fused_is_plain(points, scalars, odd_paths):
    network = small_network(odd_paths=odd_paths)
    nn.init.normal_(network.blocks[0].convolution.radial.outputs[0].bias)
    plain = PlainSE3Transformer(network)
    features = random_features(network.fiber_in)
    results, gradients = [], []
    for model in (network, plain):
        x = points.clone().requires_grad_()
        output = model(features, vectors_of(x), pairs(), scalars)
        (gradient,) = torch.autograd.grad(sum(v.pow(3).sum() for v in output.values()), x)
        results.append(output)
        gradients.append(gradient)
    assert largest(*results) < 1e-12
    assert (gradients[0] - gradients[1]).abs().max() < 1e-10 * gradients[0].abs().max()


def test_low_memory_gives_the_same_gradients_twice(points, scalars):
    values = []
    for low_memory in (False, True):
        network = small_network(low_memory=low_memory, activation=nn.SiLU)
        torch.manual_seed(3)
        features = random_features(network.fiber_in)
        x = points.clone().requires_grad_()
        output = network(features, vectors_of(x), pairs(), scalars)[1]
        (force,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        force.square().sum().backward()
        values.append([p.grad for p in network.parameters() if p.grad is not None] + [x.grad])
    for one, two in zip(*values, strict=True):
        torch.testing.assert_close(one, two)
    assert len(values[0]) > 30


def test_second_derivatives(points, scalars):
    torch.manual_seed(0)
    kernels = KernelOptions(inputs=2, activation=nn.SiLU, radial_hidden=8)
    fiber_in, hidden = {0: 2}, uniform_fiber(2, 2)
    blocks = transformer_blocks(fiber_in, hidden, 1, 1, 1, kernels, SmoothGate)
    blocks.append(AttentionBlock(hidden, {0: 2}, 1, 1, kernels))
    network = SE3Transformer(fiber_in, blocks).double()
    features, index = {0: torch.randn(3, 1, 2, dtype=torch.float64)}, pairs(3)

    def energy(x):
        return network(features, vectors_of(x), index, scalars[:6])[0].sum()

    assert torch.autograd.gradgradcheck(energy, (points[:3].clone().requires_grad_(),))


def test_what_does_not_fit_is_named(points, scalars):
    network = small_network()
    features = random_features(network.fiber_in)
    with pytest.raises(ValueError, match=r"degrees \[0\], not \[0, 1\]"):
        network({0: features[0]}, vectors_of(points), pairs(), scalars)
    with pytest.raises(ValueError, match=r"degree 1 have shape \(7, 3, 1\)"):
        network({0: features[0], 1: features[1][..., :1]}, vectors_of(points), pairs(), scalars)
    with pytest.raises(ValueError, match="3 heads cannot share"):
        AttentionBlock({0: 4}, {0: 8}, 3, 2, KernelOptions())
    with pytest.raises(ValueError, match="both in"):
        AttentionBlock({0: 4}, {1: 8}, 2, 2, KernelOptions())
    mean = SE3Transformer({0: 4}, [ConvolutionBlock({0: 4}, {0: 2}, KernelOptions())])
    scalar, vectors = torch.randn(POINTS, 1, 4), vectors_of(points).float()
    with pytest.raises(ValueError, match="fade out"):
        mean({0: scalar}, vectors, pairs(), envelope=torch.ones(len(vectors)))


# --- attention weights ---------------------------------------------------------------------


def context(centre: list[int], envelope=None) -> EdgeContext:
    index, none = torch.tensor(centre), torch.zeros(len(centre), 0)
    return EdgeContext(index, none, CompiledFrames(np.zeros(0), np.zeros(0)), envelope)


def test_edge_softmax_is_a_softmax_for_each_centre():
    scores = 50 * torch.randn(6, 2, dtype=torch.float64)
    weights = edge_softmax(scores, context([0, 2, 0, 0, 2, 3]), 5)
    torch.testing.assert_close(weights[[0, 2, 3]], torch.softmax(scores[[0, 2, 3]], dim=0))
    torch.testing.assert_close(weights[[1, 4]], torch.softmax(scores[[1, 4]], dim=0))
    torch.testing.assert_close(weights[5], torch.ones(2, dtype=torch.float64))


def test_edges_that_fade_out_do_nothing_and_an_envelope_of_one_changes_nothing():
    scores = torch.tensor([[1.0], [2.0], [900.0], [3.0]], dtype=torch.float64, requires_grad=True)
    envelope = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    weights = edge_softmax(scores, context([0, 0, 0, 1], envelope), 2)
    expected = torch.softmax(scores[:2], dim=0)
    torch.testing.assert_close(weights[:2], expected)
    assert (weights[2:] == 0).all()
    gradients = torch.autograd.grad(weights.square().sum(), [scores, envelope])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][2:] == 0).all()
