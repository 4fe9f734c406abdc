"""Whatever is killed, and whenever, ends as if it had not been, and no file is half there."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk, molecule
from ase.io import read, write
from ase.io.trajectory import TrajectoryReader
from conftest import small_potential
from helpers import biasgrad, options, write_clusters, write_qm7
from kills import SAID, killed, length
from safetensors.torch import load_file

from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.training.benchmarks import loop
from ase_biasgrad.training.benchmarks.nbody import table as nbody_benchmark
from ase_biasgrad.training.benchmarks.nbody.network import NBodyOptions
from ase_biasgrad.training.lightning.loggers import read_epoch_table
from ase_biasgrad.training.lightning.state_files import read_state

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() > 0, reason="torch cannot differentiate after a fork beside CUDA"
)
# of a result; what a clock made, and the digest that is of it, too
CLOCKS = ("seconds", "cpu_seconds", "hardware", "sha256")


@dataclass(frozen=True)
class Command:
    """A command, as a user begins it and goes on with it, and what it makes.

    `line` is what to type next in a folder, None if nothing is left to do.
    """

    prepare: Callable[[Path], None]
    line: Callable[[Path], list[str] | None]
    result: Callable[[Path], Any]


def again_unless(name: str, *line: str) -> Callable[[Path], list[str] | None]:
    """The same line again, until its output is there."""
    return lambda folder: None if (folder / name).exists() else [*line]


def plain(value: Any) -> Any:
    """JSON values without those of clocks."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in CLOCKS}
    return [plain(v) for v in value] if isinstance(value, list) else value


def results_in(folder: Path) -> dict[str, Any]:
    """Results and tensors of a benchmark by file."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json")):
        found[path.name] = plain(json.loads(path.read_text()))
    for path in sorted(folder.rglob("*.safetensors")):
        found[path.name] = bytes_of(load_file(path))
    return found


def bytes_of(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


# --- training ------------------------------------------------------------------------------


def prepare_training(folder: Path) -> None:
    write_clusters(folder / "x.h5", 60)
    config = options("x.h5", epochs=3)
    config["data"] |= {"train": 24, "validation": 8}
    (folder / "c.yaml").write_text(yaml.safe_dump(config))


def train_line(folder: Path) -> list[str]:
    if (folder / "run" / "config.yaml").exists():
        return ["train", "--resume", "run"]
    return ["train", "c.yaml", "-o", "run"]


def trained(folder: Path) -> Any:
    run = folder / "run"
    epochs = [(row["epoch"], row["train_loss"]) for row in read_epoch_table(run / "metrics.csv")]
    assert (run / "report").is_dir()
    tensors = load_checkpoint(run / "potential.safetensors").potential.state_dict()
    report = json.loads((run / "evaluation.json").read_text())
    return epochs, bytes_of(tensors), report


# --- data ----------------------------------------------------------------------------------


def prepare_import(folder: Path) -> None:
    frames = [molecule("CH3OH") for _ in range(30)]
    random = np.random.default_rng(0)
    positions = [atoms.positions + random.normal(0, 0.03, (6, 3)) for atoms in frames]
    np.savez(folder / "x.npz", z=frames[0].numbers, R=positions, F=random.normal(size=(30, 6, 3)))


def content(folder: Path) -> Any:
    with Dataset(folder / "y.h5") as dataset:
        return dataset.hash(), dataset.provenance


def prepare_sample(folder: Path) -> None:
    write(folder / "cu.xyz", bulk("Cu", cubic=True))


# --- dynamics ------------------------------------------------------------------------------

STEPS = 24


def prepare_md(folder: Path) -> None:
    save_checkpoint(folder / "p.safetensors", small_potential("schnet"))
    write(folder / "w.xyz", molecule("CH3CH2OH"))


def md_line(folder: Path) -> list[str] | None:
    line = ["md", "w.xyz", "-c", "p.safetensors", "-o", "a.traj", "--dtype", "float64"]
    line += ["--interval", "2", "--timestep", "0.2", "--device", "cpu", "--log", "a.log"]
    if not (folder / "a.traj").exists():
        return [*line, "--steps", str(STEPS)]
    done = 2 * (whole_frames(folder / "a.traj") - 1)
    return None if done == STEPS else [*line, "--restart", "--steps", str(STEPS - done)]


def whole_frames(path: Path) -> int:
    with TrajectoryReader(path) as frames:
        for k in reversed(range(len(frames))):
            with suppress(Exception):  # torn
                frames[k].get_forces()
                return k + 1
    return 0


def trajectory(folder: Path) -> Any:
    frames = read(folder / "a.traj", ":")
    # forces in other orders of summation, in float64
    return [np.round([a.positions, a.get_momenta(), a.get_forces()], 8).tolist() for a in frames]


# --- benchmarks ----------------------------------------------------------------------------


def prepare_nbody(folder: Path) -> None:
    sizes = ("--size", "train=20", "--size", "validation=4", "--size", "test=6")
    biasgrad(folder, "data", "nbody", "-o", "n.h5", "--variant", "egnn", *sizes)


def prepare_qm7(folder: Path) -> None:
    write_qm7(folder / "x.npz", 20)
    units = ("--energy-unit", "kcal/mol", "--length-unit", "Angstrom")
    biasgrad(folder, "data", "qm7", "--from", "x.npz", "-o", "q.h5", *units)


def prepare_qm9(folder: Path) -> None:
    molecules = [molecule(name) for name in ("CH4", "H2O", "NH3", "CH3OH", "C6H6", "HCN", "C2H2")]
    np.savez(
        folder / "x.npz",
        id=np.arange(7),
        n_atoms=[len(atoms) for atoms in molecules],
        Z=np.concatenate([atoms.numbers for atoms in molecules]),
        R_micro=np.concatenate([1e6 * atoms.positions for atoms in molecules]).astype(int),
        E_elec_hartree=-np.arange(1.0, 8),
        mu_debye=np.arange(7.0),
    )
    biasgrad(folder, "data", "qm9", "-o", "q.h5", "--from", "x.npz")


def prepare_md17(folder: Path) -> None:
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    atoms = molecule("H2O")
    for part, count in (("train", 24), ("test", 8)):
        np.savez(
            folder / "data" / f"rmd17_ethanol_{part}_01.npz",
            nuclear_charges=atoms.numbers,
            coords=atoms.positions + random.normal(0, 0.03, (count, 3, 3)),
            energies=-48_000 + random.normal(size=count),
            forces=random.normal(0, 20, (count, 3, 3)),
        )


def always(*line: str) -> Callable[[Path], list[str] | None]:
    return lambda folder: [*line]


COMMANDS = {
    "train": Command(prepare_training, train_line, trained),
    "import": Command(
        prepare_import,
        again_unless(
            "y.h5", *("data", "import", "x.npz", "-o", "y.h5", "--accept"),
            *("--energy-unit", "eV", "--length-unit", "Angstrom"),
        ),
        content,
    ),
    "sample": Command(
        prepare_sample,
        again_unless(
            "y.h5", *("data", "sample", "cu.xyz", "-o", "y.h5", "--calculator", "emt"),
            *("--frames", "8", "--interval", "1", "--equilibration", "2"),
        ),
        content,
    ),
    "md": Command(prepare_md, md_line, trajectory),
    "nbody": Command(
        prepare_nbody,
        always(
            *("benchmark", "nbody", "n.h5", "-o", "r", "--network", "degree 0 only"),
            *("--epochs", "3", "--seed", "0", "--seed", "1"),
        ),
        lambda folder: results_in(folder / "r"),
    ),
    "qm7": Command(
        prepare_qm7,
        always(
            *("benchmark", "qm7", "q.h5", "-o", "r", "--row", "mean", "--row", "composition"),
            *("--row", "kernel-sorted", "--fold", "0", "--fold", "1"),
        ),
        lambda folder: (results_in(folder / "r"), len((folder / "r/table.md").read_text())),
    ),
    "qm9": Command(
        prepare_qm9,
        always(
            *("benchmark", "qm9", "q.h5", "-o", "r", "--property", "mu", "--train", "4"),
            *("--validation", "1", "--epochs", "4", "--layers", "1", "--channels", "4"),
            *("--heads", "2", "--max-degree", "1"),
        ),
        lambda folder: results_in(folder / "r"),
    ),
    "md17": Command(
        prepare_md17,
        always(
            *("benchmark", "md17", "-o", "r", "--data", "data", "--molecule", "ethanol"),
            *("--backbone", "schnet", "--labels", "revised", "--weight", "1", "--epochs", "2"),
            *("--train", "16", "--validation", "4", "--test", "6", "--accelerator", "cpu"),
            *("--arguments", "{features: 8, interactions: 1, radial_functions: 8}"),
        ),
        lambda folder: {
            name: value for name, value in results_in(folder / "r").items() if "md17-" in name
        },
    ),
}  # fmt: skip


def check_whole(folder: Path) -> None:
    """Every file under a final name can be read; others are hidden and end in `.part`."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.endswith(".part") or path.name == SAID:
            assert not path.name.endswith(".part") or path.name.startswith(".")
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix in (".ckpt", ".state"):
            read_state(path)
        elif path.suffix == ".csv":
            assert all(None not in row.values() for row in read_epoch_table(path))
        elif path.suffix == ".h5" and path.name != "n.h5":
            list(Dataset(path))
        elif path.suffix == ".traj":
            assert whole_frames(path) > 0
        elif path.suffix in (".md", ".svg", ".png"):
            assert path.stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        *(
            (name, {"train": 12, "import": 8, "sample": 8, "md": 12}.get(name, 5))
            for name in COMMANDS
        ),
        *(pytest.param(name, 125, marks=pytest.mark.slow) for name in COMMANDS),
    ],
)
def test_a_killed_command_ends_as_if_it_had_not_been(tmp_path, monkeypatch, name, kills):
    monkeypatch.setitem(
        nbody_benchmark.NETWORKS, "degree 0 only", NBodyOptions(layers=1, max_degree=0)
    )
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)  # a state after each epoch
    command, random = COMMANDS[name], np.random.default_rng(kills)
    for kind in ("warm", "right"):  # the first of its kind compiles kernels
        (folder := tmp_path / kind).mkdir()
        command.prepare(folder)
        line = command.line(folder)
        accesses, seconds = length(folder, lambda: biasgrad(folder, *line))  # noqa: B023
    right, done = command.result(folder), 0
    for attempt in range(20 * kills):
        if done >= kills:
            break
        folder = tmp_path / str(attempt)
        folder.mkdir()
        command.prepare(folder)
        for _ in range(int(random.integers(1, 6))):
            if (line := command.line(folder)) is None:
                break
            if random.integers(2):
                moment = int(random.integers(1, accesses + 1)), float(random.exponential(0.003))
            else:
                moment = 1, float(random.uniform(0, seconds))
            done += (hit := killed(folder, line, *moment))
            check_whole(folder)
            if not hit:
                break
        else:
            if (line := command.line(folder)) is not None:
                assert not killed(folder, line)
        check_whole(folder)
        assert command.result(folder) == right
    assert done >= kills
