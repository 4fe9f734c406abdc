"""Committees in one file."""

import numpy as np
import pytest
from conftest import ethanol, small_potential

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calibration import Calibration, Scale, atom_spread
from ase_biasgrad.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ase_biasgrad.committee_file import read_committee, save_committee
from ase_biasgrad.training_range import TrainingRange

SCALES = Calibration(
    {0: Scale(1.0, 2.0), 1: Scale(1.5, 3.0), 6: Scale(2.0, 4.0), 8: Scale(2.5, 5.0)},
    Scale(3.0, 6.0),
    20,
)


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    paths = []
    for seed in range(3):
        seen = TrainingRange({(1, 6): 0.5 + 0.01 * seed}).record()
        paths.append(folder / f"{seed}.safetensors")
        save_checkpoint(paths[-1], small_potential("schnet", seed), {"range": seen})
    return paths


def test_members_and_scales_are_read_as_they_were_written(members, tmp_path):
    path = tmp_path / "c.safetensors"
    save_committee(path, members, SCALES, {"why": "test"})
    found = read_committee(path)
    assert found.calibration == SCALES
    assert found.metadata["note"] == {"why": "test"}
    for member, source in zip(found.members, members, strict=True):
        expected = load_checkpoint(source)
        assert member.sha256 == expected.sha256
        assert member.metadata == expected.metadata


def test_a_checkpoint_is_a_committee_of_one(members):
    assert len(read_committee(members[0]).members) == 1


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.ExtrapolationWarning")
def test_the_calculator_scales_spreads_and_gives_intervals(members, tmp_path):
    path, atoms = tmp_path / "c.safetensors", ethanol()
    save_committee(path, members, SCALES)
    arguments = {"device": "cpu", "dtype": "float64"}
    plain, ours = (BiasGradCalculator(c, **arguments) for c in (members, path))
    for calc in (plain, ours):
        calc.get_property("forces", atoms)
    raw = plain.results
    for name in ("energy", "forces"):
        assert np.array_equal(ours.results[name], raw[name])
    factor = {1: 1.5, 6: 2.0, 8: 2.5}
    by_atom = np.array([factor[z] for z in atoms.numbers])[:, None]
    assert np.allclose(ours.results["forces_std"], by_atom * raw["forces_std"])
    half_width = 2 * by_atom * atom_spread(raw["forces_std"])[:, None]
    assert np.allclose(ours.results["forces_interval"], np.repeat(half_width, 3, axis=1))
    assert ours.results["energy_std"] == pytest.approx(3 * raw["energy_std"])
    assert ours.results["energy_interval"] == pytest.approx(6 * raw["energy_std"])
    assert "forces_interval" not in raw
    assert "forces_interval" not in ours.export_properties()
    many = ours.evaluate_many([atoms])[0]
    assert np.allclose(many["forces_interval"], ours.results["forces_interval"])
    both = BiasGradCalculator([path, members[0]], **arguments)  # another committee
    both.get_property("forces", atoms)
    assert "forces_interval" not in both.results
    assert len(both.biases) == 4


def test_what_is_no_committee_is_refused(members, tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match="two members"):
        save_committee(path, members[:1])
    save_committee(path, members)
    with pytest.raises(CheckpointError, match="holds a committee"):
        load_checkpoint(path)
    content = path.read_bytes()
    for place in (9, len(content) // 3, len(content) - 5):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_committee(path)
    path.write_bytes(
        content.replace(b'committee\\", \\"version\\": 1', b'committee\\", \\"version\\": 3')
    )
    with pytest.raises(CheckpointError, match="version"):
        read_committee(path)
