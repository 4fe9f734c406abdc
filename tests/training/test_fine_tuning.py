"""Fine-tuning: training that begins from a checkpoint, refuses what does not fit, and says so."""

import numpy as np
import pytest
import torch
from helpers import OFFSET, biasgrad, options, write_clusters

from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.config import ConfigError, config_from, describe_options, load_config
from ase_biasgrad.training.run import resume, train
from ase_biasgrad.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A folder with 60 frames and the checkpoint of a training on 40 of them."""
    folder = tmp_path_factory.mktemp("parent")
    path = write_clusters(folder / "x.h5")
    return train(config_from(options(path, epochs=6)), folder / "run").checkpoint


def shifted(path, source, shift: float, numbers=None):
    """The frames of a dataset in reverse order, their structures shaken and energies shifted."""
    random = np.random.default_rng(7)
    with DatasetWriter(path) as writer:
        for frame in reversed(list(Dataset(source))):
            writer.append(
                frame.numbers if numbers is None else np.full_like(frame.numbers, numbers),
                frame.positions + random.normal(0, 0.01, frame.positions.shape),
                energy=frame.energy + shift * len(frame.numbers),
                forces=frame.forces,
            )
    return path


def tuned(path, parent, **force_stage) -> dict:
    given = options(path, epochs=1, **force_stage)
    del given["backbone"], given["force_stage"]["learning_rate"], given["force_stage"]["schedule"]
    return {**given, "fine_tuning": {"checkpoint": str(parent), "learning_rate": 1e-9}}


def test_a_tiny_rate_leaves_the_forces_of_the_parent_and_refits_its_zero(tmp_path, parent):
    path = shifted(tmp_path / "y.h5", parent.parent.parent / "x.h5", shift=3.0)
    result = train(config_from(tuned(path, parent)), tmp_path / "run")
    child, before = load_checkpoint(result.checkpoint), load_checkpoint(parent)
    for name, weights in before.potential.backbone.state_dict().items():
        found = child.potential.backbone.state_dict()[name]
        torch.testing.assert_close(found, weights, rtol=0, atol=1e-6)
    # the bias holds the shift of 3 eV per atom, in closed form
    level = child.potential.bias.fit_report["reference"]["H3O"]
    assert level == pytest.approx(OFFSET + 3, abs=5)
    moved = child.potential.bias.per_element - before.potential.bias.per_element
    for hydrogens in (3, 4):
        by_atom = (moved[8] + hydrogens * moved[1]) / (1 + hydrogens)
        assert by_atom.item() == pytest.approx(3.0, abs=0.1)  # frames were shaken
    assert result.after_bias.energy.mae < 1  # the shift is 12 to 15 eV
    assert child.training["parent"] == {"checkpoint": parent.name, "sha256": before.sha256}
    assert child.training["config"]["fine_tuning"]["checkpoint"] == parent.name
    # what the parent has seen, its child has
    seen = child.training["seen"]["frames"]
    assert seen == before.training["seen"]["frames"] + 50


def test_it_begins_where_the_parent_ended(tmp_path, parent):
    path = shifted(tmp_path / "y.h5", parent.parent.parent / "x.h5", shift=0.0)
    errors = []
    for name, given in (("new", options(path, epochs=1)), ("tuned", tuned(path, parent))):
        errors.append(train(config_from(given), tmp_path / name).after_bias.forces.mae)
    assert errors[1] < 0.85 * errors[0]


def test_frames_that_the_parent_saw_are_named_and_count_as_seen(tmp_path, parent):
    path = parent.parent.parent / "x.h5"
    given = tuned(path, parent)
    given["data"]["seed"] = 1
    with pytest.warns(UserWarning, match=r"was trained on \d+ of the 10 test frames"):
        result = train(config_from(given), tmp_path / "run")
    assert result.test.seen > 0


def test_it_goes_on_only_with_the_same_parent(tmp_path, parent):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(parent.read_bytes())
    path = shifted(tmp_path / "y.h5", parent.parent.parent / "x.h5", shift=0.0)
    (tmp_path / "c.yaml").write_text(
        f"data: {{path: {path.name}, train: 40, validation: 10}}\n"
        "force_stage: {epochs: 1}\ntrainer: {accelerator: cpu, progress_bar: false}\n"
    )
    said = biasgrad(tmp_path, "train", "c.yaml", "-o", "run", "--from", "mine.safetensors")
    assert "checkpoint: run" in said
    used = RunFolder.read(tmp_path / "run").config
    assert used.fine_tuning.checkpoint == mine.resolve()
    assert used.force_stage.learning_rate == used.fine_tuning.learning_rate == 1e-3
    assert used.force_stage.schedule.warmup_steps == 100
    assert used.backbone.name == "schnet"
    assert used.backbone.arguments["features"] == 16
    assert resume(tmp_path / "run").checkpoint.exists()
    mine.write_bytes((tmp_path / "run" / "potential.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"mine\.safetensors: has changed since the run"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"name": "painn"}}, r"backbone\.name: is painn, and .* is schnet"),
        (
            {"backbone": {"name": "schnet", "features": 16, "cutoff": 5.0}},
            r"backbone\.cutoff: is 5\.0, and 4\.0 in ",
        ),
        (
            {"force_stage": {"learning_rate": 0.5}},
            r"force_stage\.learning_rate: is 0\.5, and fine_tuning\.learning_rate is 1e-09",
        ),
        (
            {"force_stage": {"schedule": {"warmup_steps": 7}}},
            r"force_stage\.schedule\.warmup_steps: is 7, and fine_tuning\.warmup_steps is 100",
        ),
        ({"fine_tuning": {"checkpoint": "none.safetensors"}}, r"fine_tuning\.checkpoint: .*none"),
    ],
)
def test_what_does_not_fit_is_refused_before_work_starts(tmp_path, parent, change, message):
    path = parent.parent.parent / "x.h5"
    with pytest.raises(ConfigError, match=message):
        train(config_from(tuned(path, parent) | change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_elements_that_the_parent_does_not_know_are_named(tmp_path, parent):
    path = shifted(tmp_path / "y.h5", parent.parent.parent / "x.h5", shift=0.0, numbers=14)
    with pytest.raises(ConfigError, match=r"trained for H, O, and .*y\.h5 holds Si"):
        train(config_from(tuned(path, parent)), tmp_path / "run")


def test_no_checkpoint_is_no_parent(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    with pytest.raises(ConfigError, match=r"fine_tuning\.checkpoint: .*x\.h5"):
        train(config_from(tuned(path, path)), tmp_path / "run")


def test_options_name_it_and_paths_are_taken_from_the_file(tmp_path):
    assert "# fine_tuning" in describe_options() or "fine_tuning: null" in describe_options()
    (tmp_path / "c.yaml").write_text("data: {path: x.h5}\nfine_tuning: {checkpoint: a.safetensors}")
    config = load_config(tmp_path / "c.yaml", ["fine_tuning.learning_rate=0.002"])
    assert config.fine_tuning.checkpoint == tmp_path / "a.safetensors"
    assert config.fine_tuning.learning_rate == 0.002
