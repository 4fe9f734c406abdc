"""The repulsion of nuclei: its values, its derivatives, and where it ends."""

import numpy as np
import pytest
from ase.data import covalent_radii

from ase_biasgrad.calculators.repulsion import FULL_BELOW, repulsion, repulsion_ranges

PAIRS = [(1, 1), (6, 1), (8, 8), (14, 29)]


def at(first: int, second: int, distances, ranges: float):
    d = np.atleast_1d(np.asarray(distances, float))
    return repulsion(np.full(len(d), first), np.full(len(d), second), d, np.full(len(d), ranges))


def test_inside_it_is_that_of_ziegler_biersack_and_littmark():
    """The equation of LAMMPS's `pair_style zbl`, written out once more for C–O at 0.4 Å."""
    x = 0.4 / (0.46850 / (6**0.23 + 8**0.23))
    phi = sum(
        c * np.exp(-d * x)
        for c, d in ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
    )
    value, _, _ = at(6, 8, 0.4, 2.0)
    assert value[0] == pytest.approx(14.399645 * 48 / 0.4 * phi, rel=1e-6)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_derivatives_are_those_of_the_value(first, second):
    d, h = np.linspace(0.3, 2.2, 60), 1e-5
    _, slope, curvature = at(first, second, d, 2.0)
    plus, minus = at(first, second, d + h, 2.0), at(first, second, d - h, 2.0)
    scale = np.abs(slope).max()
    assert np.abs((plus[0] - minus[0]) / (2 * h) - slope).max() < 1e-7 * scale
    assert np.abs((plus[1] - minus[1]) / (2 * h) - curvature).max() < 1e-6 * np.abs(curvature).max()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_it_is_zero_beyond_its_range_and_everything_is_continuous_there(first, second):
    assert all((values == 0).all() for values in at(first, second, [1.5, 1.6, 9.0], 1.5))
    for place in (1.5, FULL_BELOW * 1.5):
        before, after = (at(first, second, place + step, 1.5) for step in (-1e-8, 1e-8))
        for a, b in zip(before, after, strict=True):
            assert abs(a - b)[0] < 1e-3 * max(1.0, abs(a[0]))


def test_it_only_repels():
    for first, second in PAIRS:
        _, slope, _ = at(first, second, np.linspace(0.05, 1.49, 200), 1.5)
        assert (slope < 0).all()


def test_elements_not_seen_together_repel_at_a_bond():
    closest = np.full((119, 119), 5.0)
    closest[1, 8] = closest[8, 1] = 0.9
    ranges = repulsion_ranges(closest, 5.0)
    assert ranges[1, 8] == 0.9
    assert ranges[8, 8] == pytest.approx(2 * covalent_radii[8])
