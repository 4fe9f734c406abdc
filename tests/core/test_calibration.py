"""Scales of spreads: what they cover, and how they are kept."""

import numpy as np
import pytest

from ase_biasgrad.calibration import Calibration, Scale, atom_spread, calibrated, scale_of


def drawn(seed: int, frames: int = 60, atoms: int = 8, members: int = 4, over: float = 2.5):
    """Numbers, errors and spreads of a committee that errs `over` times as much as it spreads."""
    random = np.random.default_rng(seed)
    numbers = np.tile(np.repeat([1, 8], atoms // 2), frames)
    truth = (
        np.exp(random.normal(0, 0.5, len(numbers)))[:, None] * np.where(numbers == 8, 3, 1)[:, None]
    )
    sample = random.normal(0, 1, (members, len(numbers), 3)) * truth
    errors = random.normal(0, 1, (len(numbers), 3)) * truth * over
    energy = random.normal(0, 1, (members, frames))
    return (
        *(numbers, errors, sample.std(axis=0, ddof=1)),
        *(random.normal(0, over, frames), energy.std(axis=0, ddof=1)),
    )


def test_standard_deviations_are_those_of_the_errors():
    numbers, errors, spreads, energy, energy_spread = drawn(0)
    found = calibrated(numbers, errors, spreads, energy, energy_spread, 60)
    assert set(found.forces) == {0, 1, 8}
    for z in (1, 8):
        assert found.forces[z].std == pytest.approx(2.5, rel=0.15)
    assert found.energy is not None
    assert found.energy.std == pytest.approx(2.5, rel=0.3)


@pytest.mark.parametrize("members", [2, 4])
@pytest.mark.parametrize("frames", [12, 39, 40, 100])
def test_standard_deviations_have_no_bias(members, frames):
    """However noisy a spread of few members is, in the mean over drawings."""
    scales = []
    for seed in range(60):
        numbers, errors, spreads, *of_energies = drawn(seed, frames, members=members)
        found = calibrated(numbers, errors, spreads, *of_energies, frames)
        scales.append([found.forces[1].std, scale_of(*of_energies).std])
    of_forces, of_energies = np.mean(scales, axis=0)
    assert of_forces == pytest.approx(2.5, rel=0.05)
    assert of_energies == pytest.approx(2.5, rel=0.06)


def test_a_few_frames_far_out_do_not_decide():
    scales = []
    for seed in range(20):
        numbers, errors, spreads, *of_energies = drawn(seed)
        far = np.arange(16)  # atoms, of two frames in sixty
        errors[far], spreads[far] = 1000 * errors[far], 100 * spreads[far]
        scales.append(calibrated(numbers, errors, spreads, *of_energies, 60).forces[1].std)
    assert np.mean(scales) == pytest.approx(2.5, rel=0.05)  # 25 by sums over all


def test_errors_that_are_zero_make_no_scale():
    with pytest.raises(ValueError, match="not zero"):
        scale_of(np.zeros(30), np.ones(30))


def test_intervals_cover_nine_tenths_of_other_errors():
    numbers, errors, spreads, energy, energy_spread = drawn(1, 200)
    found = calibrated(numbers, errors, spreads, energy, energy_spread, 200)
    others, new, wide, *_ = drawn(2, 200)
    _, half_width = found.of_forces(others, wide)
    for z in (1, 8):
        own = others == z
        assert 0.87 < np.mean(np.abs(new[own]) <= half_width[own]) < 0.93


def test_the_quantile_is_conformal():
    """With n errors it is the ⌈0.9 (n + 1)⌉-th smallest, which guarantees the coverage."""
    errors = np.arange(1.0, 20.0)  # 19
    assert scale_of(errors, np.ones(19)).interval == 18.0
    assert scale_of(errors[:3], np.ones(3)).interval == 3.0


def test_elements_of_few_errors_get_the_scale_of_all():
    numbers, errors, spreads, energy, energy_spread = drawn(3)
    numbers[:3] = 6
    found = calibrated(numbers, errors, spreads, energy, energy_spread, 60)
    assert 6 not in found.forces
    std, _ = found.of_forces(np.array([6, 92]), np.ones((2, 3)))
    assert np.allclose(std, found.forces[0].std)


def test_a_record_is_read_as_it_was_written():
    found = Calibration({0: Scale(1.5, 2.0), 8: Scale(3.0, 4.0)}, Scale(1.0, 2.0), 12)
    assert Calibration.from_record(found.record()) == found
    assert Calibration.from_record({**found.record(), "energy": None}).energy is None
    assert found.record()["forces"]["O"] == {"std": 3.0, "interval": 4.0}


@pytest.mark.parametrize(
    "change",
    [
        {"forces": {}},
        {"forces": {"all": {"std": -1.0, "interval": 1.0}}},
        {"forces": {"all": {"std": float("nan"), "interval": 1.0}}},
        {"forces": {"all": {"std": 1.0}}},
        {"forces": [1]},
        {"frames": "many"},
        {"energy": 3},
    ],
)
def test_a_damaged_record_is_refused(change):
    record = Calibration({0: Scale(1.5, 2.0)}, None, 12).record()
    with pytest.raises(ValueError, match="calibration is damaged"):
        Calibration.from_record({**record, **change})


def test_members_that_agree_exactly_cannot_be_calibrated():
    with pytest.raises(ValueError, match="members that differ"):
        scale_of(np.ones(5), np.zeros(5))


def test_the_spread_of_an_atom_turns_with_it():
    from scipy.spatial.transform import Rotation

    members = np.random.default_rng(0).normal(size=(4, 5, 3))
    turned = members @ Rotation.from_rotvec([0.3, 1.0, -0.4]).as_matrix()
    one, other = (atom_spread(m.std(axis=0, ddof=1)) for m in (members, turned))
    assert np.allclose(one, other)
