"""No command replaces a file unasked, nor ever what it reads."""

from __future__ import annotations

import json
import shutil

import pytest
from ase.io import write
from conftest import copper, small_potential
from helpers import biasgrad, options, write_clusters
from typer.main import get_command

from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.cli import app
from ase_biasgrad.training import config_from, train

# these go on with what is in their output, and refuse what is not theirs
GOING_ON = {
    "train", "learn", "md", "benchmark md17", "benchmark nbody", "benchmark peers", "benchmark qm9",
}  # fmt: skip


def commands(group, name: str = ""):
    """Every command with its options' flags."""
    for key, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {key}")
        else:
            flags = {flag for option in command.params for flag in option.opts}
            yield f"{name} {key}".strip(), flags


def test_every_command_that_writes_can_be_told_to_overwrite():
    found = dict(commands(get_command(app)))
    writing = {name for name, flags in found.items() if flags & {"--output", "--json", "--report"}}
    assert {"data import", "fit-bias", "relax", "evaluate", "benchmark qm7", *GOING_ON} <= writing
    assert {name for name in writing if "--overwrite" not in found[name]} == GOING_ON


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overwrite")
    save_checkpoint(folder / "p.safetensors", small_potential())
    write(folder / "cu.xyz", copper())
    write_clusters(folder / "x.h5", 60)
    return folder


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("relax cu.xyz -c p.safetensors -o out.xyz --trajectory out.xyz", "out.xyz"),
        ("relax cu.xyz -c p.safetensors -o o.xyz --trajectory p.safetensors", "p.safetensors"),
        ("md cu.xyz -c p.safetensors -o cu.traj --log cu.xyz", "cu.xyz"),
        ("convert p.safetensors -o x.h5 --energy-unit eV --data x.h5 --overwrite", "x.h5"),
        ("evaluate p.safetensors x.h5 --json x.h5 --overwrite", "x.h5"),
        ("fit-bias p.safetensors x.h5 -o x.h5 --overwrite", "x.h5"),
    ],
)
def test_inputs_and_outputs_are_never_the_same(folder, line, kept):
    before = (folder / kept).read_bytes() if (folder / kept).exists() else None
    assert kept in biasgrad(folder, *line.split(), code=2 if before is None or "md" in line else 1)
    assert ((folder / kept).read_bytes() if (folder / kept).exists() else None) == before


def test_a_restarted_log_is_not_its_own_input(folder):
    run = ("md", "cu.xyz", "-c", "p.safetensors", "-o", "log.traj", "--steps", "2")
    biasgrad(folder, *run)
    before = (folder / "cu.xyz").read_bytes()
    said = biasgrad(folder, *run, "--restart", "--log", "cu.xyz", code=1)
    assert "cu.xyz: is what is read" in said
    assert (folder / "cu.xyz").read_bytes() == before


def test_files_inside_a_folder_that_is_read_are_not_written_over(folder):
    shutil.copytree(folder, folder.parent / "xyz_folder")
    inside = folder.parent / "xyz_folder" / "cu.xyz"
    qm7 = ("data", "qm7", "--from", inside.parent, "-o", inside, "--energy-unit", "eV")
    assert "is what is read" in biasgrad(folder, *qm7, "--overwrite", code=1)


def test_folders_and_missing_folders_are_told_before_the_work(folder):
    (folder / "sub").mkdir()
    fit = ("fit-bias", "p.safetensors", "x.h5", "-o")
    assert "sub: is a folder" in biasgrad(folder, *fit, "sub", "--overwrite", code=1)
    said = biasgrad(folder, *fit, "nowhere/p.safetensors", code=1)
    assert "nowhere does not exist" in said


def test_an_evaluation_does_not_write_over_the_data_of_its_run(tmp_path):
    config = options(write_clusters(tmp_path / "x.h5"), epochs=1)
    config["data"]["test"] = 10
    train(config_from(config), tmp_path / "run")
    before = (tmp_path / "x.h5").read_bytes()
    said = biasgrad(tmp_path, "evaluate", "run", "--json", "x.h5", "--overwrite", code=1)
    assert "x.h5: is what is read" in said
    assert (tmp_path / "x.h5").read_bytes() == before


@pytest.mark.parametrize("name", ["potential.safetensors", "metrics.csv", "split.json", "report"])
def test_a_run_does_not_replace_what_is_not_its_own(tmp_path, name):
    config = config_from(options(write_clusters(tmp_path / "x.h5"), epochs=1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"precious": 1}')
    with pytest.raises(FileExistsError, match=rf"{name}: exists, and a run would write it"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / name).read_text() == '{"precious": 1}'
    (tmp_path / "run" / name).unlink()
    own = {"data.json": {"sha256": "0", "frames": 1}}
    for file, content in own.items():  # of a beginning that was cut short
        (tmp_path / "run" / file).write_text(json.dumps(content))
    assert train(config, tmp_path / "run").checkpoint.exists()


@pytest.mark.parametrize("name", ["table.md", "learning_curves.svg"])
def test_the_qm7_benchmark_replaces_tables_of_its_own_alone(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious")
    said = biasgrad(tmp_path, "benchmark", "qm7", "x.h5", "-o", "out", "--row", "mean", code=1)
    assert f"{name}: exists; say --overwrite" in said
    assert (tmp_path / "out" / name).read_text() == "precious"
