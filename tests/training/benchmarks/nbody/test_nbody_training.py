"""Training on N-body dynamics: samples, baselines, a short training, and the table."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import mutants, outcomes

from ase_biasgrad.charged_particles import System, Trajectories, simulate
from ase_biasgrad.training.benchmarks.loop import TrainingOptions, load_network, save_network
from ase_biasgrad.training.benchmarks.nbody import table as nbody_benchmark
from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, NBodyOptions
from ase_biasgrad.training.benchmarks.nbody.training import (
    Task,
    constant_velocity,
    errors,
    linear_regression,
    no_change,
    random_samples,
    samples,
    train_network,
)

TASK = Task(ahead=5, start=None, interval=0.1)
SMALL = NBodyOptions(
    layers=2, channels=4, heads=1, division=2, max_degree=1, odd_paths=False, pair_scalars=True
)


@pytest.fixture(scope="module")
def simulations() -> Trajectories:
    return simulate(System(), 300, seed=5)


def part(data: Trajectories, index: slice) -> Trajectories:
    return Trajectories(*(values[index] for values in vars(data).values()))


def test_samples(simulations):
    of = samples(simulations, TASK)
    assert of.positions.shape == (300 * 44, 5, 3)
    moved = simulations.positions[2, 12] - simulations.positions[2, 7]
    np.testing.assert_allclose(of.displacements[2 * 44 + 7], moved, atol=1e-6)
    assert len(samples(simulations, TASK, per_simulation=4)) == 1200
    one = samples(simulations, Task(10, 30, 0.1))
    np.testing.assert_allclose(
        one.velocity_changes[4],
        simulations.velocities[4, 40] - simulations.velocities[4, 30],
        atol=1e-6,
    )
    shuffled = random_samples(simulations, TASK, np.random.default_rng(0))
    assert len(shuffled) == 300
    with pytest.raises(ValueError, match="asked 60 ahead"):
        samples(simulations, Task(60, None, 0.1))


def test_baselines(simulations):
    of = samples(simulations, TASK)
    zero = errors(no_change, of)
    assert zero.displacement == pytest.approx(float(of.displacements.square().mean()), rel=1e-5)
    assert zero.velocity == pytest.approx(float(of.velocity_changes.square().mean()), rel=1e-5)
    straight = errors(constant_velocity(TASK), of)
    assert straight.displacement < 0.5 * zero.displacement
    assert straight.velocity == zero.velocity
    linear = errors(linear_regression(of), of)
    assert linear.displacement < straight.displacement
    assert linear.velocity < straight.velocity


def test_linear_regression_finds_what_is_linear(simulations):
    of = samples(simulations, TASK, per_simulation=2)
    exact = 0.5 * of.velocities - 0.1 * (5 * of.positions - of.positions.sum(1, keepdim=True))
    of = dataclasses.replace(of, displacements=exact, velocity_changes=2 * exact)
    found = errors(linear_regression(of), of)
    assert max(found.displacement, found.velocity) < 1e-10


@pytest.mark.parametrize("max_degree", [0, 2])
def test_the_network_does_not_mind_place_order_and_direction(simulations, max_degree):
    torch.manual_seed(0)
    network = NBodyNetwork(dataclasses.replace(SMALL, max_degree=max_degree), (0.3, 0.5))
    of = samples(simulations, TASK, per_simulation=1).select(slice(0, 40))
    assert nbody_benchmark.equivariance_error(network, of) < 1e-5
    with torch.no_grad():
        one = network(of.positions, of.velocities, of.charges)
        moved = network(of.positions + 3.0, of.velocities, of.charges)
        order = torch.tensor([3, 0, 4, 1, 2])
        turned = network(of.positions[:, order], of.velocities[:, order], of.charges[:, order])
    for k in range(2):
        torch.testing.assert_close(one[k], moved[k], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(one[k][:, order], turned[k], atol=1e-5, rtol=1e-3)
        assert one[k].std() > 0.01


def test_a_short_training_beats_every_baseline_and_is_reproducible(simulations):
    training, held_out = part(simulations, slice(0, 250)), part(simulations, slice(250, None))
    validation = samples(held_out, TASK, per_simulation=8)
    options = TrainingOptions(epochs=30, batch_size=32, learning_rate=1e-2, ema_decay=0.95)
    lines: list[str] = []
    trained = train_network(SMALL, options, TASK, training, validation, lines.append)
    assert len(lines) == 6
    assert errors(trained.network, validation) == trained.validation
    linear = errors(linear_regression(samples(training, TASK)), validation)
    assert trained.validation[0] < 0.8 * linear.displacement
    assert trained.validation[1] < 0.9 * linear.velocity
    short = dataclasses.replace(options, epochs=2)
    again = [train_network(SMALL, short, TASK, training, validation) for _ in range(2)]
    assert again[0].validation == again[1].validation


def test_files_of_networks(tmp_path, simulations):
    torch.manual_seed(0)
    network = NBodyNetwork(SMALL, (0.3, 0.5)).eval()
    save_network(tmp_path / "n.safetensors", network, {"seed": 3})
    again, training = load_network(tmp_path / "n.safetensors", NBodyNetwork)
    of = samples(simulations, TASK, per_simulation=1)
    assert again.options == SMALL
    assert training == {"seed": 3}
    assert errors(network, of) == errors(again, of)
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(ValueError, match="text: is not a network"):
        load_network(tmp_path / "text", NBodyNetwork)

    def judge(path) -> str:
        loaded = load_network(path, NBodyNetwork)[0].state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in network.state_dict().items())
        return "right"

    path = tmp_path / "n.safetensors"
    assert outcomes(mutants(path.read_bytes(), 200, 0), path, judge)["refused"] > 180


def test_the_shipped_network_has_the_errors_that_its_page_states():
    path = Path(__file__).parents[4] / "examples" / "potentials" / "nbody.safetensors"
    assert path.stat().st_size < 1_000_000
    network, training = load_network(path, NBodyNetwork)
    assert training["options"]["network"] == "se3-transformer, pair scalars"
    found = errors(network, samples(simulate(System(), 100, seed=3), TASK))
    np.testing.assert_allclose(found, training["test"], rtol=0.25)
    np.testing.assert_allclose(training["test"], [0.00253, 0.0498], rtol=0.01)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_trains_as_the_cpu_does(simulations):
    training, held_out = part(simulations, slice(0, 250)), part(simulations, slice(250, None))
    validation = samples(held_out, TASK, per_simulation=8)
    options = TrainingOptions(epochs=2, batch_size=32, learning_rate=1e-2)
    cpu, cuda = (
        train_network(SMALL, options, TASK, training, validation, device=device)
        for device in ("cpu", "cuda")
    )
    assert cuda.network.output_scale.device.type == "cuda"
    assert cuda.validation == pytest.approx(cpu.validation, rel=1e-2)
    of = validation.select(slice(0, 40)).to("cuda")
    assert nbody_benchmark.equivariance_error(cuda.network, of) < 1e-4


def test_without_velocities_the_displacements_alone_count(simulations):
    task = dataclasses.replace(TASK, velocities=False)
    validation = samples(simulations, task, per_simulation=1)
    options = TrainingOptions(epochs=2, batch_size=16, learning_rate=1e-2, ema_decay=0.5)
    training = part(simulations, slice(0, 60))
    trained = train_network(SMALL, options, task, training, validation)
    assert trained.validation == errors(trained.network, validation)[:1]
    with_velocities = train_network(SMALL, options, TASK, training, validation)
    assert trained.validation[0] != with_velocities.validation[0]
