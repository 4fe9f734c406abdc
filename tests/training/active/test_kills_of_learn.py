"""`biasgrad learn` that is killed at random moments: real processes, real SIGKILL."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import test_kills
import torch
from helpers import biasgrad
from inline import Inline
from kills import killed, length
from test_kills import bytes_of, check_whole

from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.training.active.folder import read_structures

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() > 0, reason="torch cannot differentiate after a fork beside CUDA"
)
LINE = [
    *("learn", "CH3CH2OH", "-o", "out", "--calculator", "emt", "--budget", "14"),
    *("--initial", "10", "--per-round", "2", "--members", "2", "--steps", "20"),
    *("--trajectories", "1", "--limit", "0.01", "--training-steps", "4", "--final-steps", "4"),
    *("--option", "backbone.name=schnet", "--option", "backbone.features=8"),
    *("--option", "backbone.interactions=1", "--option", "backbone.cutoff=4.0"),
    *("--option", "trainer.accelerator=cpu"),
]


def line(folder) -> list[str]:
    """Arguments of the next command."""
    begun = (folder / "out" / "learn.json").exists()
    return ["learn", "--resume", "out"] if begun else LINE


def labels(folder) -> set[tuple[int, int]]:
    """Rounds and places of the structures that have a label."""
    path = folder / "out" / "data.h5"
    if not path.exists():
        return set()
    return {(int(f.labels["round"]), int(f.labels["place"])) for f in Dataset(path)}


def result(folder):
    tensors = load_checkpoint(folder / "out" / "potential.safetensors").potential.state_dict()
    with Dataset(folder / "out" / "data.h5") as dataset:
        return dataset.hash(), bytes_of(tensors)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_kills_lose_no_label_and_change_nothing(tmp_path, monkeypatch, kills):
    command = import_module("ase_biasgrad.cli.learn")
    monkeypatch.setattr(command, "_executor", lambda *_: Inline)  # in the process that is killed
    # trajectories are structures without forces here
    monkeypatch.setattr(test_kills, "whole_frames", lambda path: len(read_structures(path)))
    random = np.random.default_rng(kills)
    (tmp_path / "right").mkdir()
    accesses, seconds = length(tmp_path / "right", lambda: biasgrad(tmp_path / "right", *LINE))
    right, done = result(tmp_path / "right"), 0
    assert len(labels(tmp_path / "right")) == 14
    for attempt in range(20 * kills):
        if done >= kills:
            break
        (folder := tmp_path / str(attempt)).mkdir()
        known: set[tuple[int, int]] = set()
        for _ in range(int(random.integers(1, 6))):
            if random.integers(2):
                moment = int(random.integers(1, accesses + 1)), float(random.exponential(0.003))
            else:
                moment = 1, float(random.uniform(0, seconds))
            done += (hit := killed(folder, line(folder), *moment))
            check_whole(folder)
            assert known <= labels(folder)
            known = labels(folder)
            if not hit or done >= kills:
                break
        if not (folder / "out" / "report" / "rounds.png").exists():
            assert not killed(folder, line(folder))
        check_whole(folder)
        assert result(folder) == right
    assert done >= kills
