"""QM9 from the command line, from an extract to the table."""

import numpy as np
from ase.build import molecule
from ase.io import read, write
from helpers import biasgrad

NAMES = ("CH4", "H2O", "NH3", "CH3OH", "CH3CH2OH", "C6H6", "HCN", "H2CO", "C2H2", "C2H4", "CH3CN")


def test_from_an_extract_to_the_table(tmp_path):
    molecules = [molecule(name) for name in NAMES]
    np.savez(
        tmp_path / "extract.npz",
        id=np.arange(len(NAMES)),
        n_atoms=[len(atoms) for atoms in molecules],
        Z=np.concatenate([atoms.numbers for atoms in molecules]),
        R_micro=np.concatenate([1e6 * atoms.positions for atoms in molecules]).astype(int),
        E_elec_hartree=-np.arange(1.0, 1 + len(NAMES)),
        mu_debye=[0, 1.8, 1.4, 1.6, 1.5, 0, 3.0, 2.4, 0, 0, 4.0],
    )
    assert "11 frames" in biasgrad(tmp_path, "data", "qm9", "-o", "q.h5", "--from", "extract.npz")
    training = (
        "--train", 6, "--validation", 2, "--epochs", 2, "--layers", 1, "--channels", 4,
        "--heads", 2, "--max-degree", 1, "--batch-size", 3,
    )  # fmt: skip
    said = biasgrad(tmp_path, "benchmark", "qm9", "q.h5", "--property", "mu", *training)
    row = next(line for line in said.splitlines() if line.startswith("| mu (D)"))
    assert "| 0.051 | 6 | 2 |" in row
    (network,) = (tmp_path / "qm9").glob("*.safetensors")
    write(tmp_path / "a.extxyz", molecules)
    said = biasgrad(tmp_path, "predict", network, "a.extxyz", "-o", "p.extxyz")
    assert "11 frames with predicted_mu" in said
    assert np.ptp([atoms.info["predicted_mu"] for atoms in read(tmp_path / "p.extxyz", ":")]) > 0
    again = biasgrad(tmp_path, "benchmark", "qm9", "q.h5", "--property", "mu", *training)
    assert row in again
    assert "is there already" in again
    seeded = biasgrad(tmp_path, "benchmark", "qm9", "q.h5", "--property", "mu", *training,
                      "--cutoff", 2.0)  # fmt: skip
    assert "| cutoff None |" in seeded
    assert "| cutoff 2.0 |" in seeded
    said = biasgrad(tmp_path, "benchmark", "qm9", "q.h5", "--property", "gap", *training, code=1)
    assert "has no label 'gap'" in said
    last = biasgrad(tmp_path, "benchmark", "qm9", "q.h5")
    assert row.rpartition("|")[0].rpartition("|")[0] in last
