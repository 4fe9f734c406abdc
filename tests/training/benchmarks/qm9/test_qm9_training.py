"""A reduced training on QM9 beats what the composition alone can tell."""

import dataclasses

import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy.spatial.transform import Rotation

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.sets.qm9 import import_qm9
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.benchmarks.loop import TrainingOptions, load_network
from ase_biasgrad.training.benchmarks.qm9 import table as qm9_benchmark
from ase_biasgrad.training.benchmarks.qm9.network import QM9Network, QM9Options
from ase_biasgrad.training.benchmarks.qm9.training import (
    collate,
    composition_regression,
    graph_sample,
    mean_absolute_error,
    predict,
    read_samples,
    train_network,
)

SMALL = QM9Options(layers=2, channels=8, heads=2, max_degree=2)
DIPOLE = dataclasses.replace(SMALL, readout="dipole")
MOLECULES = ("CH3CH2OH", "H2O", "CH4", "C6H6", "CH3CN", "NH3", "CH3OH")


def sample(name: str, cutoff: float | None = None, target: float = 0.0):
    atoms = molecule(name)
    return graph_sample(atoms.numbers, atoms.positions, target, cutoff)


def test_edges_are_bonds_or_pairs_within_a_distance():
    ethanol = sample("CH3CH2OH")
    assert ethanol.bonded.all()
    assert ethanol.edge_index.shape == (2, 16)  # 8 bonds
    assert sample("C6H6").edge_index.shape == (2, 24)
    near = sample("CH3CH2OH", cutoff=2.0)
    assert near.bonded.sum() == 16
    assert np.linalg.norm(near.vectors, axis=1).max() < 2.0
    assert sample("CH3CH2OH", cutoff=99.0).edge_index.shape == (2, 72)
    positions = molecule("CH3CH2OH").positions
    centre, neighbour = near.edge_index
    np.testing.assert_allclose(near.vectors, positions[neighbour] - positions[centre], atol=1e-6)


@pytest.mark.parametrize("options", [SMALL, DIPOLE], ids=["mean", "dipole"])
def test_the_network_is_invariant_and_keeps_molecules_apart(options):
    torch.manual_seed(0)
    network = QM9Network(options).eval()
    molecules = [molecule(name) for name in MOLECULES]
    samples = [graph_sample(m.numbers, m.positions, 0.0, None) for m in molecules]
    rotation = Rotation.from_euler("xyz", [1, 2, 3]).as_matrix()
    turned = [
        graph_sample(m.numbers, m.positions @ rotation.T + [3, -2, 1], 0.0, None) for m in molecules
    ]
    with torch.no_grad():
        together = network(collate(samples))
        torch.testing.assert_close(network(collate(turned)), together, atol=1e-5, rtol=1e-4)
        for one, expected in zip(samples, together, strict=True):
            torch.testing.assert_close(network(collate([one]))[0], expected, atol=1e-5, rtol=1e-4)
        assert together.std() > 1e-3
        strange = dataclasses.replace(samples[1], numbers=np.array([14, 1, 1]))
        with pytest.raises(ValueError, match=r"atomic numbers \[14\]"):
            network(collate([strange]))


def test_a_dipole_is_that_of_charges_and_vectors_of_the_atoms():
    torch.manual_seed(0)
    network = QM9Network(DIPOLE, mean=2.0, deviation=1.5).eval()
    samples = [sample(name) for name in MOLECULES]
    batch = collate(samples)
    with torch.no_grad():
        found = network.predict(batch).numpy()
        features = network.transformer(
            {0: torch.cat([(batch.numbers[:, None] == network.elements),
                           batch.numbers[:, None] / 10], dim=1).float()[:, None, :]},
            batch.vectors, batch.edge_index, batch.bonded[:, None].float(),
        )  # fmt: skip
        charges = network.readout(features[0][:, 0])[:, 0].double().numpy()
    vectors = features[1][:, :, 0].double().numpy()
    for k, name in enumerate(MOLECULES):
        own = (batch.molecule == k).numpy()
        q = charges[own] - charges[own].mean()
        expected = 1.5 * np.linalg.norm(q @ molecule(name).positions + vectors[own].sum(axis=0))
        assert found[k] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    polar, apolar = (
        found[MOLECULES.index("CH3CN")],
        found[[MOLECULES.index(m) for m in ("CH4", "C6H6")]],
    )
    assert polar > 0.01
    np.testing.assert_allclose(apolar, 0.0, atol=2e-5)  # by symmetry, with any weights


def test_composition_regression_is_exact_for_sums_over_atoms():
    samples = [sample(name, target=3.0 + 2.0 * len(molecule(name))) for name in MOLECULES]
    assert composition_regression(samples, samples) < 1e-6


def test_missing_labels_are_named(tmp_path):
    with DatasetWriter(tmp_path / "d.h5") as writer:
        writer.append([1, 1], [[0, 0, 0], [0, 0, 0.7]], labels={"gap": 1.0})
    with pytest.raises(DataError, match=r"no label 'mu'; it has \['gap'\]"):
        read_samples(Dataset(tmp_path / "d.h5"), [0], "mu", None)
    with pytest.raises(ValueError, match="no property 'dipole'"):
        qm9_benchmark.run(
            tmp_path / "d.h5", "dipole", SMALL, TrainingOptions(), {}, None, tmp_path, print
        )
    with pytest.raises(ValueError, match="is the property mu, not gap"):
        qm9_benchmark.run(
            tmp_path / "d.h5", "gap", DIPOLE, TrainingOptions(), {}, None, tmp_path, print
        )


@pytest.fixture(scope="module")
def extract(shared_data, tmp_path_factory):
    """A dataset of every 64th labelled molecule of the reference extract."""
    arrays = dict(np.load(shared_data / "qm9" / "qm9_128744.npz"))
    chosen = np.zeros(len(arrays["id"]), bool)
    chosen[np.flatnonzero(np.isfinite(arrays["mu_debye"]))[::64]] = True
    of_atoms = np.repeat(chosen, arrays["n_atoms"])
    folder = tmp_path_factory.mktemp("qm9")
    part = {
        name: values[of_atoms if name in ("Z", "R_micro") else chosen]
        for name, values in arrays.items()
    }
    np.savez(folder / "extract.npz", **part)
    import_qm9(folder / "qm9.h5", folder / "extract.npz", progress=False)
    return folder / "qm9.h5"


@pytest.mark.parametrize(
    ("network", "share"), [(SMALL, 0.9), (DIPOLE, 0.45)], ids=["mean", "dipole"]
)
def test_a_reduced_training_beats_the_composition(network, share, extract, tmp_path):
    lines: list[str] = []
    options = TrainingOptions(epochs=6, batch_size=16, learning_rate=2e-3, ema_decay=0.98)
    sizes = {"train": 900, "validation": 100, "test": 300}
    result = qm9_benchmark.run(extract, "mu", network, options, sizes, None, tmp_path, lines.append)
    assert result.options["sizes"] == sizes
    assert len(lines) == 6
    test, composition = result.figures["test"], result.figures["composition"]
    assert 0.8 < composition < 1.5  # D
    assert test < share * composition
    said = qm9_benchmark.table(extract, tmp_path)
    assert f"| mu (D) | {test:.3f} | {composition:.3f} | 0.051 | 900 |" in said


def test_a_failure_after_the_training_loses_nothing(tmp_path, monkeypatch):
    data, lines = tmp_path / "d.h5", []
    with DatasetWriter(data) as writer:
        for name in MOLECULES * 3:
            atoms = molecule(name)
            atoms.rattle(0.02, seed=len(lines))
            writer.append(atoms.numbers, atoms.positions, labels={"mu": float(len(atoms))})
    sizes, options = {"train": 12, "validation": 5}, TrainingOptions(epochs=2, batch_size=4)

    def run(**changes):
        changed = dataclasses.replace(options, **changes)
        return qm9_benchmark.run(data, "mu", SMALL, changed, sizes, None, tmp_path, lines.append)

    def broken(*parts):
        raise np.linalg.LinAlgError("singular")

    with monkeypatch.context() as patch:
        patch.setattr(qm9_benchmark, "composition_regression", broken)
        with pytest.raises(np.linalg.LinAlgError):
            run()
    assert len(lines) == 2
    result = run()
    assert len(lines) == 2  # not trained again
    assert result.figures["tested_on"] == 4
    (file,) = tmp_path.glob("*.safetensors")
    network, training = load_network(file, QM9Network)
    assert training["options"]["property"] == "mu"
    assert training["validation"] == result.figures["validation"]
    samples = read_samples(Dataset(data), range(21), "mu", None)
    parts = qm9_benchmark.split(21, sizes, options.seed)
    found = mean_absolute_error(network, [samples[k] for k in parts["test"]])
    assert found == pytest.approx(result.figures["test"], rel=1e-4)
    run(learning_rate=1e-4)  # beside the first, and the table says so
    table = qm9_benchmark.table(data, tmp_path)
    assert len(lines) == 4
    assert "learning_rate 0.002 |" in table
    assert "learning_rate 0.0001 |" in table


def test_splits_are_shuffled_and_take_the_rest():
    parts = qm9_benchmark.split(50, {"train": 30, "validation": 5}, seed=1)
    assert len(parts["test"]) == 15
    assert sorted(np.concatenate(list(parts.values()))) == list(range(50))
    assert not np.array_equal(parts["train"], np.arange(30))
    again = qm9_benchmark.split(50, {"train": 30, "validation": 5, "test": 4}, seed=1)
    assert len(again["test"]) == 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_trains_as_the_cpu_does():
    samples = [sample(name, target=float(len(name))) for name in MOLECULES]
    options = TrainingOptions(epochs=2, batch_size=3, learning_rate=1e-3)
    cpu, cuda = (train_network(SMALL, options, samples, samples, device=d) for d in ("cpu", "cuda"))
    assert cuda.validation == pytest.approx(cpu.validation, rel=1e-2)
    structures = [(molecule(n).numbers, molecule(n).positions) for n in MOLECULES]
    found = predict(cuda.network, structures, None)
    np.testing.assert_allclose(found, predict(cpu.network, structures, None), rtol=1e-2)
