"""Functions that several tests share."""

from __future__ import annotations

import io
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest import mock

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones

from ase_biasgrad.cli import main
from ase_biasgrad.data.dataset import LABELS, Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.neighbours import Structure

OFFSET = -12_345.678  # eV for each atom of the clusters
NAMES = ("H2O", "CH4", "CH3OH", "CH3CH2OH", "C2H4", "C2H6", "H2CO", "CO2")


def biasgrad(folder, *arguments, code: int = 0) -> str:
    """Output of a command, run in this process, which has torch loaded already."""
    said = io.StringIO()
    line = ["biasgrad", *map(str, arguments)]
    with (
        chdir(folder),
        redirect_stdout(said),
        redirect_stderr(said),
        mock.patch.object(sys, "argv", line),
        pytest.raises(SystemExit) as end,
    ):
        main()
        sys.exit(0)
    assert (end.value.code or 0) == code, said.getvalue()
    return said.getvalue()


def write_clusters(
    path, frames: int = 60, periodic: bool = False, energies: bool = True, sizes=(5, 4, 4)
):
    """Argon-like clusters of two sizes (as oxygen and hydrogen), labelled by Lennard-Jones."""
    random = np.random.default_rng(0)
    with DatasetWriter(path) as writer:
        for k in range(frames):
            n = sizes[k % len(sizes)]
            grid = np.array([[0, 0, 0], [1.2, 0, 0], [0, 1.2, 0], [0, 0, 1.2], [1.2, 1.2, 0]])[:n]
            atoms = Atoms("OHHHH"[:n], grid + random.normal(0, 0.06, (n, 3)))
            if periodic:
                atoms.set_cell(np.eye(3) * 3.5)
                atoms.pbc = True
            atoms.calc = LennardJones(rc=3.0, smooth=True)
            writer.append(
                atoms.numbers,
                atoms.positions,
                energy=atoms.get_potential_energy() + OFFSET * n if energies else None,
                forces=atoms.get_forces(),
                stress=atoms.get_stress() if periodic else None,
                cell=atoms.cell.array,
                pbc=atoms.pbc,
            )
    return path


def write_qm7(path, count: int) -> None:
    """Write an npz file in the layout of QM7: small molecules, moved at random."""
    random = np.random.default_rng(0)
    charges, positions, energies = np.zeros((count, 9)), np.zeros((count, 9, 3)), np.zeros(count)
    for k in range(count):
        atoms = molecule(("CH4", "CH3OH", "CH3CH2OH", "H2O")[k % 4])
        charges[k, : len(atoms)] = atoms.numbers
        positions[k, : len(atoms)] = atoms.positions
        energies[k] = -50.0 * atoms.numbers.sum() + random.normal()
    positions[charges > 0] += random.normal(0, 0.03, positions[charges > 0].shape)
    np.savez(path, Z=charges, R=positions, T=energies)


def write_without(path, source, **lacking):
    """The frames of the dataset `source`, less each label in the frames that lack it."""
    with DatasetWriter(path) as writer:
        for k, frame in enumerate(Dataset(source)):
            labels = {
                name: None if k in lacking.get(name, ()) else getattr(frame, name)
                for name in LABELS
            }
            cell = {"cell": frame.cell, "pbc": frame.pbc}
            writer.append(frame.numbers, frame.positions, **labels, **cell)
    return path


def options(path, **force_stage) -> dict:
    return {
        "data": {"path": str(path), "train": 40, "validation": 10},
        "backbone": {"name": "schnet", "features": 16, "interactions": 2, "cutoff": 4.0},
        "force_stage": {
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 5e-3,
            "schedule": {"warmup_steps": 2},
            **force_stage,
        },
        "trainer": {"progress_bar": False, "accelerator": "cpu"},
    }


def fluid(n: int, seed: int, pbc=(True, True, True), sheared: bool = True) -> Structure:
    """Atoms at random places, some of them outside of the cell."""
    random = np.random.default_rng(seed)
    side = (n / 0.08) ** (1 / 3)
    cell = side * (np.eye(3) + sheared * np.triu(random.uniform(-0.3, 0.3, (3, 3)), 1))
    positions = random.uniform(-0.5, 1.5, (n, 3)) @ cell  # some outside of the cell
    return Structure(random.choice([1, 6, 8], n), positions, cell, np.array(pbc))


def as_set(i, j, shift) -> set[tuple[int, ...]]:
    """Edges as tuples; none is there twice."""
    rows = np.column_stack([i, j, shift])
    found = {tuple(row) for row in rows.tolist()}
    assert len(found) == len(rows)
    return found
