"""A force stage that fits itself to a time: rates, end, forecast, and going on after a kill."""

import csv
from itertools import count

import numpy as np
import pytest
from helpers import biasgrad, options, write_clusters

from ase_biasgrad.training.config import ForceStageOptions, config_from, load_config
from ase_biasgrad.training.lightning import time_schedule
from ase_biasgrad.training.lightning.state_files import read_state
from ase_biasgrad.training.lightning.time_schedule import TimeSchedule, forecast
from ase_biasgrad.training.run import resume, train


def rows(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def seconds(monkeypatch):
    """A clock on which each look takes a second."""
    ticks = count(1000)
    monkeypatch.setattr(time_schedule, "monotonic", lambda: float(next(ticks)))
    return ticks


def schedule_at(monkeypatch, done: float, **given) -> TimeSchedule:
    schedule = TimeSchedule(ForceStageOptions(max_minutes=10, **given), tell=False)
    monkeypatch.setattr(time_schedule, "monotonic", lambda: 100.0)
    schedule._begin = 100.0 - 600 * done
    return schedule


@pytest.mark.parametrize(
    ("done", "step", "expected"),
    [
        (0.0, 0, 1 / 500),
        (0.01, 99, 0.2),  # a fifth of the warm-up, by steps and by time
        (0.025, 9, 0.5 * 0.9985),  # slow steps: the warm-up ends with a twentieth of the time
        (0.5, 500, 0.5),
        (1.0, 9000, 0.0),
        (7.0, 9000, 0.0),
    ],
)
def test_the_rate_follows_the_clock(monkeypatch, done, step, expected):
    schedule = schedule_at(monkeypatch, done, schedule={"minimum": 0.0})
    assert schedule.rate(step) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_the_force_stage_ends_with_the_time_and_the_cosine_with_it(tmp_path, seconds):
    path = write_clusters(tmp_path / "x.h5")
    given = options(path, max_minutes=2, validate_every=7, epochs=1)
    result = train(config_from(given), tmp_path / "run")
    table = rows(tmp_path / "run")
    assert len(table) > 3  # epochs do not count
    rates = [float(row["learning_rate"]) for row in table]
    assert rates[0] == max(rates) > 4e-3
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-4
    assert table[-1]["val_force_mae"]  # the last epoch is validated
    assert result.out_of_time_after is None
    # there is no time left: going on finishes the run as it is
    again = resume(tmp_path / "run")
    assert len(rows(tmp_path / "run")) == len(table)
    assert again.after_bias.forces.mae == pytest.approx(result.after_bias.forces.mae, rel=1e-6)


def test_an_epoch_longer_than_the_time_ends_in_its_midst(tmp_path, seconds):
    path = write_clusters(tmp_path / "x.h5")
    result = train(config_from(options(path, max_minutes=0.2, batch_size=1)), tmp_path / "run")
    (row,) = rows(tmp_path / "run")
    assert 0 < int(row["step"]) < 12
    assert row["val_force_mae"]
    assert result.checkpoint.exists()


def test_a_run_that_was_killed_goes_on_with_its_clock(tmp_path, seconds, monkeypatch):
    path = write_clusters(tmp_path / "x.h5")
    config = config_from(options(path, max_minutes=2))
    at = {"end": 60.0}
    whole = TimeSchedule.on_train_batch_end

    def killed(self, *arguments):
        whole(self, *arguments)
        if self.elapsed > at["end"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(TimeSchedule, "on_train_batch_end", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    before = rows(tmp_path / "run")
    state = read_state(tmp_path / "run" / "states" / "last.ckpt")
    used = state["callbacks"]["TimeSchedule"]["elapsed"]
    assert 20 < used <= 62
    at["end"] = np.inf
    resume(tmp_path / "run")
    after = rows(tmp_path / "run")
    rates = [float(row["learning_rate"]) for row in after]
    assert rates == sorted(rates, reverse=True)  # no second warm-up, no jump
    assert rates[len(before)] < rates[len(before) - 1] < 2.5 * rates[len(before)]
    assert rates[-1] < 1e-4
    train(config, tmp_path / "whole")
    assert len(after) == pytest.approx(len(rows(tmp_path / "whole")), abs=1)


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_other_schedules_end_with_the_time(tmp_path, seconds, name):
    path = write_clusters(tmp_path / "x.h5")
    given = options(path, max_minutes=0.5, schedule={"name": name, "warmup_steps": 2})
    train(config_from(given), tmp_path / "run")
    rates = {float(row["learning_rate"]) for row in rows(tmp_path / "run")}
    assert rates == {5e-3}


def law(done: np.ndarray, p: float, q: float) -> np.ndarray:
    """Errors that end at 7."""
    summed = done + np.sin(np.pi * done) / np.pi
    return 7.0 * summed**-p * np.exp(q * (0.5 * (1 + np.cos(np.pi * done))))


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.3, 0.8), (0.8, 0.3)])
def test_the_forecast_finds_the_end_of_a_curve_the_better_the_later(p, q):
    done = np.linspace(0.01, 1, 100)
    errors = law(done, p, q)
    off = [abs(np.log(forecast(done[:k], errors[:k]) / 7)) for k in (30, 50, 80, 100)]
    assert off[0] < 0.4
    assert off[1] < 0.25
    assert off[2] < 0.06
    assert off[3] < 0.02


def test_the_forecast_has_the_unit_of_the_errors_and_bears_noise():
    done = np.linspace(0.01, 0.6, 60)
    noisy = law(done, 0.5, 0.5) * np.exp(np.random.default_rng(0).normal(0, 0.03, 60))
    found = forecast(done, noisy)
    assert found == pytest.approx(7, rel=0.1)
    assert forecast(done, 1000 * noisy) == pytest.approx(1000 * found)
    assert forecast(done[:20], noisy[:20]) is None  # too early to tell


def test_lines_tell_the_time_left_and_the_error_at_the_end(tmp_path, capsys):
    path = write_clusters(tmp_path / "x.h5")
    given = options(path, max_minutes=0.05)
    given["trainer"] = {"accelerator": "cpu"}
    train(config_from(given), tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "minutes left" in line]
    assert 1 < len(lines) <= 20
    assert "of 0.05 minutes left, epoch " in lines[0]
    assert "validation force MAE" in lines[0]
    told, last = float(lines[-1].split()[-1]), float(rows(tmp_path / "run")[-1]["val_force_mae"])
    assert told == pytest.approx(1000 * last, rel=0.3)


def test_minutes_on_the_command_line(tmp_path):
    write_clusters(tmp_path / "x.h5")
    (tmp_path / "c.yaml").write_text(
        "data: {path: x.h5, train: 40, validation: 10}\ntrainer: {accelerator: cpu}\n"
        "backbone: {name: schnet, features: 16, interactions: 1, cutoff: 4.0}\n"
    )
    biasgrad(tmp_path, "train", "c.yaml", "-o", "run", "--minutes", "0.03")
    assert load_config(tmp_path / "run" / "config.yaml").force_stage.max_minutes == 0.03
    said = biasgrad(tmp_path, "train", "c.yaml", "-o", "other", "--minutes", "0", code=1)
    assert "force_stage.max_minutes" in said
