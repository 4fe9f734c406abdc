"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# networks of a few thousand weights are slower on two threads than on one, here and in the
# processes that tests start; set before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import settings

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.calculators.engines.base import Structure
from ase_biasgrad.potential import Potential

# the same examples in every run; `--hypothesis-profile=default` looks for new ones
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Small:
    """A small network of one architecture; a new backbone enters the tests here."""

    arguments: dict[str, Any]
    other: dict[str, Any]  # arguments, some not the defaults, for what must keep all of them
    extensive: bool = True  # the others predict one number for a structure of any size


SIZES = {"features": 16, "interactions": 2, "cutoff": 4.0, "radial_functions": 12}
TRANSFORMER = {"channels": 8, "layers": 2, "heads": 2, "cutoff": 4.0, "radial_functions": 6}
# scales give forces of the order of 1 eV/Å
SMALL = {
    "schnet": Small({**SIZES, "scale": 2.0}, {"radial_basis": "bessel"}),
    "painn": Small({**SIZES, "scale": 0.05}, {"radial_basis": "bessel"}),
    "graph_convolution": Small({**SIZES, "scale": -1.0}, {"bins": 7}),
    "atomgraph": Small(
        {"hidden_layers": 2, "cutoff": 4.0, "decay": "exp_decay", "scale": -40.0},
        {"bins": 7},
        extensive=False,
    ),
    "se3_transformer": Small({**TRANSFORMER, "scale": -5.0}, {"odd_paths": True}),
    "tensornet": Small({**SIZES, "scale": -20.0}, {"radial_functions": 7}),
}
BACKBONES = tuple(SMALL)
EXTENSIVE = tuple(name for name, small in SMALL.items() if small.extensive)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real reference data; tests that need it are skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the reference data (shared/data) is not beside the repository")
    return SHARED_DATA


def small_potential(name: str = "schnet", seed: int = 0, **arguments) -> Potential:
    """A potential with random weights; forces are of the order of 1 eV/Å."""
    torch.manual_seed(seed)
    backbone = build_backbone(name, {**SMALL[name].arguments, **arguments})
    if name == "atomgraph":  # as initialised it hardly feels where the atoms of an element are
        for layer in backbone.convolutions:
            layer.convolution.weight.data *= 10
    return Potential(backbone, elements=[1, 6, 8, 29])


def ethanol(seed: int = 0) -> Atoms:
    """Ethanol away from its minimum."""
    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(seed).normal(0, 0.05, (9, 3))
    return atoms


def copper(seed: int = 0) -> Atoms:
    """A sheared copper cell smaller than the cutoff, atoms off their sites."""
    atoms = bulk("Cu", cubic=True)
    random = np.random.default_rng(seed)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + random.normal(0, 0.03, (3, 3))), scale_atoms=True
    )
    atoms.positions += random.normal(0, 0.05, (4, 3))
    return atoms


def mixed() -> Atoms:
    """Copper without periodicity along its second cell vector."""
    atoms = copper()
    atoms.pbc = (True, False, True)
    return atoms


def structure_of(atoms: Atoms) -> Structure:
    """What engines are given."""
    return Structure(
        atoms.numbers.astype(np.int64),
        atoms.positions.copy(),
        atoms.cell.array.copy(),
        atoms.pbc.copy(),
    )


def run_script(folder: Path, script: str | Path, *arguments: str) -> str:
    """What a script says that runs in `folder`; it must end well."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
