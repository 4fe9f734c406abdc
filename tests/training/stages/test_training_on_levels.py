"""Training on two levels of theory in one dataset: `bias_stage.by`."""

import json
import re

import numpy as np
import pytest
from ase.build import molecule
from helpers import biasgrad, options

from ase_biasgrad.calculators import BiasGradCalculator
from ase_biasgrad.checkpoint import load_checkpoint, read_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.config import ConfigError, config_from
from ase_biasgrad.training.evaluation.committee import make_committee
from ase_biasgrad.training.run import train

PER_ELEMENT = {"H": 0.7, "C": 1.9, "O": -3.1}  # eV, r2scan less pbe


def write_levels(path, scale: float = 1.0, named=lambda k: ("pbe", "r2scan")[k % 2]):
    """Molecules of springs at two levels of theory, the second shifted by element and scaled.

    Frame 2k + 1 has the structure of frame 2k.
    """
    random = np.random.default_rng(0)
    with DatasetWriter(path) as writer:
        for k in range(120):
            if k % 2 == 0:
                atoms = molecule(("H2O", "CH4", "CH3OH")[k // 2 % 3])
                atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
            level = named(k)
            vectors = atoms.positions[:, None] - atoms.positions[None]
            d = np.linalg.norm(vectors, axis=2) + np.eye(len(atoms))
            energy, pull = np.sum(np.triu(d - 1.3, 1) ** 2), 2 * (d - 1.3) / d
            forces = -np.einsum("ij,ijk->ik", pull, vectors)
            if level == "r2scan":
                energy, forces = scale * energy + shift(atoms), scale * forces
            writer.append(
                atoms.numbers,
                atoms.positions,
                energy=energy - 1000.0 * len(atoms),
                forces=forces,
                labels={} if level is None else {"source": level},
            )
    return path


def shift(atoms) -> float:
    return sum(PER_ELEMENT[symbol] for symbol in atoms.symbols)


def config(path, method="auto", by="source", **force_stage):
    chosen = options(path, epochs=15, **force_stage)
    parts = {"train": 84, "validation": 18, "test": 18, "contiguous": True}
    chosen["data"] = {"path": str(path), **parts}
    return config_from({**chosen, "bias_stage": {"method": method, "by": by}})


def test_levels_that_differ_by_composition_alone_become_references(tmp_path, recwarn):
    path = write_levels(tmp_path / "x.h5")
    result = train(config(path), tmp_path / "run")
    assert not any("mixed" in str(w.message) for w in recwarn)
    assert result.levels is not None
    assert result.levels.by_composition_alone is True
    potential = load_checkpoint(result.checkpoint).potential
    assert potential.reference == "pbe"
    assert set(potential.biases()) == {"pbe", "r2scan"}
    summary = potential.bias.fit_report["levels"]
    assert summary == potential.references["r2scan"].fit_report["levels"]
    assert summary["by_composition_alone"]
    assert summary["geometry"]["degrees"][1] > 0

    calculators = {n: BiasGradCalculator(result.checkpoint, reference=n) for n in summary["names"]}
    data, split = Dataset(path), json.loads((tmp_path / "run" / "split.json").read_text())
    levels, errors, differences = [], [], []
    for frame in data:
        predicted = {}
        for name, calculator in calculators.items():
            atoms = frame.atoms()
            atoms.calc = calculator
            predicted[name] = atoms.get_potential_energy(), atoms.get_forces()
        assert (predicted["pbe"][1] == predicted["r2scan"][1]).all()
        levels.append(str(frame.labels["source"]))
        errors.append(predicted[levels[-1]][0] - frame.energy)
        difference = predicted["r2scan"][0] - predicted["pbe"][0]
        differences.append(difference - shift(frame.atoms()))
    noises = {name: bias.fit_report["noise"] for name, bias in potential.biases().items()}
    for name, noise in noises.items():
        trained = [errors[k] for k in split["train"] if levels[k] == name]
        assert 0 < np.sqrt(np.mean(np.square(trained))) < 1.2 * noise < 0.3, name
    assert np.abs(differences).max() < 1e-6  # of the same structures

    # errors are those of each frame with the bias of its own level
    expected = np.abs([errors[k] for k in split["test"]]).mean()
    assert result.test is not None
    assert result.test.energy is not None
    assert result.test.energy.mae == pytest.approx(expected, rel=1e-4)
    shown = biasgrad(tmp_path, "evaluate", "run", "--json", "e.json", "--device", "cpu")
    assert "energy MAE" in shown
    again = json.loads((tmp_path / "e.json").read_text())
    assert again["energy"]["mae"] == pytest.approx(expected, rel=1e-4)


def test_levels_that_differ_by_geometry_are_told(tmp_path):
    path = write_levels(tmp_path / "x.h5", scale=2.5)
    with pytest.warns(UserWarning, match=r"x\.h5: .* pbe, r2scan differ by more than composition"):
        result = train(config(path), tmp_path / "run")
    summary = load_checkpoint(result.checkpoint).potential.bias.fit_report["levels"]
    assert summary["by_composition_alone"] is False
    assert summary["geometry"]["p"] < 0.01
    assert summary["geometry_rms"] > 1e-3
    assert summary["dependence"]["energy of the model"] > 1e-3


def test_the_command_shows_the_tests(tmp_path):
    write_levels(tmp_path / "x.h5", named=lambda k: ("pbe", "r2scan", "r2scan")[k // 3 % 3])
    (tmp_path / "c.yaml").write_text(
        "data: {path: x.h5, train: 84, validation: 18}\n"
        "backbone: {name: schnet, features: 16, interactions: 1, cutoff: 4.0}\n"
        "force_stage: {epochs: 1}\nbias_stage: {by: source}\n"
        "trainer: {progress_bar: false, accelerator: cpu}\n"
    )
    shown = biasgrad(tmp_path, "train", "c.yaml", "-o", "run")
    assert re.search(r"pbe: \d+ frames, 3 compositions, .*\nr2scan: \d+ frames, 3 comp", shown)
    assert "energies per element of each level against shared ones: " in shown
    assert "dependence on the geometry that is not the same for all: F(" in shown
    potential = load_checkpoint(tmp_path / "run" / "potential.safetensors").potential
    assert potential.reference == "r2scan"  # the level of most frames


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (lambda k: "pbe", r"x\.h5: all training frames are of source pbe; leave it out"),
        (lambda k: None if k == 7 else "pbe", r"x\.h5: source of frame 7 .*: missing"),
        (lambda k: ("pbe", "PBE0/TZ")[k % 2], r"x\.h5: reference='PBE0/TZ' cannot be a name"),
    ],
)
def test_labels_that_cannot_tell_levels_are_refused_before_anything_is_written(
    tmp_path, named, said
):
    path = write_levels(tmp_path / "x.h5", named=named)
    with pytest.raises(ValueError, match=said):
        train(config(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_that_contradict_levels_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"bias_stage\.by: .* force_stage\.joint"):
        config(tmp_path / "x.h5", joint={})
    with pytest.raises(ConfigError, match=r"bias_stage: by: source: efwt fits one bias for all"):
        config(tmp_path / "x.h5", method="efwt")


EXACT = {"device": "cpu", "dtype": "float64"}


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.ExtrapolationWarning")
def test_spreads_of_energies_are_scaled_to_errors_at_their_own_levels(tmp_path):
    path = write_levels(tmp_path / "x.h5")
    result = train(config(path), tmp_path / "run")
    report = make_committee([tmp_path / "run"], tmp_path / "c.safetensors")
    validation = json.loads((tmp_path / "run" / "split.json").read_text())["validation"]
    stored, dataset = read_checkpoint(result.checkpoint).potential, Dataset(path)
    calcs = {
        name: BiasGradCalculator(result.checkpoint, reference=name, repulsion=False, **EXACT)
        for name in stored.biases
    }
    errors = []
    for frame in validation:
        atoms, level = dataset[frame].atoms(), str(dataset[frame].labels["source"])
        energy = atoms.get_potential_energy()
        errors.append(calcs[level].get_potential_energy(atoms) - energy)
    np.testing.assert_allclose(report.errors.energy, errors, atol=1e-3)
    assert np.abs(errors).max() < 1  # the levels are eVs apart
