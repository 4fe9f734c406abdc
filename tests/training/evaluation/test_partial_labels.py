"""Evaluation on frames of which each lacks another label."""

import numpy as np
import pytest
from conftest import copper, ethanol, small_potential

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.graph import graph_from_atoms
from ase_biasgrad.training.evaluation.evaluate import evaluate, table
from ase_biasgrad.training.frames.device_frames import DeviceFrames


def test_errors_are_those_of_the_labels_that_are_there(tmp_path):
    potential = small_potential().double()
    added = {"energy": [0.1, 0.3, None, 0.5], "forces": [0.02, None, 0.04, 0.01], "stress": 0.003}
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for k, atoms in enumerate((ethanol(0), ethanol(1), copper(0), copper(1))):
            graph = graph_from_atoms(atoms, 4.0)
            found = potential.evaluate(graph, ["energy", "forces", "stress"])
            labels = {}
            if (shift := added["energy"][k]) is not None:
                labels["energy"] = float(found["energy"]) + shift
            if (shift := added["forces"][k]) is not None:
                labels["forces"] = found["forces"].numpy() + shift
            if k == 3:
                labels["stress"] = found["stress"][0].numpy() + added["stress"]
            cell = {"cell": atoms.cell.array, "pbc": atoms.pbc}
            writer.append(atoms.numbers, atoms.positions, **labels, **cell)
    frames = DeviceFrames(Dataset(tmp_path / "x.h5"), range(4), 4.0)
    report = evaluate(potential, frames)
    assert report.labelled == {"energy": 3, "forces": 3, "stress": 1}
    assert report.energy.mae == pytest.approx(0.3)
    assert report.energy_per_atom.mae == pytest.approx((0.4 / 9 + 0.5 / 4) / 3)
    assert report.forces.mae == pytest.approx((9 * 0.02 + 4 * 0.04 + 4 * 0.01) / 17)
    assert report.forces_by_element["Cu"].mae == pytest.approx(0.025)
    assert report.stress.mae == pytest.approx(0.003)
    assert report.by_composition["C2H6O"].forces.count == 27
    assert report.efwt.forces == 1.0  # of the two frames that have both labels
    assert report.efwt.both == 0.0
    assert "4 frames (energy in 3, forces in 3, stress in 1); energy zero" in table(report)
    assert all(np.isfinite(values).all() for values in report.force_pairs)
