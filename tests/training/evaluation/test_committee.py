"""Committees of trained runs: calibrated on frames that none of them was trained on."""

import json

import numpy as np
import pytest
import yaml
from helpers import biasgrad, options, write_clusters
from scipy.stats import spearmanr

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.committee_file import read_committee
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.training.config import ConfigError, config_from
from ase_biasgrad.training.evaluation.committee import cross_coverage, make_committee
from ase_biasgrad.training.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committee")
    write_clusters(folder / "x.h5", 80)
    found = []
    for seed in range(3):
        config = options(folder / "x.h5", epochs=6)
        config["data"] |= {"train": 40, "validation": 30, "test": 0}
        found.append(folder / f"run{seed}")
        train(config_from({**config, "seed": seed}), found[-1])
    return found


def test_spreads_are_scaled_to_errors_on_validation_frames(runs, tmp_path):
    report = make_committee(runs, tmp_path / "c.safetensors")
    split = json.loads((runs[0] / "split.json").read_text())
    dataset = Dataset(runs[0].parent / "x.h5")
    calc = BiasGradCalculator(report.path, device="cpu", dtype="float64")
    errors, std = [], []
    for frame in split["validation"]:
        atoms = dataset[frame].atoms()
        errors.append((calc.get_property("forces", atoms) - atoms.get_forces())[atoms.numbers == 8])
        std.append(calc.results["forces_std"][atoms.numbers == 8])
    errors, std = np.concatenate(errors), np.concatenate(std)
    of_atoms = np.repeat(np.mean(std**2, axis=1), 3)
    groups = min(12, errors.size // 10)
    squares = [np.array_split(values, groups) for values in (errors.ravel() ** 2, of_atoms)]
    ratios = [np.sum(e) / np.sum(s) for e, s in zip(*squares, strict=True)]
    assert np.median(np.sqrt(ratios)) == pytest.approx(1, rel=1e-3)
    assert report.errors.frames == 30
    assert read_committee(report.path).calibration == report.calibration


def test_coverage_is_that_of_frames_left_out(runs, tmp_path):
    report = make_committee(runs, tmp_path / "c.safetensors")
    assert 0.8 < report.coverage.forces < 0.98
    assert set(report.coverage.by_element) == {"H", "O"}
    assert report.coverage == cross_coverage(report.errors)


def test_the_command_writes_one_file_and_a_report(runs, tmp_path):
    said = biasgrad(tmp_path, "committee", *runs, "-o", "c.safetensors", "--report", "r")
    assert "from 30 frames" in said
    for name in ("reliability.txt", "reliability.json", "reliability.png"):
        assert (tmp_path / "r" / name).stat().st_size > 0
    biasgrad(tmp_path, "committee", *runs, "-o", "c.safetensors", code=1)
    info = json.loads(biasgrad(tmp_path, "info", "c.safetensors"))
    assert len(info["members"]) == 3
    assert info["calibration"]["frames"] == 30


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.ExtrapolationWarning")
def test_a_single_run_gets_readouts(runs, tmp_path):
    said = biasgrad(tmp_path, "committee", runs[0], "-o", "c.safetensors", "--readouts", "16")
    assert "from 30 frames" in said
    stored = read_committee(tmp_path / "c.safetensors")
    assert stored.readouts.weights.shape == (16, 8)
    assert stored.readouts.elements == (1, 8)
    info = json.loads(biasgrad(tmp_path, "info", "c.safetensors"))
    assert (info["readouts"], len(info["members"])) == (16, 1)
    calc = BiasGradCalculator(tmp_path / "c.safetensors", device="cpu", dtype="float64")
    split = json.loads((runs[0] / "split.json").read_text())
    dataset = Dataset(runs[0].parent / "x.h5")
    errors, half_widths, energies = [], [], []
    for frame in split["validation"]:
        atoms = dataset[frame].atoms()
        calc.get_property("forces_std", atoms)
        errors.append(np.abs(calc.results["forces"] - atoms.get_forces()))
        half_widths.append(calc.results["forces_interval"])
        off = abs(calc.results["energy"] - atoms.get_potential_energy())
        energies.append(off <= calc.results["energy_interval"])
    inside = np.concatenate(errors) <= np.concatenate(half_widths)
    assert 0.85 < inside.mean() < 0.95
    assert 0.85 < np.mean(energies) <= 1
    # spreads tell large errors from small ones
    size, width = np.concatenate(errors).mean(axis=1), np.concatenate(half_widths)[:, 0]
    assert spearmanr(size, width).statistic > 0.2


def test_runs_without_common_validation_frames_are_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="one run or more"):
        make_committee([], tmp_path / "c.safetensors")
    other = tmp_path / "run"
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    write_clusters(tmp_path / "y.h5", 80)
    config["data"]["path"] = str(tmp_path / "y.h5")
    train(config_from(config), other)
    with pytest.raises(ConfigError, match="same dataset"):
        make_committee([runs[0], other], tmp_path / "c.safetensors")
    (other / "potential.safetensors").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        make_committee([runs[0], other], tmp_path / "c.safetensors")
