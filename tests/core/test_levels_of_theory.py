"""Levels of theory that differ by composition alone, or by the geometry too."""

import math

import numpy as np
import pytest
from scipy.stats import f as f_distribution
from test_bias import counts_of
from test_bias_errors import CHO, TRUE, rows_of

from ase_biasgrad import levels_of_theory
from ase_biasgrad.bias import N_ELEMENTS
from ase_biasgrad.cli.levels import told
from ase_biasgrad.levels_of_theory import compare_levels

NAMES = ["C–H distances", "O–H distances"]


def two_levels(random, shift=(0.0, 0.0, 0.0), bend=0.0):
    """One model's residuals to two levels, on different frames of the same compositions."""
    rows = rows_of(12)
    counts = np.tile(np.repeat(rows, 15, axis=0), (2, 1))
    levels = np.repeat(["pbe", "r2scan"], len(counts) // 2)
    features = random.normal(size=(len(counts), 2)) + counts[:, [6]]
    second = levels == "r2scan"
    # the model's own error depends on the geometry, and is that of both
    residuals = counts[:, CHO] @ TRUE + 0.1 * features[:, 0] + random.normal(0, 0.05, len(counts))
    residuals += second * (counts[:, CHO] @ np.array(shift) + bend * features[:, 1])
    return residuals, counts, levels, features


def test_levels_that_differ_by_composition_alone_are_told():
    given = two_levels(np.random.default_rng(0), shift=(0.5, -20.0, 3.0))
    found = compare_levels(*given, NAMES)
    assert found.by_composition_alone
    assert found.elements.probability < 1e-6
    assert found.geometry_rms < 1e-3
    assert found.geometry.degrees == (2, 360 - 24 - 4)
    shift = (found.biases["r2scan"].per_element - found.biases["pbe"].per_element).numpy()
    np.testing.assert_allclose(shift[list(CHO)], [0.5, -20.0, 3.0], atol=0.1)


def test_a_dependence_on_the_geometry_is_found_and_named():
    given = two_levels(np.random.default_rng(0), shift=(0.5, -20.0, 3.0), bend=0.1)
    found = compare_levels(*given, NAMES)
    assert found.by_composition_alone is False
    assert found.geometry.probability == 0.001  # none of 999 permutations
    assert max(found.dependence, key=found.dependence.get) == "O–H distances"
    sizes = given[1].sum(axis=1)
    # half of ±0.05 by frame: a common dependence takes the mean of the two levels
    assert found.geometry_rms == pytest.approx(0.05 * np.sqrt(np.mean(1 / sizes**2)), rel=0.15)


def test_equal_levels_are_rejected_as_often_as_the_probability_says():
    random, below = np.random.default_rng(1), []
    for _ in range(60):
        found = compare_levels(*two_levels(random), NAMES)
        below.append([found.elements.probability < 0.2, found.geometry.probability < 0.2])
    assert np.mean(below, axis=0) == pytest.approx([0.2, 0.2], abs=0.15)


def test_what_cannot_be_tested_is_unknown():
    water = counts_of({1: 2, 8: 1}, {1: 2, 8: 1})
    found = compare_levels(
        np.array([-1.0, -2.0]), water, np.array(["a", "b"]), np.zeros((2, 1)), ["x"]
    )
    assert found.by_composition_alone is None
    assert math.isnan(found.elements.probability)
    assert found.biases["b"].per_element[1] == pytest.approx(-0.8)
    with pytest.raises(ValueError, match="need two to compare, and all frames are 'a'"):
        compare_levels(np.zeros(2), water, np.array(["a", "a"]), np.zeros((2, 1)), ["x"])


def test_isolated_atoms_take_no_part_in_the_tests():
    residuals, counts, levels, features = two_levels(np.random.default_rng(0))
    atom = np.eye(N_ELEMENTS, dtype=np.int64)[[6]]
    found = compare_levels(
        np.append(residuals, 50.0),
        np.concatenate([counts, atom]),
        np.append(levels, "pbe"),
        np.concatenate([features, np.zeros((1, 2))]),
        NAMES,
        isolated=np.arange(361) == 360,
    )
    without = compare_levels(residuals, counts, levels, features, NAMES)
    assert found.geometry == without.geometry
    assert found.elements == without.elements


def share_told(comps: int, spreads, bend: float, frames: int, sets: int = 150) -> float:
    """Share of sets of compositions with these spreads in which levels are told to differ."""
    random, differ = np.random.default_rng(1), 0
    for _ in range(sets):
        kind, second = random.integers(comps, size=frames), random.choice([0, 0, 1], frames)
        spread = np.resize(spreads, comps)[kind]
        counts = np.zeros((frames, N_ELEMENTS), int)
        counts[:, 1], counts[:, 6] = 1 + kind, 2
        features = random.normal(size=(frames, len(NAMES))) * spread[:, None]
        residuals = 0.1 * spread * random.normal(size=frames) + 0.3 * features[:, 0]
        residuals += bend * second * features[:, 1]
        found = compare_levels(residuals, counts, np.array(["a", "b"])[second], features, NAMES)
        differ += found.geometry.probability < 0.01
    return differ / sets


@pytest.mark.parametrize(
    ("comps", "spreads", "frames"), [(3, [5.0, 1.0, 1.0], 90), (30, [1.0, 5.0], 150)]
)
def test_compositions_of_different_spread_are_no_difference_of_levels(comps, spreads, frames):
    """The F distribution would tell 15 % of the sets of 30 compositions to differ."""
    assert share_told(comps, spreads, 0.0, frames) < 0.03


def test_a_dependence_is_found_through_compositions_of_different_spread():
    assert share_told(3, [5.0, 1.0, 1.0], 0.1, 90, sets=60) > 0.6  # 0.3 without weights


def test_levels_without_a_common_composition_are_not_tested_on_the_geometry():
    residuals, counts, _, features = two_levels(np.random.default_rng(0), bend=0.1)
    levels = np.where(counts[:, 1] > 4, "pbe", "r2scan")
    found = compare_levels(residuals, counts, levels, features, NAMES)
    assert math.isfinite(found.geometry.f)
    assert math.isnan(found.geometry.probability)
    assert found.by_composition_alone is None
    assert found.summary()["geometry"]["p"] is None
    assert "p not determined" in "\n".join(told(found))
    assert "have the same composition to tell" in told(found)[-1]


def test_many_frames_take_fewer_permutations(monkeypatch):
    """Permutations run in blocks, and on features that say the same."""
    monkeypatch.setattr(levels_of_theory, "PRODUCTS", 10**7)
    monkeypatch.setattr(levels_of_theory, "BLOCK", 10**6)
    random = np.random.default_rng(0)
    counts = np.repeat(counts_of({1: 2, 8: 1}), 10_000, axis=0)
    levels = random.choice(["a", "b"], 10_000)
    x = random.normal(size=(10_000, 2))
    features = np.column_stack([x, x.sum(axis=1), x, x[:, 0] - x[:, 1]])
    y = x[:, 0] + random.normal(size=10_000)
    names = list("uvwxyz")
    same = compare_levels(y, counts, levels, features, names).geometry
    other = compare_levels(y + 0.1 * x[:, 1] * (levels == "b"), counts, levels, features, names)
    assert same.degrees == (2, 10_000 - 2 - 4)
    # the F distribution is right for one composition of normal noise
    assert same.probability == pytest.approx(f_distribution.sf(same.f, *same.degrees), abs=0.1)
    assert other.geometry.probability == 1 / 200
