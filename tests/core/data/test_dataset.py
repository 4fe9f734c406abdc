"""Datasets: round trips, bounded memory, and refusals that say what is wrong."""

import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.data import writer as module
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.splits import random_split
from ase_biasgrad.data.writer import DatasetWriter

GOOD = {"numbers": np.array([8, 1]), "positions": np.array([[0, 0, 0], [0, 0, 1.0]]), "energy": 1.0}


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
            frame["stress"] = random.normal(size=6)
        frame["labels"] = {"dipole": random.normal(size=3), "gap": random.normal()}
        frames.append(frame)
    return frames


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.booleans(), st.sampled_from([1, 3000, 2**25]))
def test_round_trip(tmp_path_factory, seed, n, in_memory, buffered):
    path = tmp_path_factory.mktemp("data") / "x.h5"
    module.BYTES_BUFFERED, kept = buffered, module.BYTES_BUFFERED
    frames = random_frames(seed, n)
    with DatasetWriter(path, {"source": "test"}) as writer:
        for frame in frames:
            writer.append(**frame)
    module.BYTES_BUFFERED = kept
    dataset = Dataset(path, in_memory)
    assert len(dataset) == n
    for frame, read in zip(frames, dataset, strict=True):
        np.testing.assert_array_equal(read.numbers, frame["numbers"])
        np.testing.assert_array_equal(read.positions, frame["positions"])
        np.testing.assert_array_equal(read.forces, frame["forces"])
        assert read.energy == frame["energy"]
        np.testing.assert_array_equal(read.cell, frame.get("cell", np.zeros((3, 3))))
        np.testing.assert_array_equal(read.stress, frame.get("stress"))
        assert read.labels["gap"] == frame["labels"]["gap"]
        np.testing.assert_array_equal(read.labels["dipole"], frame["labels"]["dipole"])
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


def test_rows_of_a_large_group_come_in_the_order_asked_for(tmp_path):
    positions = np.random.default_rng(0).normal(0, 0.05, (5000, 3, 3)) + np.arange(3)[:, None]
    with DatasetWriter(tmp_path / "x.h5") as writer:
        writer.append(np.array([8, 1, 1]), positions, energy=np.arange(5000.0))
    (group,) = Dataset(tmp_path / "x.h5").groups()
    for rows in (np.array([4999, 0, 0]), np.random.default_rng(1).permutation(5000), np.array([])):
        rows = rows.astype(int)
        np.testing.assert_array_equal(group.read("positions", rows), positions[rows])
    np.testing.assert_array_equal(np.concatenate(list(group.blocks("energy"))), np.arange(5000))
    with pytest.raises(IndexError, match=r"rows 0…4999"):
        group.read("energy", np.array([5000]))


@pytest.mark.parametrize("kinds", [1, 8])
def test_writing_takes_memory_for_the_buffer_only(tmp_path, monkeypatch, kinds):
    monkeypatch.setattr(module, "BYTES_BUFFERED", 2**17)
    positions = np.arange(20)[:, None] * np.ones((1, 3))
    peaks = []
    for name, frames in (("short", 600), ("long", 2400)):
        tracemalloc.start()
        with DatasetWriter(tmp_path / name) as writer:
            for k in range(frames):
                writer.append(np.full(20, 1 + k % kinds), positions, forces=positions)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        dataset = Dataset(tmp_path / name)
        assert len(dataset) == frames
        assert all(dataset[k].numbers[0] == 1 + k % kinds for k in range(0, frames, 97))
    content = 2400 * 20 * 6 * 8
    assert peaks[1] < content / 2
    assert peaks[1] < 1.5 * peaks[0]


def test_small_groups_take_little_room(tmp_path):
    random = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for _ in range(300):
            numbers = random.choice([1, 6, 7, 8], 12)
            writer.append(numbers, np.arange(12)[:, None] * np.ones(3), energy=0.0)
    assert len(Dataset(tmp_path / "x.h5").groups()) == 300
    assert (tmp_path / "x.h5").stat().st_size < 300 * 3000


def test_molecules_without_stress_stand_beside_crystals_with_it(tmp_path):
    with DatasetWriter(tmp_path / "x.h5") as writer:
        writer.append(**GOOD)
        writer.append(**GOOD, cell=np.eye(3) * 5, pbc=[True] * 3, stress=np.ones(6))
    dataset = Dataset(tmp_path / "x.h5")
    assert dataset.has("energy")
    assert not dataset.has("stress")
    assert dataset[0].stress is None
    assert (dataset[1].stress == 1).all()


def test_a_damaged_value_is_noticed(tmp_path):
    with DatasetWriter(tmp_path / "x.h5") as writer:
        random = np.random.default_rng(0)
        block = np.arange(3)[:, None] + random.normal(0, 0.05, (500, 3, 3))
        writer.append(np.array([8, 1, 1]), block)
    with h5py.File(tmp_path / "x.h5") as file:
        (group,) = file["frames"].values()
        chunk = group["positions"].id.get_chunk_info(0)
    content = bytearray((tmp_path / "x.h5").read_bytes())
    content[module.HEADER_SIZE + chunk.byte_offset + chunk.size // 2] ^= 1
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.h5: positions of .*: damaged"):
        Dataset(tmp_path / "x.h5")[0]


def test_the_hash_sees_content_and_nothing_else(tmp_path):
    def written(name: str, energy: float, note: str) -> str:
        with DatasetWriter(tmp_path / name, {"note": note}) as writer:
            writer.append(np.array([1]), np.zeros((1, 3)), energy=energy)
        return Dataset(tmp_path / name).hash()

    assert written("a", 1.0, "x") == written("b", 1.0, "y")
    assert written("c", 1.0, "x") != written("d", 1.0 + 1e-15, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((3, 3))}, r"src: positions of frame 1: has shape \(3, 3\)"),
        ({"positions": np.zeros((2, 3))}, "frame 1: atoms 0 and 1 lie on top of each other"),
        ({"energy": np.inf}, "energy of frame 1: holds NaN or infinity"),
        ({"forces": np.array([[0, 0, np.nan], [0, 0, 0]])}, "forces of frame 1: holds NaN"),
        ({"energy": 1 + 1j}, "energy of frame 1: holds complex128"),
        ({"stress": np.zeros(6)}, "stress of frame 1: the frame is not periodic"),
        ({"labels": {"cell": 1.0}}, "cell of frame 1: a label cannot have this name"),
        ({"labels": {"gap": 1 + 1j}}, "gap of frame 1: holds complex128"),
        (
            {"labels": {"gap": ["wide", "no"]}},
            r"gap of frame 1: has shape \(2,\), expected one text",
        ),
        ({"numbers": np.array([8, 1.5])}, "numbers of frame 1: .* are not integers"),
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
    for size in (-3, 2.5, float("nan")):
        with pytest.raises(ValueError, match=r"size of the train part is .*; give a number or"):
            random_split(10, {"train": size}, 0)
    assert len(random_split(10, {"train": 1.0}, 0)["train"]) == 10
    assert len(random_split(10, {"train": 1}, 0)["train"]) == 1


@pytest.mark.parametrize("buffered", [1, 2**25])
def test_labels_missing_in_a_block_are_missing_in_their_frames(tmp_path, monkeypatch, buffered):
    monkeypatch.setattr(module, "BYTES_BUFFERED", buffered)
    positions = np.arange(3)[:, None] + np.random.default_rng(0).normal(0, 0.05, (9, 3, 3))
    energy, forces = np.arange(9.0), np.ones((9, 3, 3))
    energy[[1, 4]], forces[[4, 7]] = np.nan, np.nan
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for rows in (slice(0, 5), slice(5, 9)):
            writer.append([8, 1, 1], positions[rows], energy=energy[rows], forces=forces[rows])
    dataset = Dataset(tmp_path / "x.h5")
    assert [frame.energy for frame in dataset] == [0, None, 2, 3, None, 5, 6, 7, 8]
    assert [k for k, frame in enumerate(dataset) if frame.forces is None] == [4, 7]
    assert (dataset.count("energy"), dataset.count("forces")) == (7, 7)
    assert not dataset.has("energy")
    np.testing.assert_array_equal([frame.positions for frame in dataset], positions)
    assert [frame.atoms().calc is None for frame in dataset].count(True) == 1
