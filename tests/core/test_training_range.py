"""The range that a potential was trained on: pairs, record, committees."""

import numpy as np
import pytest

from ase_biasgrad.training_range import (
    Coordination,
    TrainingRange,
    coordination_of_pairs,
    joined,
    range_of_pairs,
)

WATER = TrainingRange({(1, 1): 1.45, (1, 8): 0.93}, 12.5)


def test_the_closest_pair_of_each_two_elements_is_found_in_any_order():
    first, second = np.array([8, 1, 1, 8, 1]), np.array([1, 8, 1, 8, 1])
    found = range_of_pairs(first, second, np.array([1.0, 0.9, 1.6, 2.8, 1.5]), 3.0)
    assert found.closest == {(1, 1): 1.5, (1, 8): 0.9, (8, 8): 2.8}
    assert found.largest_force == 3.0


def test_a_record_is_read_as_it_was_written():
    assert WATER.record()["closest"] == {"H-H": 1.45, "H-O": 0.93}
    assert TrainingRange.from_record(WATER.record()) == WATER
    wider = TrainingRange(WATER.closest, 1.0, Coordination(4.0, {(8, 1): (1.5, 2.0)}))
    assert wider.record()["coordination"] == {"cutoff": 4.0, "ranges": {"H of O": [1.5, 2.0]}}
    assert TrainingRange.from_record(wider.record()) == wider
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
        *(
            {"closest": {}, "largest_force": 1.0, "coordination": damaged}
            for damaged in (
                {"ranges": {}},
                {"cutoff": 4.0, "ranges": {"H": [0, 1]}},
                {"cutoff": 4.0, "ranges": {"H of O": [0]}},
                {"cutoff": 4.0, "ranges": {"H of O": [0, float("nan")]}},
            )
        ),
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


def test_neighbours_are_counted_smoothly():
    """Water with one bond of 1.45 covalent radii, where half a neighbour is left."""
    numbers, bond = np.array([8, 1, 1]), 0.66 + 0.31
    first, second = np.array([0, 1, 0, 2, 1, 2]), np.array([1, 0, 2, 0, 2, 1])
    distances = np.array([0.97, 0.97, 1.45 * bond, 1.45 * bond, 1.6, 1.6])
    found = coordination_of_pairs(numbers, first, second, distances, np.array([1, 8]), 5.0).ranges
    assert found[8, 1] == pytest.approx((1.5, 1.5))
    assert found[1, 8] == pytest.approx((0.5, 1.0))
    assert found[1, 1] == found[8, 8] == (0, 0)
    short = coordination_of_pairs(numbers, first, second, distances, np.array([1]), 1.3).ranges
    assert short[8, 1][0] < 1.5  # all that counts is within the cutoff


def test_limits_leave_room_for_long_dynamics():
    seen = Coordination(4.0, {(8, 1): (1.0, 2.0)})
    low, high = seen.limits(np.array([1, 8]), np.array([1]))
    assert low.tolist() == [[-np.inf], [0.5]]
    assert high.tolist() == [[np.inf], [2.5]]


def test_members_that_counted_alike_saw_together():
    one, two = (TrainingRange({}, 1.0, Coordination(4.0, {(8, 1): r})) for r in ((1, 2), (0, 1)))
    assert joined([one, two]).coordination.ranges == {(8, 1): (0, 2)}
    other = TrainingRange({}, 1.0, Coordination(5.0, {(8, 1): (1, 2)}))
    assert joined([one, other]).coordination is None
    assert joined([one, TrainingRange({})]).coordination is None
