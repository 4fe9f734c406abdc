"""The comparison on (r)MD17: rows, resumption, and what is refused, on a made-up molecule."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from typer.testing import CliRunner

from ase_biasgrad.cli import app
from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.training.benchmarks import md17 as md17_table
from ase_biasgrad.training.benchmarks.md17 import PUBLISHED, Study, run_study


def write_rmd17(folder, name: str, frames: int, seed: int) -> None:
    """Four atoms with both label sets; the original ones are 1 kcal/mol higher."""
    random = np.random.default_rng(seed)
    grid = np.array([[0, 0, 0], [1.2, 0, 0], [0, 1.2, 0], [0, 0, 1.2]])
    coords, energies, forces = [], [], []
    for _ in range(frames):
        atoms = Atoms("OHHH", grid + random.normal(0, 0.05, (4, 3)), calculator=LennardJones())
        coords.append(atoms.positions)
        energies.append(atoms.get_potential_energy() - 48_000)
        forces.append(atoms.get_forces())
    np.savez(
        folder / name,
        nuclear_charges=np.array([8, 1, 1, 1]),
        coords=np.array(coords),
        energies=np.array(energies),
        forces=np.array(forces),
        old_energies=np.array(energies) + 1.0,
        old_forces=np.array(forces),
        old_indices=np.arange(frames),
    )


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_rmd17(folder, "rmd17_ethanol_train_01.npz", 30, 0)
    write_rmd17(folder, "rmd17_ethanol_test_01.npz", 20, 1)
    return folder


SMALL = {
    "molecules": ("ethanol",),
    "backbones": ("schnet",),
    "labels": ("revised",),
    "epochs": 2,
    "train": 20,
    "validation": 10,
    "test": 15,
    "arguments": {"features": 8, "interactions": 1, "radial_functions": 8},
    "accelerator": "cpu",
}


def test_rows_of_a_study_and_going_on_with_it(tmp_path, data, monkeypatch):
    study = Study(**SMALL, weights=(0.1,))
    rows = list(run_study(study, tmp_path / "study", data))
    assert [row.recipe for row in rows] == [
        *(f"two stages, bias by {fit}" for fit in md17_table.BIAS_FITS),
        "joint, energy weight 0.1",
    ]
    assert len({row.forces for row in rows[:4]}) == 1  # the bias leaves forces alone
    assert rows[4].forces != rows[0].forces
    assert all(row.epochs == 2 and row.seconds > 0 and row.energy < 1.0 for row in rows)
    assert all(row.efwt <= min(row.efwt_energy, row.efwt_forces) for row in rows)

    (result,) = (
        path for path in (tmp_path / "study" / "rows").glob("*.json") if "joint" in path.read_text()
    )
    result.unlink()
    resumed = []
    resume = md17_table.resume
    monkeypatch.setattr(
        md17_table, "resume", lambda folder: resumed.append(folder.name) or resume(folder)
    )
    again = list(run_study(study, tmp_path / "study", data))
    (name,) = resumed
    assert name.startswith("ethanol-revised-schnet-joint-0.1-0-")
    assert [row.cells() for row in again] == [row.cells() for row in rows]


def test_other_options_and_other_data_are_measured_beside(tmp_path, data):
    folder = tmp_path / "study"
    first = list(run_study(Study(**SMALL, weights=()), folder, data))
    longer = list(run_study(Study(**{**SMALL, "epochs": 3}, weights=()), folder, data))
    assert [row.epochs for row in (*first, *longer)] == [2] * 4 + [3] * 4
    assert list(run_study(Study(**SMALL, weights=()), folder, data)) == first
    other = tmp_path / "other"
    other.mkdir()
    write_rmd17(other, "rmd17_ethanol_train_01.npz", 30, 7)
    write_rmd17(other, "rmd17_ethanol_test_01.npz", 20, 8)
    changed = list(run_study(Study(**SMALL, weights=()), folder, other))
    assert changed[0].forces != first[0].forces
    assert len(list((folder / "rows").glob("*.json"))) == 3


def test_the_command_with_a_time_limit_and_both_label_sets(tmp_path, data):
    options = {**SMALL, "labels": ("revised", "original")}
    flags = ["--molecule", "ethanol", "--backbone", "schnet", "--minutes", "0.02", "--weight", "1"]
    flags += ["--train", "20", "--validation", "10", "--test", "15", "--accelerator", "cpu"]
    flags += ["--arguments", json.dumps(options["arguments"]), "--data", str(data)]
    done = CliRunner().invoke(app, ["benchmark", "md17", *flags, "-o", str(tmp_path / "study")])
    assert done.exit_code == 0, done.output
    rows = [text.split("|")[1:-1] for text in done.output.splitlines() if "ethanol" in text]
    assert rows[0][5].strip() == "0.128 (5.55)"
    assert [row[1].strip() for row in rows] == ["original"] + ["revised"] * 5 + ["original"] * 5
    assert all(int(row[-2]) >= 1 for row in rows[1:])


def test_the_command_without_joint_losses(tmp_path, data):
    flags = ["--molecule", "ethanol", "--backbone", "schnet", "--epochs", "1", "--no-joint"]
    flags += ["--train", "20", "--validation", "10", "--test", "15", "--accelerator", "cpu"]
    flags += ["--labels", "revised", "--learning-rate", "0.002", "--data", str(data)]
    flags += ["--arguments", json.dumps(SMALL["arguments"])]
    done = CliRunner().invoke(app, ["benchmark", "md17", *flags, "-o", str(tmp_path / "study")])
    assert done.exit_code == 0, done.output
    recipes = [text.split("|")[4].strip() for text in done.output.splitlines() if "ethanol" in text]
    assert recipes == ["published", *(f"two stages, bias by {fit}" for fit in md17_table.BIAS_FITS)]
    (config,) = (tmp_path / "study" / "runs").glob("*/config.yaml")
    assert "learning_rate: 0.002" in config.read_text()


def test_one_file_of_all_frames_is_split(tmp_path):
    write_rmd17(tmp_path, "rmd17_ethanol.npz", 50, 0)
    study = Study(**SMALL, weights=())
    assert len(list(run_study(study, tmp_path / "study", tmp_path))) == 4
    with pytest.raises(DataError, match="0 files for aspirin"):
        next(run_study(Study(**{**SMALL, "molecules": ("aspirin",)}), tmp_path / "s", tmp_path))


def test_the_published_table_is_whole():
    assert len(PUBLISHED) == 8
    assert PUBLISHED["aspirin"].forces == 0.262
    assert all(0 < row.efwt < 1 for row in PUBLISHED.values())
