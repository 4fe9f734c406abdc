"""Error norms, EFwT and what energies say about forces."""

import numpy as np
import pytest
from ase import units

from ase_biasgrad import metrics

RANDOM = np.random.default_rng(0)
GROUPS = np.repeat([0, 1, 2], 40)
PREDICTED = RANDOM.normal(0, 0.3, 120) + np.array([-4000.0, 70.0, 3.0])[GROUPS]


def test_error_norms():
    norms = metrics.error_norms(np.array([[3.0, -4.0], [0.0, 0.0]]))
    assert (norms.mae, norms.rmse, norms.largest, norms.count) == (1.75, 2.5, 4.0, 4)
    assert np.isnan(metrics.error_norms(np.zeros(0)).mae)


def test_efwt_is_strict_and_needs_both_halves():
    energy = np.array([0.0, 0.02, -0.0199, 0.0])
    forces = np.array([0.0, 0.0, 0.03, 0.0299])
    found = metrics.efwt(energy, forces)
    assert (found.both, found.energy, found.forces) == (0.5, 0.75, 0.75)


def test_a_kcal_is_that_of_ase():
    assert abs(metrics.EV_TO_KCAL_MOL - units.mol / units.kcal) < 1e-12


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.0, "consistent"),
        (-1.0, "sign error"),
        (units.mol / units.kcal, "kcal/mol"),
        (units.mol / units.kJ, "kJ/mol"),
        (1 / units.Hartree, "Hartree"),
        (3.0, "scale error"),
    ],
)
def test_the_slope_within_compositions_tells_units_and_signs(factor, verdict):
    offsets = np.array([1e4, -50.0, 7.0])[GROUPS]  # any bias
    relation = metrics.energy_relation(factor * PREDICTED + offsets, PREDICTED, GROUPS)
    assert abs(relation.slope / factor - 1) < 1e-9
    assert verdict in relation.verdict


def test_a_model_that_has_not_learned_its_forces_accuses_nobody():
    soft = metrics.energy_relation(1.15 * PREDICTED, PREDICTED, GROUPS, force_error=0.15)
    assert "consistent" in soft.verdict
    assert "scale error" in metrics.energy_relation(1.15 * PREDICTED, PREDICTED, GROUPS).verdict
    untrained = metrics.energy_relation(-PREDICTED, PREDICTED, GROUPS, force_error=0.9)
    assert untrained.verdict == "no verdict: the model's forces are off by 90 % themselves"
    few = metrics.energy_relation(-PREDICTED[:4], PREDICTED[:4], GROUPS[:4])
    assert few.verdict == "no verdict from 4 frames (10 are needed)"


def test_energies_that_do_not_follow_are_told():
    unrelated = np.random.default_rng(1).normal(size=120)
    assert "hardly follow" in metrics.energy_relation(unrelated, PREDICTED, GROUPS).verdict
    alone = metrics.energy_relation(PREDICTED, PREDICTED, np.arange(120))
    assert "do not vary" in alone.verdict


def test_energies_that_are_not_finite_get_no_verdict_but_that():
    broken = PREDICTED.copy()
    broken[7] = np.nan
    relation = metrics.energy_relation(PREDICTED, broken, GROUPS)
    assert "predicted energy of frame 7" in relation.verdict
    assert np.isnan(relation.slope)


def test_centred_groups_have_mean_zero():
    values = metrics.centred(PREDICTED, GROUPS)
    assert max(abs(values[g == GROUPS].mean()) for g in range(3)) < 1e-10
    np.testing.assert_allclose(np.diff(values[:40]), np.diff(PREDICTED[:40]), atol=1e-11)
