"""The CUDA engine without a GPU: kernels and steps in Triton's interpreter, on CPU tensors.

Not collected by itself: `test_cuda_kernels.py` runs it in a process of its own, since Triton
chooses its interpreter when it is imported.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
import triton_interpreter  # noqa: F401  (before Triton)
from ase import Atoms
from ase.build import molecule
from conftest import copper, ethanol, small_potential, structure_of

from ase_biasgrad.calculators.cpu.engine import CpuEngine
from ase_biasgrad.calculators.cuda import (
    activations,
    geometry,
    painn_kernels,
    schnet_kernels,
)
from ase_biasgrad.calculators.cuda import (
    engine as engine_module,
)
from ase_biasgrad.calculators.cuda.buffers import ALL_COLUMNS, Buffers
from ase_biasgrad.calculators.cuda.engine import CudaEngine
from ase_biasgrad.calculators.cuda.pairs import edge_rows
from ase_biasgrad.calculators.engine import Structure
from ase_biasgrad.calculators.reference_engine import ReferenceEngine
from ase_biasgrad.neighbours import pairs_within
from ase_biasgrad.splines import TAPS, Knots

CPU = torch.device("cpu")
CUTOFF, INTERVALS, MEMBERS, WIDTH = 2.9, 5, 2, 16
ROWS = INTERVALS + TAPS - 1  # coefficients of each filter
GRID = torch.tensor([CUTOFF, CUTOFF / INTERVALS], dtype=torch.float64)


def loaded(structure: Structure, reach: float) -> Buffers:
    """Buffers with candidates up to `reach`, which is more than the cutoff."""
    s = structure
    rows = edge_rows(pairs_within(s.positions, s.cell, s.pbc, reach), s.numbers)
    buffers = Buffers(len(s.numbers), 1, 512, MEMBERS, ALL_COLUMNS, CPU)
    buffers.load_edges(rows)
    buffers.load_positions([s])
    return buffers


class Graph:
    """Edges of a copper cell: from the kernel, and in the order of the kernel as plain tensors."""

    def __init__(self) -> None:
        self.structure = structure_of(copper())
        self.edges = geometry.within_cutoff(loaded(self.structure, 3.6), GRID, INTERVALS)
        rows = [
            torch.arange(first, first + count)
            for first, count in zip(self.edges.first[:-1], self.edges.count, strict=True)
        ]
        self.which = torch.cat(rows)  # places of the edges in the arrays of the kernels
        self.i = torch.repeat_interleave(torch.arange(len(rows)), self.edges.count)
        self.j = self.edges.neighbour[self.which].long()
        self.vectors = self.edges.vectors[:, self.which].T  # (e, 3)
        self.d = self.vectors.norm(dim=1)
        self.u = self.vectors / self.d[:, None]
        ends = [
            (int(i), int(j), *np.round(v, 9) + 0.0)
            for i, j, v in zip(self.i, self.j, self.vectors.numpy(), strict=True)
        ]
        place = {end: k for k, end in enumerate(ends)}
        self.mirror = torch.tensor([place[j, i, *(0.0 - np.array(v))] for i, j, *v in ends])

    def __len__(self) -> int:
        return len(self.edges.count)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filter_values(table: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Splines `(members, rows, width)` at distances: `(members, e, width)`, differentiable."""
    first, weights = Knots(CUTOFF, INTERVALS + 1).weights(d)
    coefficients = table.double()[:, first[:, None] + torch.arange(TAPS)]  # (members, e, 6, width)
    return torch.einsum("et,metf->mef", weights, coefficients)


def gathered(values: torch.Tensor, graph: Graph) -> torch.Tensor:
    """Sum of `(members, e, …)` over the edges of each centre."""
    return values.new_zeros(MEMBERS, len(graph), *values.shape[2:]).index_add(1, graph.i, values)


def assert_close(value: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 1e-3
    assert float((value.double() - expected.double()).abs().max()) < 3e-6 * max(scale, 1.0)


# --- geometry ------------------------------------------------------------------------------


def test_edges_within_the_cutoff_are_those_of_a_search(graph):
    s = graph.structure
    expected = pairs_within(s.positions, s.cell, s.pbc, CUTOFF)
    vectors = expected.vectors(s.positions, s.cell)
    assert len(graph.which) == len(expected)
    ours = sorted(zip(graph.i.tolist(), graph.j.tolist(), graph.vectors.tolist(), strict=True))
    theirs = sorted(
        zip(expected.centre.tolist(), expected.neighbour.tolist(), vectors.tolist(), strict=True)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine[:2] == other[:2]
        np.testing.assert_allclose(mine[2], other[2], atol=1e-12)
    np.testing.assert_allclose(graph.edges.units[:, graph.which].T, graph.u, atol=1e-7)
    on_grid = graph.edges.interval[graph.which] + graph.edges.place[graph.which].double()
    np.testing.assert_allclose(on_grid * GRID[1], graph.d, atol=1e-6)
    assert graph.edges.interval[graph.which].max() == INTERVALS - 1


def test_an_edge_at_the_cutoff_is_outside_and_one_before_it_is_inside():
    for length, inside in ((CUTOFF, 0), (np.nextafter(CUTOFF, 0), 1)):
        pair = structure_of(Atoms("H2", [[0, 0, 0], [length, 0, 0]]))
        edges = geometry.within_cutoff(loaded(pair, 3.6), GRID, INTERVALS)
        assert edges.count.tolist() == [inside, inside]


def test_forces_and_virials_are_derivatives(graph):
    """E = Σ f(d) + Σ g·u over edges and mirrors, with random slopes."""
    slope, turn = random(MEMBERS, len(graph.d)), random(MEMBERS, len(graph.d), 3, seed=1)
    slope = (slope + slope[:, graph.mirror]).double()  # of an edge's pair
    turn = (turn - turn[:, graph.mirror]).double()
    s, capacity = graph.structure, len(graph.edges.place)
    base = torch.from_numpy(s.positions)
    shift = graph.vectors - (base[graph.j] - base[graph.i])
    for turning in (False, True):
        for m in range(MEMBERS):
            positions = base.clone().requires_grad_()
            strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
            vectors = positions[graph.j] - positions[graph.i] + shift
            vectors = vectors + vectors @ strain
            d = vectors.norm(dim=1)
            energy = (slope[m] * d).sum() / 2  # each pair twice
            if turning:
                energy = energy + (turn[m] * vectors / d[:, None]).sum() / 2
            gradient, virial = torch.autograd.grad(energy, [positions, strain])
            slopes = torch.zeros(MEMBERS, capacity, dtype=torch.float64)
            turns = torch.zeros(MEMBERS, 3, capacity, dtype=torch.float64)
            slopes[:, graph.which] = slope * GRID[1]
            turns[:, :, graph.which] = turn.transpose(1, 2)
            result = torch.zeros(MEMBERS, len(graph), ALL_COLUMNS, dtype=torch.float64)
            if turning:
                geometry.directed_forces(graph.edges, slopes, turns, GRID, result)
            else:
                geometry.radial_forces(graph.edges, slopes, GRID, result)
            np.testing.assert_allclose(result[m, :, 1:4], -gradient, atol=1e-12)
            ours = result[m, :, 4:].sum(0).view(3, 3)
            np.testing.assert_allclose(ours, virial.T, atol=1e-12)
            assert gradient.abs().max() > 0.1


# --- activations ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shifted_softplus", "silu"])
def test_activations_and_their_slopes(name):
    rows, bias = 20 * random(MEMBERS, 7, WIDTH), random(MEMBERS, WIDTH, seed=1)
    exact = (rows.double() + bias.double()[:, None]).requires_grad_()
    expected = (
        torch.nn.functional.silu(exact)
        if name == "silu"
        else torch.nn.functional.softplus(exact, threshold=50) - np.log(2)
    )
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    value, slopes = getattr(activations, name)(rows.clone(), bias)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6, atol=3e-7)
    np.testing.assert_allclose(slopes, slope, rtol=1e-6, atol=1e-6)


# --- SchNet --------------------------------------------------------------------------------


def test_convolution_and_its_derivatives(graph):
    y, gradient = random(MEMBERS, len(graph), WIDTH), random(MEMBERS, len(graph), WIDTH, seed=1)
    # as in the engine, one layer of several
    table = random(MEMBERS, 2, ROWS, WIDTH, seed=2)[:, 1]
    exact, d = y.double().requires_grad_(), graph.d.clone().requires_grad_()
    messages = gathered(filter_values(table, d) * exact[:, graph.j], graph)
    assert_close(schnet_kernels.convolve(y, table, graph.edges), messages.detach())
    of_y, _ = torch.autograd.grad((messages * gradient).sum(), [exact, d], retain_graph=True)
    slopes = torch.zeros(MEMBERS, len(graph.edges.place), dtype=torch.float64)
    ours = schnet_kernels.convolve_backward(y, gradient, table, graph.edges, slopes)
    assert_close(ours, of_y)
    schnet_kernels.radial_slopes(y, gradient, table, graph.edges, slopes)  # adds the same again
    for m in range(MEMBERS):
        (of_d,) = torch.autograd.grad((messages * gradient)[m].sum(), d, retain_graph=True)
        assert_close(slopes[m, graph.which] / GRID[1] / 2, of_d + of_d[graph.mirror])


# --- PaiNN ---------------------------------------------------------------------------------


def sent(q, x, mu, table, d, u, graph):
    """Messages as in the paper; μ `(members, n, 3, width)`."""
    w1, w2, w3 = filter_values(table, d).chunk(3, dim=2)
    x1, x2, x3 = x[:, graph.j].chunk(3, dim=2)
    radial = (w2 * x2)[:, :, None] * u[None, :, :, None]
    carried = (w3 * x3)[:, :, None] * mu[:, graph.j]
    return q + gathered(w1 * x1, graph), mu + gathered(radial + carried, graph)


@pytest.mark.parametrize("first", [True, False])
def test_messages_and_their_derivatives(graph, first):
    n, capacity = len(graph), len(graph.edges.place)
    q, x = random(MEMBERS, n, WIDTH), random(MEMBERS, n, 3 * WIDTH, seed=1)
    mu = random(MEMBERS, 3 * n, WIDTH, seed=2) * (0.0 if first else 1.0)
    gq, gmu = random(MEMBERS, n, WIDTH, seed=3), random(MEMBERS, 3 * n, WIDTH, seed=4)
    table = random(MEMBERS, 2, ROWS, 3 * WIDTH, seed=5)[:, 1]
    exact = [t.double().requires_grad_() for t in (q, x, mu)]
    d, u = graph.d.clone().requires_grad_(), graph.u.clone().requires_grad_()
    q_out, mu_out = sent(
        exact[0], exact[1], exact[2].view(MEMBERS, n, 3, WIDTH), table, d, u, graph
    )
    mu_out = mu_out.view(MEMBERS, 3 * n, WIDTH)
    slopes = torch.zeros(MEMBERS, capacity, dtype=torch.float64)
    turns = torch.zeros(MEMBERS, 3, capacity, dtype=torch.float64)
    scalars = q.clone()
    energies = ((q_out * gq).sum((1, 2)) + (mu_out * gmu).sum((1, 2))).unbind()
    if first:
        vectors = painn_kernels.send_first(scalars, x, table, graph.edges)
        painn_kernels.send_first_backward(x, gq, gmu, table, graph.edges, slopes, turns)
    else:
        vectors = painn_kernels.send(scalars, x, mu, table, graph.edges)
        of = painn_kernels.send_backward(x, mu, gq, gmu, table, graph.edges, slopes, turns)
        expected = torch.autograd.grad(sum(energies), exact[1:], retain_graph=True)
        for value, gradient in zip(of, expected, strict=True):
            assert_close(value, gradient)
    assert_close(scalars, q_out.detach())
    assert_close(vectors, mu_out.detach())
    for m in range(MEMBERS):
        of_d, of_u = torch.autograd.grad(energies[m], [d, u], retain_graph=True)
        assert_close(slopes[m, graph.which] / GRID[1], of_d + of_d[graph.mirror])
        assert_close(turns[m][:, graph.which].T, of_u - of_u[graph.mirror])


def test_mixing_and_its_derivatives():
    n, epsilon = 5, 1e-8
    q, mu = random(MEMBERS, n, WIDTH), random(MEMBERS, 3 * n, WIDTH, seed=1)
    a, vw = random(MEMBERS, n, 3 * WIDTH, seed=2), random(MEMBERS, 3 * n, 2 * WIDTH, seed=3)
    gq, gmu = random(MEMBERS, n, WIDTH, seed=4), random(MEMBERS, 3 * n, WIDTH, seed=5)
    gjoint = random(MEMBERS, n, 2 * WIDTH, seed=6)
    of_q, of_mu, of_a, of_vw = exact = [t.double().requires_grad_() for t in (q, mu, a, vw)]
    v, w = of_vw.view(MEMBERS, n, 3, 2 * WIDTH).chunk(2, dim=3)
    expected_joint = torch.cat([of_q, (v.square().sum(2) + epsilon).sqrt()], dim=2)
    expected_products = (v * w).sum(2)
    a1, a2, a3 = of_a.chunk(3, dim=2)
    q_out = of_q + a1 + a2 * expected_products
    mu_out = of_mu + (a3[:, :, None] * w).reshape(MEMBERS, 3 * n, WIDTH)

    joint, products = painn_kernels.norms_and_products(q, vw, epsilon)
    assert_close(joint, expected_joint.detach())
    assert_close(products, expected_products.detach())
    ga = painn_kernels.mixing_gradients(gq, gmu, vw, products)
    scalars = q.clone()
    assert_close(painn_kernels.mix(scalars, mu, a, vw, products), mu_out.detach())
    assert_close(scalars, q_out.detach())
    energy = (q_out * gq).sum() + (mu_out * gmu).sum() + (expected_joint * gjoint).sum()
    gradients = torch.autograd.grad(energy, exact)
    through_q = gq.clone()
    gvw = painn_kernels.vector_gradients(through_q, gmu, gjoint, a, vw, epsilon)
    assert_close(through_q, gradients[0])
    assert_close(ga, gradients[2])
    assert_close(gvw, gradients[3])


# --- whole steps ---------------------------------------------------------------------------


def backbones(name: str, members: int = 2, **arguments):
    return [small_potential(name, seed, **arguments).backbone for seed in range(members)]


def assert_same(ours, expected, tolerance: float) -> None:
    for name in ("energies", "forces", "strain_gradient"):
        scale = max(1.0, np.abs(getattr(expected, name)).max())
        error = np.abs(getattr(ours, name) - getattr(expected, name)).max()
        assert error < tolerance * scale, name


@pytest.mark.parametrize("name", ["schnet", "painn"])
@pytest.mark.parametrize("make", [ethanol, copper])
def test_a_committee_is_that_of_the_other_engines(name, make):
    structure = structure_of(make())
    ours = CudaEngine(backbones(name), CPU, 0.3).evaluate(structure, True)
    reference = ReferenceEngine(backbones(name), CPU, torch.float64, 0.3)
    expected = reference.evaluate(structure, True)
    assert ours.forces.shape == (2, len(structure.numbers), 3)
    assert np.abs(expected.forces).max() > 1e-2
    assert_same(ours, expected, 1e-5)
    assert_same(ours, CpuEngine(backbones(name), 0.3).evaluate(structure, True), 1e-5)


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_widths_between_powers_of_two_and_readouts_of_any_depth(name):
    structure = structure_of(molecule("H2O"))
    for more in ({"features": 20}, {"interactions": 1}):
        ours = CudaEngine(backbones(name, 1, **more), CPU, 0.3)
        expected = ReferenceEngine(backbones(name, 1, **more), CPU, torch.float64, 0.3)
        assert_same(ours.evaluate(structure, True), expected.evaluate(structure, True), 1e-5)


def test_energies_alone():
    structure, engine = structure_of(molecule("H2O")), CudaEngine(backbones("painn"), CPU, 0.3)
    alone = engine.evaluate(structure, False)
    assert alone.forces is None
    np.testing.assert_array_equal(alone.energies, engine.evaluate(structure, True).energies)


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_many_structures_at_once(name, monkeypatch):
    monkeypatch.setattr(engine_module, "FEWEST_ATOMS", 16)
    atoms = (molecule("H2O"), copper(), Atoms("O"), molecule("CO2"))
    structures = [structure_of(a) for a in atoms]
    engine = CudaEngine(backbones(name, cutoff=3.0), CPU, 0.3)
    results = engine.evaluate_many(structures)
    assert [shape[0] for shape in engine.recordings._of] == [16]  # five more than there are
    for s, ours in zip(structures, results, strict=True):
        assert ours.energies.shape == (2, len(s.numbers))
        assert_same(ours, engine.fresh().evaluate(s, True), 3e-6)


def test_a_shape_is_recorded_once_and_its_memory_used_again():
    """Moves atoms so far that the list is searched anew, with other numbers of edges."""
    engine, cpu = (
        CudaEngine(backbones("schnet", 1), CPU, 0.2),
        CpuEngine(backbones("schnet", 1), 0.2),
    )
    engine.recordings._capture = lambda run: run
    structure, random = structure_of(copper()), np.random.default_rng(0)
    for step in range(5):
        moved = structure.positions + random.normal(0, 0.1, structure.positions.shape)
        s = Structure(structure.numbers, moved, structure.cell * (1 + 0.01 * step), structure.pbc)
        assert_same(engine.evaluate(s, True), cpu.evaluate(s, True), 1e-5)
    assert engine.list.list.searches > 2
    assert engine.recordings.captures == 1
    assert len(engine.recordings._of) == 1


def test_copies_and_pickles_have_no_graphs():
    structure = structure_of(molecule("H2O"))
    engine = CudaEngine(backbones("schnet", 1), CPU, 0.3)
    engine.recordings._capture = lambda run: run
    expected = engine.evaluate(structure, True)
    engine.evaluate(structure, True)
    for other in (engine.fresh(), pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine)):
        assert other.recordings.captures == 0
        assert other.list.list.skin == 0.3
        assert_same(other.evaluate(structure, True), expected, 1e-6)
    engine.reset()
    assert engine.recordings.captures == 0
