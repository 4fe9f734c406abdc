"""The tools that drivers share: descent by the clock, and fits from small to large."""

import numpy as np
import pytest
import torch

from ase_biasgrad.training.benchmarks.peers import descent, ladder


class Clock:
    """A job whose time goes by one second with each look."""

    def __init__(self, seconds: float, frames: int = 8, least_epochs: int = 10) -> None:
        self.seconds, self.now = seconds, 0.0
        self.train, self.seed, self.least_epochs = range(frames), 0, least_epochs

    def left(self) -> float:
        self.now += 1.0
        return self.seconds - self.now


def learner(errors: list[float] | None = None) -> descent.Learner:
    """A line through points on y = 2 x."""
    network = torch.nn.Linear(1, 1, bias=False)
    points = torch.linspace(-1, 1, 8)[:, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)

    def loss(places: np.ndarray) -> torch.Tensor:
        return (network(points[places]) - 2 * points[places]).square().mean()

    def validate() -> float:
        error = float((network.weight - 2).abs())
        if errors is not None:
            errors.append(error)
        return error

    return descent.Learner(network, optimizer, loss, validate)


def test_descent_ends_with_the_time_and_keeps_the_best_average():
    errors: list[float] = []
    network, told = descent.train(
        Clock(400), ["one"], lambda _: learner(errors), descent.Options(2, ema_decay=0.9)
    )
    assert told["validation_force_mae"] == min(errors) < 0.02
    assert abs(float(network.weight) - 2) == pytest.approx(min(errors), abs=1e-6)
    assert told["size"] == "one"
    assert 60 < told["steps"] < 200  # two looks at the clock a step, and some for each epoch
    assert told["epochs"] == pytest.approx(told["steps"] * 2 / 8)


def test_the_rate_falls_to_nothing_and_gradients_are_scaled_down(monkeypatch):
    heights, largest = [], []
    own = descent._step

    def watched(of, places, height, limit):
        heights.append(height)
        largest.append(limit)
        own(of, places, height, limit)

    monkeypatch.setattr(descent, "_step", watched)
    options = descent.Options(4, largest_gradient=3.0, warmup_steps=5)
    descent.train(Clock(300), ["one"], lambda _: learner(), options)
    assert heights[0] < heights[3] < 1.0  # warm-up
    assert max(heights) > 0.9
    assert heights[-1] < 0.01
    assert set(largest) == {3.0}


def test_the_largest_network_whose_epochs_fit_is_taken(monkeypatch):
    seconds = {"large": 10.0, "middle": 1.0, "small": 0.1}
    made: list[str] = []

    def make(size: str) -> descent.Learner:
        made.append(size)
        return learner()

    monkeypatch.setattr(descent, "_step_seconds", lambda *_: seconds[made[-1]])
    # 4 steps an epoch and 10 epochs: 400 s, 40 s and 4 s
    for time, expected in ((1000, "large"), (100, "middle"), (20, "small")):
        made.clear()
        _, told = descent.train(Clock(time), list(seconds), make, descent.Options(2))
        assert told["size"] == expected


def test_timing_leaves_the_network_as_it_was():
    one = learner()
    before = float(one.network.weight)
    descent._step_seconds(one, descent.Options(2))
    assert float(one.network.weight) == before
    descent._step(one, np.arange(2), 1.0, np.inf)
    assert abs(float(one.network.weight) - before) == pytest.approx(0.1, rel=1e-3)


def test_a_training_that_diverges_or_has_no_time_says_so():
    broken = learner()
    never = descent.Learner(broken.network, broken.optimizer, broken.loss, lambda: float("nan"))
    with pytest.raises(RuntimeError, match="diverged"):
        descent.train(Clock(100), ["one"], lambda _: never, descent.Options(2))
    with pytest.raises(RuntimeError, match="no time was left"):
        descent.train(Clock(3), ["one"], lambda _: learner(), descent.Options(2))


def test_a_ladder_ends_before_a_fit_that_would_be_late():
    clock = Clock(200.0)
    fitted: list[int] = []

    def fit(size: int) -> int:
        clock.now += size**2  # seconds
        fitted.append(size)
        return size

    errors = {1: 3.0, 2: 1.0, 4: 2.0, 8: 1.5}
    steps = ladder.Ladder(clock, fit, errors.__getitem__, lambda size: size**2)
    steps.climb([1, 2, 4, 8, 16])
    assert fitted == [1, 2, 4, 8]  # 16 would take 256 s
    assert (steps.size, steps.best) == (2, 2)
    told = steps.told()
    assert told["validation_force_mae"] == 1.0
    assert [of["size"] for of in told["tried"]] == fitted


def test_a_ladder_without_a_finite_error_says_so():
    steps = ladder.Ladder(Clock(10.0), lambda size: size, lambda _: float("nan"), float)
    steps.climb([1])
    with pytest.raises(RuntimeError, match="no fit has a finite error"):
        steps.told()
