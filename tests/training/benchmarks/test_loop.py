"""The training loop of the benchmarks: it learns, stops, and goes on after a kill as if without."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from ase_biasgrad.dense import Linear, NormOrder, Output, Sequential, Tanh
from ase_biasgrad.machine import torch_device
from ase_biasgrad.training.benchmarks import loop
from ase_biasgrad.training.benchmarks.loop import TorchLearner, TrainingOptions, train, train_once
from ase_biasgrad.training.benchmarks.qm7.dense_stage import predict_dense, train_dense


def line_fit(validated=True, stop_after=None, state=None, device="cpu", **options):
    """Fit y = 3 x − 1 by the loop; what was reported, too."""
    x = torch.linspace(-1, 1, 64, device=device)[:, None]
    y, lines = 3 * x - 1, []
    how = TrainingOptions(batch_size=16, learning_rate=0.05, ema_decay=0.9, **options)
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 1)

    def report(line):
        lines.append(line)
        if len(lines) == stop_after:
            raise KeyboardInterrupt

    def error(network):
        return (float((network(x) - y).detach().abs().mean()),)

    learner = TorchLearner(
        network,
        lambda network, places: (network(x[places]) - y[places]).square().mean(),
        how,
        device,
    )
    trained = train(
        learner,
        how,
        4,
        lambda random: torch.from_numpy(random.permutation(64)).split(16),
        error if validated else None,
        report,
        every=5,
        state=state,
    )
    return trained, lines


def test_it_learns_is_seeded_and_keeps_the_best():
    trained, lines = line_fit(epochs=52)
    assert trained.network.weight.item() == pytest.approx(3, abs=0.02)
    assert trained.network.bias.item() == pytest.approx(-1, abs=0.02)
    assert (len(lines), trained.steps) == (11, 208)  # every fifth epoch, and the last one
    errors = [float(line.split("validation ")[1].split(",")[0]) for line in lines]
    assert trained.validation[0] == pytest.approx(min(errors), abs=1e-5)
    assert trained.best_epoch == [*range(5, 55, 5), 52][int(np.argmin(errors))]
    assert line_fit(epochs=52)[0].validation == trained.validation
    assert line_fit(epochs=52, seed=1)[0].validation != trained.validation
    last = line_fit(epochs=52, validated=False)[0]
    assert (last.validation, last.best_epoch) == ((), 0)
    assert last.network.weight.item() == pytest.approx(3, abs=0.02)


def test_the_rate_rises_and_falls_with_the_share_of_the_budget():
    learner = TorchLearner(
        torch.nn.Linear(1, 1),
        lambda network, x: network(x).sum(),
        TrainingOptions(learning_rate=2.0, warmup=0.2),
    )
    rates = []
    for used in (0.0, 0.1, 0.2, 0.6, 1.0):
        learner.step(torch.ones(1, 1), 0, used)
        rates.append(learner.adam.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-12)


def test_budgets_in_processor_time_end_the_loop():
    trained, lines = line_fit(epochs=10**6, minutes=0.002)
    assert 1 <= len(lines) < 10**4
    assert 0 < trained.cpu_seconds < 5
    assert np.isfinite(trained.validation[0])
    assert line_fit(epochs=3, minutes=1e-9)[0].steps == 1


def test_an_interrupted_training_comes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole, lines = line_fit(epochs=52)
    state = tmp_path / "deep" / "x.state"
    with pytest.raises(KeyboardInterrupt):
        line_fit(epochs=52, state=state, stop_after=7)
    resumed, later = line_fit(epochs=52, state=state)
    without_times = [line.rsplit(",", 1)[0] for line in lines[6:]]
    assert [line.rsplit(",", 1)[0] for line in later] == without_times
    assert (resumed.validation, resumed.best_epoch) == (whole.validation, whole.best_epoch)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value)
    assert resumed.steps == whole.steps
    with pytest.raises(ValueError, match="state of another training; delete it"):
        line_fit(epochs=53, state=state)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as a training state"):
        line_fit(epochs=52, state=state)


def dense_fit(state=None, report=lambda line: None, average=True, **options):
    """A network with random orders in it, so that the orders drawn count, too."""
    random = np.random.default_rng(0)
    matrices = random.normal(size=(50, 3, 3))
    matrices += matrices.transpose(0, 2, 1)
    energies = matrices.sum(axis=(1, 2))
    layers = [Linear(6, 8, random), Tanh(), Linear(8, 1, random), Output(energies)]
    network = Sequential([NormOrder(0.5), *layers])
    how = TrainingOptions(batch_size=10, learning_rate=0.5, **options)
    return train_dense(
        network, matrices, energies, how, average=average, report=report, state=state
    )


@pytest.mark.parametrize("average", [True, False])
def test_the_dense_network_goes_on_to_the_same_weights(tmp_path, monkeypatch, average):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    whole = dense_fit(epochs=6, average=average)
    state = tmp_path / "x.state"
    original = loop._write_state

    def killed(path, done, *rest):
        original(path, done, *rest)
        if done.steps == 3000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_write_state", killed)
        with pytest.raises(KeyboardInterrupt):
            dense_fit(state, epochs=6, average=average)
    resumed = dense_fit(state, epochs=6, average=average)
    assert (resumed.steps, whole.steps) == (6000, 6000)
    for k in (1, 3):
        np.testing.assert_array_equal(resumed.network.modules[k].W, whole.network.modules[k].W)
    assert np.ptp(predict_dense(whole.network, np.ones((2, 3, 3)) * [[[1]], [[2]]])) > 0


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_loop import line_fit
from ase_biasgrad.training.benchmarks import loop
loop.SAVE_EVERY = 0.0
line_fit(epochs=10**7, state=Path(sys.argv[1]))
"""


def test_a_killed_process_leaves_a_whole_state(tmp_path):
    state, here = tmp_path / "x.state", [os.path.dirname(__file__), *sys.path]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, state, *filter(None, here)])
    try:
        for _ in range(600):
            if state.exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    saved = torch.load(state, weights_only=True)
    assert saved["progress"]["steps"] % 4 == 0
    assert saved["options"]["epochs"] == 10**7


def test_a_file_is_made_once_and_its_state_goes(tmp_path):
    made = []

    def train(state):
        made.append(state)
        state.write_text("state")
        return "network"

    def once():
        return train_once(tmp_path / "new" / "n.txt", train, type(tmp_path).write_text, load)

    def load(path):
        return path.read_text()

    assert [once(), once()] == ["network", "network"]
    assert made == [tmp_path / "new" / "n.state"]
    assert not made[0].exists()
    assert train_once(None, lambda state: state, None, load) is None


def test_it_says_when_it_diverges():
    how, x = TrainingOptions(epochs=3), torch.full((4, 1), 1e30)
    learner = TorchLearner(torch.nn.Linear(1, 1), lambda network, k: network(x).square().sum(), how)
    with pytest.raises(RuntimeError, match=r"diverged before step 4; lower the learning rate"):
        train(learner, how, 4, lambda random: range(4))


def test_devices_have_names():
    assert torch_device("cpu").type == "cpu"
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"no device 'tpu' here; choose of auto, cpu"):
        torch_device("tpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_training_on_cuda_comes_to_the_same_line(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        line_fit(epochs=52, device="cuda", state=tmp_path / "x.state", stop_after=7)
    trained, _ = line_fit(epochs=52, device="cuda", state=tmp_path / "x.state")
    assert trained.network.weight.device.type == "cuda"
    expected = line_fit(epochs=52)[0].network.weight.item()
    assert trained.network.weight.item() == pytest.approx(expected, abs=1e-4)
