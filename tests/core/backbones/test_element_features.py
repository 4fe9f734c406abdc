"""Element features against the periodic table."""

import numpy as np
import pytest
from ase.data import atomic_numbers

from ase_biasgrad.backbones.element_features import (
    BLOCKS,
    FEATURES,
    block,
    electronegativity,
    element_table,
    group,
    row,
)


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("H", (1, 1, "s")),
        ("He", (18, 1, "s")),
        ("Li", (1, 2, "s")),
        ("B", (13, 2, "p")),
        ("O", (16, 2, "p")),
        ("Ne", (18, 2, "p")),
        ("Mg", (2, 3, "s")),
        ("Al", (13, 3, "p")),
        ("Ca", (2, 4, "s")),
        ("Sc", (3, 4, "d")),
        ("Cu", (11, 4, "d")),
        ("Zn", (12, 4, "d")),
        ("Ga", (13, 4, "p")),
        ("Xe", (18, 5, "p")),
        ("Ba", (2, 6, "s")),
        ("La", (3, 6, "f")),
        ("Yb", (3, 6, "f")),
        ("Lu", (3, 6, "d")),
        ("Hf", (4, 6, "d")),
        ("Hg", (12, 6, "d")),
        ("Pb", (14, 6, "p")),
        ("U", (3, 7, "f")),
        ("Lr", (3, 7, "d")),
        ("Og", (18, 7, "p")),
    ],
)
def test_places_in_the_table(symbol, expected):
    number = np.array([atomic_numbers[symbol]])
    assert (int(group(number)[0]), int(row(number)[0]), BLOCKS[block(number)[0]]) == expected


def test_sizes_of_blocks_and_groups():
    numbers = np.arange(1, 119)
    assert np.bincount(block(numbers)).tolist() == [14, 36, 40, 28]
    assert np.bincount(group(numbers), minlength=19)[1:].tolist() == (
        [7, 6, 32] + [4] * 9 + [6] * 5 + [7]
    )


def test_one_hot_and_binned_columns():
    table = element_table()
    assert table.shape == (119, 18 + 7 + 4 + 3 * 10)
    assert set(np.unique(table)) == {0, 1}
    one_each = element_table(("group", "row", "block", "mass"))[1:]
    assert (one_each.sum(axis=1) == 4).all()
    # outside of the f block every element is told from every other by group and row
    places = element_table(("group", "row"))[1:]
    assert len(np.unique(places[block(np.arange(1, 119)) < 3], axis=0)) == 90
    assert len(np.unique(element_table(("element",))[1:], axis=0)) == 118
    masses = element_table(("mass",), bins=10)
    # logarithmic: 1 to 294 in ten steps of a factor of 1.76
    assert [int(masses[z].argmax()) for z in (1, 2, 6, 29, 118)] == [0, 2, 4, 7, 9]


def test_elements_without_a_value_are_in_no_bin():
    assert np.isnan(electronegativity(np.array([2, 10, 18]))).all()
    assert electronegativity(np.array([9, 55])).tolist() == [3.98, 0.79]
    table = element_table(("electronegativity",), bins=10)
    assert table[2].sum() == 0
    assert table[9].tolist() == [0] * 9 + [1]  # fluorine has the largest
    assert element_table(("radius",))[118].sum() == 0


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match="colour"):
        element_table(("group", "colour"))
    with pytest.raises(ValueError, match="bins=0"):
        element_table(FEATURES, bins=0)
    with pytest.raises(ValueError, match="cannot tell atoms apart"):
        element_table(())
