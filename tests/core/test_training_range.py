"""The range that a potential was trained on: pairs, record, committees."""

import numpy as np
import pytest

from ase_biasgrad.training_range import TrainingRange, joined, range_of_pairs

WATER = TrainingRange({(1, 1): 1.45, (1, 8): 0.93}, 12.5)


def test_the_closest_pair_of_each_two_elements_is_found_in_any_order():
    first, second = np.array([8, 1, 1, 8, 1]), np.array([1, 8, 1, 8, 1])
    found = range_of_pairs(first, second, np.array([1.0, 0.9, 1.6, 2.8, 1.5]), 3.0)
    assert found.closest == {(1, 1): 1.5, (1, 8): 0.9, (8, 8): 2.8}
    assert found.largest_force == 3.0


def test_a_record_is_read_as_it_was_written():
    assert WATER.record()["closest"] == {"H-H": 1.45, "H-O": 0.93}
    assert TrainingRange.from_record(WATER.record()) == WATER
    unknown = TrainingRange({(1, 1): 1.0})
    assert TrainingRange.from_record(unknown.record()) == unknown


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"closest": {"H-Xyz": 1.0}, "largest_force": 1.0},
        {"closest": {"H": 1.0}, "largest_force": 1.0},
        {"closest": {"H-H": -1.0}, "largest_force": 1.0},
        {"closest": {"H-H": "1"}, "largest_force": 1.0},
        {"closest": {"H-H": float("nan")}, "largest_force": 1.0},
        {"closest": {"H-H": 1.0}, "largest_force": True},
        {"closest": [1.0], "largest_force": 1.0},
    ],
)
def test_a_damaged_record_is_refused(record):
    with pytest.raises(ValueError, match="training range is damaged"):
        TrainingRange.from_record(record)


def test_a_table_holds_both_orders_and_what_was_not_seen():
    table = WATER.table(5.0)
    assert table[1, 8] == table[8, 1] == 0.93
    assert table[8, 8] == table[6, 1] == 5.0


def test_a_committee_saw_what_any_member_saw():
    other = TrainingRange({(1, 8): 0.9, (8, 8): 2.7}, 20.0)
    whole = joined([WATER, other])
    assert whole == TrainingRange({(1, 1): 1.45, (1, 8): 0.9, (8, 8): 2.7}, 20.0)
    assert joined([WATER, None]) is None
    assert joined([]) is None
