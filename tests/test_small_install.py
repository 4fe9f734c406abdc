"""The small install: MD, relaxation and datasets without torch, by `requirements-md.txt` alone."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.symbols import symbols2numbers
from conftest import copper, ethanol, small_potential

from ase_biasgrad import DatasetWriter, save_checkpoint
from ase_biasgrad.potential import Potential
from ase_biasgrad.units import N_ELEMENTS

REPOSITORY = Path(__file__).resolve().parents[1]


def with_requirements(names: list[str]) -> set[str]:
    """Installed distributions that these need, and they themselves."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop())[0].lower().replace("_", "-")
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        if name not in found:
            found.add(name)
            waiting += [line for line in requires if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the wheel and links to what the small install has, and nothing else."""
    site = tmp_path_factory.mktemp("small") / "site"
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", site]
    subprocess.run([*pip, *options, REPOSITORY], check=True)
    lines = (REPOSITORY / "requirements-md.txt").read_text().splitlines()
    for name in with_requirements([line for line in lines if not line.startswith("#")]):
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            source = Path(str(file.locate())).parents[len(file.parts) - 1] / top
            # nvidia's packages share one folder
            if top != ".." and not (site / top).exists() and source.exists():
                (site / top).symlink_to(source)
    for kept in REPOSITORY.rglob("__pycache__/*.native.*"):  # the same sources compiled
        room, *inner = kept.relative_to(REPOSITORY).parts
        rooms = () if room == "ase_biasgrad" else (room,)
        target = site.joinpath("ase_biasgrad", *rooms, *inner)
        if target.parents[1].is_dir():
            target.parent.mkdir(exist_ok=True)
            shutil.copy(kept, target)
    return site


def fitted(name: str, seed: int = 0) -> Potential:
    """A small potential whose bias has an offset for each composition."""
    potential = small_potential(name, seed)
    molecules = ("C2H6O", "Cu", "CH4", "H2O", "O")
    counts = np.array([np.bincount(symbols2numbers(m), minlength=N_ELEMENTS) for m in molecules])
    potential.bias.fit(np.array([-4217.3, -0.1, 2.7, 31.3, 7.77]), counts, "median")
    assert potential.bias.zero == "per-composition"
    return potential


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Checkpoints and a dataset, made by the full install."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("schnet", "painn", "tensornet"):
        save_checkpoint(folder / f"{name}.safetensors", fitted(name))
    save_checkpoint(folder / "second.safetensors", fitted("tensornet", seed=1))
    save_checkpoint(folder / "convolution.safetensors", small_potential("graph_convolution"))
    with DatasetWriter(folder / "data.h5") as writer:
        for atoms in (ethanol(), copper()):
            writer.append(
                atoms.numbers, atoms.positions, energy=1.0, cell=atoms.cell.array, pbc=atoms.pbc
            )
    return folder


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python with the small install alone."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


def test_nothing_else_is_there(site, folder):
    for package in ("torch", "schnetpack", "pytorch_lightning", "e3nn", "pooch", "yaml", "tqdm"):
        assert "ModuleNotFoundError" in run(site, folder, "-c", f"import {package}").stderr


SCRIPT = """
import ase.io
from ase import units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase_biasgrad import BiasGradCalculator, Dataset

print(len(Dataset("data.h5")), len(ase.io.read("data.h5", index=":")[0]))
for name in ("schnet", "painn", "tensornet"):
    for atoms in (molecule("CH3CH2OH"), bulk("Cu", cubic=True)):
        atoms.rattle(0.05)
        atoms.calc = BiasGradCalculator(f"{name}.safetensors", device="cpu")
        BFGS(atoms, logfile=None).run(steps=3)
        VelocityVerlet(atoms, 0.5 * units.fs).run(5)
        print(atoms.calc.engine, abs(atoms.get_forces()).max() < 10)
"""


def test_relaxation_and_md_of_every_engine(site, folder):
    done = run(site, folder, "-c", SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.split("\n")
    assert lines[0] == "2 9"
    assert [line.split()[1] for line in lines[1:7]] == ["True"] * 6
    assert "reference" not in done.stdout


BITS = """
import hashlib, sys, warnings
from ase.build import bulk, molecule
from ase_biasgrad import BiasGradCalculator
import numpy as np

warnings.simplefilter("ignore")
committee = ["tensornet.safetensors", "second.safetensors", "painn.safetensors"]
for checkpoint in ("schnet.safetensors", "painn.safetensors", committee):
    for dtype in ("float32", "float64"):
        calc = BiasGradCalculator(checkpoint, device="cpu", dtype=dtype)
        structures = [molecule("CH3CH2OH"), molecule("O2"), bulk("Cu", cubic=True) * (3, 2, 2)]
        results = calc.evaluate_many(structures)
        for atoms in structures:
            atoms.rattle(0.05)
            atoms.calc = calc
            atoms.get_forces()
            results.append(dict(calc.results))
        bits = b"".join(np.asarray(r[key]).tobytes() for r in results for key in sorted(r))
        print(calc.engine, calc.biases[0].zero, hashlib.sha256(bits).hexdigest())
print("torch" in sys.modules)
"""


def test_results_are_those_with_torch_bit_for_bit(site, folder):
    without = run(site, folder, "-c", BITS)
    assert without.returncode == 0, without.stderr[-3000:]
    *ours, last = without.stdout.splitlines()
    assert last == "False"
    code = f"import torch\ntorch.set_num_threads(2)\n{BITS}"
    beside = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert beside.returncode == 0, beside.stderr[-3000:]
    assert beside.stdout.splitlines() == [*ours, "True"]
    assert len(set(ours)) == len(ours) == 6
    assert all(line.startswith("cpu per-composition") for line in ours)


WITH_TORCH = """
from ase_biasgrad import BiasGradCalculator

for make in (
    lambda: BiasGradCalculator("convolution.safetensors"),
    lambda: BiasGradCalculator("schnet.safetensors", engine="reference"),
    lambda: BiasGradCalculator("schnet.safetensors", device="cuda"),
):
    try:
        make()
    except ModuleNotFoundError as error:
        print(error)
"""


def test_what_needs_torch_says_so(site, folder):
    done = run(site, folder, "-c", WITH_TORCH)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    needs = ("'graph_convolution'", "by autograd", "device='cuda'")
    for line, what in zip(lines, needs, strict=True):
        assert what in line
        assert line.endswith("needs the package torch, which is not installed: `pip install torch`")


def test_commands_of_md(site, folder):
    biasgrad = ("-c", "from ase_biasgrad.cli import main; main()")
    md = ["md", "CH3CH2OH", "-c", "schnet.safetensors", "-o", "md.traj", "--steps", "5"]
    relax = ["relax", "CH3CH2OH", "-c", "tensornet.safetensors", "-o", "x.xyz", "--fmax", "50"]
    for arguments in (md, relax, ["info", "painn.safetensors"], ["data", "info", "data.h5"]):
        done = run(site, folder, *biasgrad, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "md.traj").exists()
    assert (folder / "x.xyz").exists()


def test_a_command_whose_package_is_missing_says_what_to_install(site, folder):
    (folder / "config.yaml").write_text("data: {path: data.h5, train: 1, validation: 1}")
    (folder / "model").write_bytes(b"")
    convert = "convert model -o y.safetensors --energy-unit eV --trust-pickle"
    for arguments in (["train", "config.yaml", "-o", "run"], convert.split()):
        done = run(site, folder, "-c", "from ase_biasgrad.cli import main; main()", *arguments)
        assert done.returncode == 1, done.stderr
        assert "pip install ase-biasgrad" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
