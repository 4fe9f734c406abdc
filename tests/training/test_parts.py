"""Training, validation and test part of a run, from the configuration to the last report."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import biasgrad, options, write_clusters

from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.seen import frame_digests, recorded_digests
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training import (
    ConfigError,
    DeviceFrames,
    config_from,
    evaluate,
    load_config,
    resume,
    train,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with `x.h5` (60 frames), a run on 40 + 10 + 10 of them, and other frames."""
    folder = tmp_path_factory.mktemp("parts")
    path = write_clusters(folder / "x.h5")
    result = train(config_from(options(path, epochs=2)), folder / "run")
    write_clusters(folder / "long.h5", frames=80)  # the same frames, and 20 more
    return folder, result


def test_the_training_ends_with_the_test_part(run):
    folder, result = run
    split = json.loads((folder / "run" / "split.json").read_text())
    assert {part: len(frames) for part, frames in split.items()} == {
        "train": 40,
        "validation": 10,
        "test": 10,
    }
    loaded = load_checkpoint(result.checkpoint)
    frames = DeviceFrames(Dataset(folder / "x.h5"), split["test"], loaded.potential.cutoff)
    again = evaluate(loaded.potential, frames)
    assert result.test.forces.mae == pytest.approx(again.forces.mae, rel=1e-6)
    assert result.test.frames == 10
    assert result.test.forces.mae != result.after_bias.forces.mae
    assert result.test.seen == 0
    summary = json.loads((folder / "run" / "test" / "summary.json").read_text())
    assert summary["forces"]["mae"] == result.test.forces.mae
    assert (folder / "run" / "test" / "errors.png").stat().st_size > 100
    assert loaded.training["test"]["forces"]["mae"] == result.test.forces.mae
    assert loaded.training["data"]["parts"] == {"train": 40, "validation": 10, "test": 10}


def test_a_checkpoint_alone_knows_what_it_has_seen(run):
    folder, result = run
    record = load_checkpoint(result.checkpoint).training["seen"]
    split = json.loads((folder / "run" / "split.json").read_text())
    known = np.isin(
        frame_digests(Dataset(folder / "long.h5"), np.arange(80)), recorded_digests(record)
    )
    assert np.flatnonzero(known).tolist() == sorted(split["train"] + split["validation"])
    assert record["frames"] == 50
    said = biasgrad(folder, "info", "run/potential.safetensors")
    assert record["digests"] not in said


def test_evaluate_takes_the_test_part_of_a_run(run):
    folder, result = run
    said = biasgrad(folder, "evaluate", "run", "--json", "e.json", "--report", "report")
    assert "10 frames; " in said
    found = json.loads((folder / "e.json").read_text())
    assert found["forces"]["mae"] == pytest.approx(result.test.forces.mae, rel=1e-6)
    assert found["seen"] == 0
    assert (folder / "report" / "learning_curve.png").exists()
    said = biasgrad(folder, "evaluate", "run/potential.safetensors", code=2)
    assert "name a dataset" in said
    assert "name a dataset" in biasgrad(folder, "evaluate", "run", "--frames", ":3", code=2)


def test_evaluate_keeps_skips_or_refuses_frames_of_the_training(run):
    folder, _ = run
    evaluate = ("evaluate", "run/potential.safetensors", "long.h5")
    named = r"long\.h5: 50 of these 80 frames \(\d+, \d+, \d+, \d+, \d+, …\)"
    assert re.search(f"^biasgrad: {named}", biasgrad(folder, *evaluate, "--seen", "refuse", code=1))
    assert "30 frames; " in biasgrad(folder, *evaluate, "--seen", "skip")
    said = biasgrad(folder, *evaluate, "--json", "keep.json")
    assert re.search(f"^warning: {named}", said)
    assert "seen in training: 50 of these frames" in said
    assert json.loads((folder / "keep.json").read_text())["seen"] == 50
    assert "20 frames; " in biasgrad(folder, *evaluate, "--frames", "60:")
    split = json.loads((folder / "run" / "split.json").read_text())
    only = f"{split['train'][0]}:{split['train'][0] + 1}"
    said = biasgrad(folder, *evaluate, "--frames", only, "--seen", "skip", code=1)
    assert "cannot be left out: no other frame is left" in said


def test_frames_of_a_bias_fit_count_as_seen(run):
    folder, _ = run
    fit = ("fit-bias", "run/potential.safetensors", "long.h5", "-o", "fitted.safetensors")
    biasgrad(folder, *fit, "--frames", "70:")
    said = biasgrad(folder, "evaluate", "fitted.safetensors", "long.h5")
    assert "60 of these 80 frames" in said
    assert "10 frames; " in biasgrad(
        folder, "evaluate", "fitted.safetensors", "long.h5", "--frames", "60:70"
    )


def test_old_runs_and_checkpoints_go_on_without_a_test_part(run, tmp_path):
    folder, _ = run
    old = shutil.copytree(folder / "run", tmp_path / "old")
    split = json.loads((old / "split.json").read_text())
    (old / "split.json").write_text(json.dumps({k: split[k] for k in ("train", "validation")}))
    said = biasgrad(folder, "evaluate", old, code=1)
    assert "has no test part; its training is of a version without one" in said
    assert f"biasgrad evaluate {old} DATA" in said
    shutil.rmtree(old / "test")
    assert resume(old).test is None
    assert not (old / "test").exists()
    loaded = load_checkpoint(old / "potential.safetensors")
    history = {key: value for key, value in loaded.training.items() if key != "seen"}
    save_checkpoint(old / "potential.safetensors", loaded.potential, history)
    said = biasgrad(folder, "evaluate", old, "long.h5")
    assert "does not say which frames its training saw" in said
    assert "80 frames; " in said
    (old / "potential.safetensors").unlink()
    assert "holds no finished potential" in biasgrad(folder, "evaluate", old, code=1)


def test_a_run_without_a_test_part_says_so_once(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    config = options(path, epochs=1)
    config["data"] |= {"train": 45, "validation": 15}
    with pytest.warns(UserWarning, match="no test part: the others take all 60 frames"):
        assert train(config_from(config), tmp_path / "run").test is None
    said = biasgrad(tmp_path, "evaluate", "run", code=1)
    assert "its training left no frames for it" in said


def test_copies_among_test_frames_are_told(tmp_path):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", frames=30))
    with DatasetWriter(tmp_path / "twice.h5") as writer:
        for frame in (*dataset, *dataset):
            writer.append(frame.numbers, frame.positions, energy=frame.energy, forces=frame.forces)
    with pytest.warns(UserWarning, match=r"\d+ of the 10 test frames have the structure of a"):
        result = train(config_from(options(tmp_path / "twice.h5", epochs=1)), tmp_path / "run")
    assert 0 < result.test.seen <= 10
    said = biasgrad(tmp_path, "evaluate", "run")
    assert f"seen in training: {result.test.seen} of these frames" in said


def test_test_frames_without_forces_are_refused_before_work_starts(tmp_path):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", frames=40))
    with DatasetWriter(tmp_path / "y.h5") as writer:
        for k, frame in enumerate(dataset):
            labels = {"forces": frame.forces} if k < 30 else {}
            writer.append(frame.numbers, frame.positions, energy=frame.energy, **labels)
    (tmp_path / "test.csv").write_text("\n".join(map(str, range(30, 40))))
    config = options(tmp_path / "y.h5", epochs=1)
    config["data"] |= {"train": 20, "validation": 10, "test": str(tmp_path / "test.csv")}
    with pytest.raises(ValueError, match=r"\(test frames\): has no forces"):
        train(config_from(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_indices_are_found_from_the_configuration(tmp_path):
    write_clusters(tmp_path / "x.h5")
    (tmp_path / "test.csv").write_text("2\n4\n8\n16\n32\n1\n3\n5\n7\n9\n")
    (tmp_path / "c.yaml").write_text("data: {path: x.h5, train: 30, test: test.csv}\n")
    config = load_config(tmp_path / "c.yaml", ["data.validation=10"])
    assert config.data.test == tmp_path / "test.csv"
    short = {"epochs": 1, "batch_size": 8}
    base = options(tmp_path / "x.h5")
    with_files = {**base, "data": config.data.model_dump(), "force_stage": short}
    result = train(config_from(with_files), tmp_path / "run")
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert split["test"] == [1, 2, 3, 4, 5, 7, 8, 9, 16, 32]
    # what travels with the potential names no folder of this machine
    assert load_checkpoint(result.checkpoint).training["config"]["data"]["test"] == "test.csv"
    (tmp_path / "test.csv").unlink()
    assert resume(tmp_path / "run").test.frames == 10


@pytest.mark.parametrize("value", [0, -1, True, [1], None])
def test_sizes_that_are_none_are_refused(tmp_path, value):
    config = options(tmp_path / "x.h5")
    config["data"]["train"] = value
    with pytest.raises(ConfigError, match=r"data\.train: give a number of frames, their share"):
        config_from(config)
