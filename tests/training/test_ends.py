"""Ends of a training run: last epochs, time limits, divergence, wild forces, files that lie."""

import csv
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import options, write_clusters

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training import ConfigError, config_from, resume, train
from ase_biasgrad.training.lightning.progress import TrainingDiverged
from ase_biasgrad.training.lightning.state_files import read_state
from ase_biasgrad.training.stages.force import robust_rms, wild_atoms


def validation_losses(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open() as file:
        return [row["val_loss"] for row in csv.DictReader(file)]


@pytest.mark.parametrize(("epochs", "every"), [(2, 9), (5, 2), (4, 2)])
def test_the_last_epoch_is_validated_and_no_loss_is_written_twice(tmp_path, epochs, every):
    path = write_clusters(tmp_path / "x.h5")
    train(config_from(options(path, epochs=epochs, validate_every=every)), tmp_path / "run")
    losses = validation_losses(tmp_path / "run")
    assert [bool(loss) for loss in losses] == [
        (epoch + 1) % every == 0 or epoch + 1 == epochs for epoch in range(epochs)
    ]
    known = [loss for loss in losses if loss]
    assert len(set(known)) == len(known)


def test_a_run_that_ran_out_of_time_says_so_and_goes_on(tmp_path):
    config = options(write_clusters(tmp_path / "x.h5"), epochs=100_000)
    config["trainer"]["max_time"] = "00:00:00:01"
    first = train(config_from(config), tmp_path / "run")
    before = len(validation_losses(tmp_path / "run"))
    assert first.out_of_time_after == before > 0
    assert validation_losses(tmp_path / "run")[-1]
    assert resume(tmp_path / "run").out_of_time_after > before


@pytest.mark.parametrize("value", ["1h", "10", "00:99:00:00"])
def test_a_time_limit_that_cannot_be_read_is_refused(tmp_path, value):
    config = options(tmp_path / "x.h5")
    config["trainer"]["max_time"] = value
    with pytest.raises(ConfigError, match=r"trainer\.max_time"):
        config_from(config)


def test_divergence_ends_with_the_reason(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    wild = {"learning_rate": 1e3, "gradient_clip": 0, "ema_decay": 0, "loss": "l2"}
    said = r"lower force_stage\.learning_rate \(it is 1000\) or clip gradients \(.*, now off\)"
    with pytest.raises(TrainingDiverged, match=said):
        train(config_from(options(path, epochs=50, **wild)), tmp_path / "run")
    assert not (tmp_path / "run" / "potential.safetensors").exists()
    assert len(validation_losses(tmp_path / "run")) < 10


def test_options_of_earlier_versions_that_mean_the_same_are_read(tmp_path):
    config = options(tmp_path / "x.h5", amsgrad=True)
    config["trainer"]["cuda_graphs"] = False
    assert config_from(config) == config_from(options(tmp_path / "x.h5", optimizer="adamw"))
    assert config["trainer"]["cuda_graphs"] is False  # the caller's options are left alone
    with pytest.raises(ConfigError, match=r"force_stage\.amsgrad: there is no such option"):
        config_from(options(tmp_path / "x.h5", amsgrad=False))


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize(
    "by", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_states_of_others_run_no_code(tmp_path, name, by):
    path = write_clusters(tmp_path / "x.h5")
    train(config_from(options(path, epochs=1)), tmp_path / "run")
    by({"state_dict": Attack(tmp_path / "harm")}, tmp_path / "run" / "states" / name)
    with pytest.raises(ValueError, match=f"{name}: cannot be read as a training state"):
        resume(tmp_path / "run")
    assert not (tmp_path / "harm").exists()


def test_damaged_states_are_named(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    train(config_from(options(path, epochs=1)), tmp_path / "run")
    state = tmp_path / "run" / "states" / "last.ckpt"
    whole = state.read_bytes()
    for length in (0, 10, len(whole) // 2):
        state.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"last\.ckpt: cannot be read as a training state"):
            read_state(state)


def test_a_moved_run_remembers_its_best_epoch(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    config = options(path, epochs=3)
    config["trainer"]["precision"] = "float64"
    train(config_from(config), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    text = (tmp_path / "copy" / "config.yaml").read_text().replace("epochs: 3", "epochs: 4")
    (tmp_path / "copy" / "config.yaml").write_text(text)
    resume(tmp_path / "copy")
    callbacks = read_state(tmp_path / "copy" / "states" / "last.ckpt")["callbacks"]
    (state,) = [state for key, state in callbacks.items() if "best_model_path" in state]
    assert Path(state["best_model_path"]) == tmp_path / "copy" / "states" / "best.ckpt"
    best = min(float(loss) for loss in validation_losses(tmp_path / "copy"))
    assert float(state["best_model_score"]) == pytest.approx(best)


def with_a_wild_force(path: Path, source: Path) -> Path:
    """The frames of `source`, with one component of frame 7 a million times too large."""
    with DatasetWriter(path) as writer:
        for k, frame in enumerate(Dataset(source)):
            forces = frame.forces.copy()
            if k == 7:
                forces[2, 1] = 1e6
            writer.append(frame.numbers, frame.positions, energy=frame.energy, forces=forces)
    return path


def test_one_wild_force_is_named_and_decides_for_nobody_else(tmp_path):
    clean = write_clusters(tmp_path / "clean.h5", frames=120)
    wild = with_a_wild_force(tmp_path / "wild.h5", clean)
    errors = []
    for path in (clean, wild):
        config = options(path, epochs=20, elastic_weight=0)
        config["data"] |= {"train": 80, "validation": 20, "test": 0, "contiguous": True}
        if path == wild:
            with pytest.warns(UserWarning, match=r"frame 7, atom 2: 1e\+06 eV/Å"):
                result = train(config_from(config), tmp_path / path.stem)
        else:
            result = train(config_from(config), tmp_path / path.stem)
        errors.append(result.after_bias.forces.mae)
    assert errors[1] < 1.3 * errors[0]


def test_the_unit_of_clean_forces_is_their_root_mean_square():
    random = np.random.default_rng(0)
    forces = torch.from_numpy(random.normal(size=(500, 3)) * 2.0)
    plain = float(forces.square().mean().sqrt())
    assert robust_rms(forces) == pytest.approx(plain, rel=1e-12)
    assert len(wild_atoms(forces)) == 0
    forces[3, 0] = 1e8
    assert robust_rms(forces) == pytest.approx(plain, rel=0.2)
    assert wild_atoms(forces).tolist() == [3]
    assert robust_rms(None) is None
    assert robust_rms(torch.full((4, 6), torch.nan)) is None
