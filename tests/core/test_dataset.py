"""Datasets: round trips, bounded memory, and refusals that say what is wrong."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad import dataset as module
from ase_biasgrad.dataset import DataError, Dataset, DatasetWriter
from ase_biasgrad.splits import random_split


def random_frames(seed: int, n: int) -> list[dict]:
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(n):
        numbers = [np.array([8, 1, 1]), np.array([1, 8, 1]), np.array([6, 1, 1, 1, 1])][
            random.integers(3)
        ]
        frame = {
            "numbers": numbers,
            "positions": np.arange(len(numbers))[:, None]
            + random.normal(0, 0.05, (len(numbers), 3)),
            "energy": -4e5 + random.normal(),
            "forces": random.normal(size=(len(numbers), 3)),
        }
        if random.integers(2):
            frame |= {"cell": np.eye(3) * 9, "pbc": [True, False, True]}
        frames.append(frame)
    return frames


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.booleans(), st.sampled_from([1, 4, 2048]))
def test_round_trip(tmp_path_factory, seed, n, in_memory, buffered):
    path = tmp_path_factory.mktemp("data") / "x.h5"
    module.FRAMES_BUFFERED, kept = buffered, module.FRAMES_BUFFERED
    frames = random_frames(seed, n)
    with DatasetWriter(path, {"source": "test"}) as writer:
        for frame in frames:
            writer.append(**frame)
    module.FRAMES_BUFFERED = kept
    dataset = Dataset(path, in_memory)
    assert len(dataset) == n
    for frame, read in zip(frames, dataset, strict=True):
        np.testing.assert_array_equal(read.numbers, frame["numbers"])
        np.testing.assert_array_equal(read.positions, frame["positions"])
        np.testing.assert_array_equal(read.forces, frame["forces"])
        assert read.energy == frame["energy"]
        np.testing.assert_array_equal(read.cell, frame.get("cell", np.zeros((3, 3))))
        assert read.pbc.tolist() == list(frame.get("pbc", [False] * 3))
    expected = np.stack([np.bincount(f["numbers"], minlength=119) for f in frames])
    np.testing.assert_array_equal(dataset.compositions(), expected)
    assert dataset.provenance == {"source": "test"}


def test_blocks_and_rows_in_any_order(tmp_path):
    positions = np.random.default_rng(0).normal(0, 0.05, (50, 3, 3)) + np.arange(3)[:, None]
    with DatasetWriter(tmp_path / "x.h5") as writer:
        writer.append(np.array([8, 1, 1]), positions, energy=np.arange(50.0))
    dataset = Dataset(tmp_path / "x.h5")
    (group,) = dataset.groups()
    rows = np.array([7, 3, 3, 49])
    np.testing.assert_array_equal(group.read("positions", rows), positions[rows])
    assert group.read("energy", rows).tolist() == [7, 3, 3, 49]
    assert group.read("forces", rows) is None
    assert dataset[-1].energy == 49


def test_writing_keeps_few_frames_in_memory(tmp_path):
    positions = np.arange(3)[:, None] * np.ones((1, 3))
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for _ in range(3 * module.FRAMES_BUFFERED):
            writer.append(np.array([8, 1, 1]), positions, energy=0.0)
            assert writer._buffered < module.FRAMES_BUFFERED
    assert len(Dataset(tmp_path / "x.h5")) == 3 * module.FRAMES_BUFFERED


def test_the_hash_sees_content_and_nothing_else(tmp_path):
    def written(name: str, energy: float, note: str) -> str:
        with DatasetWriter(tmp_path / name, {"note": note}) as writer:
            writer.append(np.array([1]), np.zeros((1, 3)), energy=energy)
        return Dataset(tmp_path / name).hash()

    assert written("a", 1.0, "x") == written("b", 1.0, "y")
    assert written("c", 1.0, "x") != written("d", 1.0 + 1e-15, "x")


GOOD = {"numbers": np.array([8, 1]), "positions": np.array([[0, 0, 0], [0, 0, 1.0]]), "energy": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((3, 3))}, r"src: positions of frame 1: has shape \(3, 3\)"),
        ({"positions": np.zeros((2, 3))}, "frame 1: atoms 0 and 1 lie on top of each other"),
        ({"energy": np.nan}, "energy of frame 1: holds NaN"),
        ({"forces": np.zeros((2, 3))}, r"frame 1: has the labels \['energy', 'forces'\]"),
        ({"energy": None}, r"frame 1: has the labels \[\]"),
        ({"numbers": np.array([8, 0])}, "no atomic numbers"),
        ({"cell": np.zeros((3, 3)), "pbc": [True] * 3}, "linearly independent"),
    ],
)
def test_bad_frames_are_named_and_leave_no_file(tmp_path, change, message):
    with (
        pytest.raises(DataError, match=message),
        DatasetWriter(tmp_path / "x.h5") as writer,
    ):
        writer.append(**GOOD, source="src")
        writer.append(**{**GOOD, **change}, source="src")
    assert list(tmp_path.iterdir()) == []


def test_atoms_may_lie_on_top_of_each_other_through_the_boundary(tmp_path):
    frame = {**GOOD, "positions": np.array([[0, 0, 0.01], [0, 0, 4.99]])}
    with (
        pytest.raises(DataError, match="on top of each other"),
        DatasetWriter(tmp_path / "x.h5") as writer,
    ):
        writer.append(**frame, cell=np.eye(3) * 5, pbc=[True] * 3)


def test_files_that_are_no_datasets_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Dataset(tmp_path / "x.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(DataError, match="no HDF5 file"):
        Dataset(tmp_path / "text.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match="no dataset of ase-biasgrad"):
        Dataset(tmp_path / "foreign.h5")
    with DatasetWriter(tmp_path / "x.h5") as writer:
        writer.append(**GOOD)
    content = (tmp_path / "x.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="truncated"):
        Dataset(tmp_path / "cut.h5")
    with pytest.raises(DataError, match="no frames"), DatasetWriter(tmp_path / "empty.h5"):
        pass
    assert not (tmp_path / "empty.h5").exists()


@given(st.integers(3, 200), st.integers(0, 99), st.booleans())
def test_splits_are_disjoint_and_seeded(n, seed, contiguous):
    sizes = {"train": 0.6, "validation": 1}
    split = random_split(n, sizes, seed, contiguous)
    assert len(split["train"]) == int(0.6 * n + 1e-9)
    assert len(np.unique(np.concatenate(list(split.values())))) == sum(map(len, split.values()))
    again = random_split(n, sizes, seed, contiguous)
    assert all(np.array_equal(split[k], again[k]) for k in split)
    if contiguous:
        assert (np.diff(split["train"]) == 1).all()


def test_impossible_splits_are_refused():
    with pytest.raises(ValueError, match="need 12 frames, and there are 10"):
        random_split(10, {"train": 10, "validation": 2}, 0)
    with pytest.raises(ValueError, match="validation part of 10 frames would be empty"):
        random_split(10, {"train": 5, "validation": 0.01}, 0)
