"""Which shapes are recorded and kept; recording itself needs a GPU (`test_cuda.py`)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ase_biasgrad.cuda_graphs import Recordings, bucket


@given(st.integers(0, 10**7), st.integers(1, 300))
def test_a_bucket_is_at_most_an_eighth_too_large(count, smallest):
    size = bucket(count, smallest)
    assert size >= max(count, smallest)
    assert size == smallest or size <= max(count + 1, 9 / 8 * count)
    assert bucket(size, smallest) == size


def test_buckets_are_few():
    assert len({bucket(count, 1) for count in range(1000, 2001)}) == 9


def test_a_shape_runs_once_then_is_recorded_and_replayed():
    did: list[str] = []

    def capture(run):
        did.append("capture")
        return lambda: did.append("replay")

    recordings: Recordings[list[int]] = Recordings(capture)
    for _ in range(3):
        recording = recordings.find((2,), lambda held: True, list)
        recordings.run(recording, lambda: did.append("run"))
    assert did == ["run", "capture", "replay", "replay"]
    assert recordings.captures == 1


def test_recordings_grow_with_what_they_hold_and_old_shapes_go():
    recordings: Recordings[int] = Recordings(lambda run: run, most_shapes=3, most_atoms=1000)

    def capacity_for(atoms: int, edges: int) -> int:
        return recordings.find((atoms, 1), lambda room: room >= edges, lambda: edges).buffers

    assert [capacity_for(2, edges) for edges in (5, 4, 7, 6)] == [5, 5, 7, 7]
    for atoms in range(3, 9):
        capacity_for(atoms, 1)
    assert list(recordings._of) == [(6, 1), (7, 1), (8, 1)]
    assert capacity_for(2, 3) == 3  # made anew
    capacity_for(1001, 1)
    capacity_for(3, 1)
    assert list(recordings._of) == [(3, 1)]


def test_new_memory_is_taken_only_once_the_old_is_free():
    alive: list[int] = []

    class Memory:
        def __init__(self, room: int) -> None:
            self.room = room
            alive.append(room)
            assert len(alive) == 1

        def __del__(self) -> None:
            alive.remove(self.room)

    recordings: Recordings[Memory] = Recordings(lambda run: run)
    for room in (5, 9):
        recordings.find(
            (2,), lambda held, room=room: held.room >= room, lambda room=room: Memory(room)
        )
    assert alive == [9]
    with pytest.raises(RuntimeError, match="out of memory"):
        recordings.find((2,), lambda held: False, out_of_memory)
    assert alive == []


def out_of_memory():
    raise RuntimeError("out of memory")
