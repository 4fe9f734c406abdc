"""Frames appended to datasets: interrupted at any byte, read on the way, folded in."""

from __future__ import annotations

import os
import signal
import time

import h5py
import numpy as np
import pytest
from ase.build import bulk, molecule

from ase_biasgrad.data.appended import read_records
from ase_biasgrad.data.dataset import HEADER_SIZE, DataError, Dataset
from ase_biasgrad.data.digests import damages
from ase_biasgrad.data.writer import DatasetAppender, DatasetWriter


def given(k: int) -> tuple[tuple, dict]:
    """Arguments of `append` for frame k: molecules and crystals, with and without labels."""
    random = np.random.default_rng(k)
    atoms = (molecule("H2O"), molecule("CH3OH"), bulk("Cu", cubic=True))[k % 3]
    atoms.positions += random.normal(0, 0.02, atoms.positions.shape)
    labels = {"place": float(k), "source": f"level {k % 4}"}
    found = {
        "energy": random.normal(),
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "labels": labels,
    }
    if k % 5:
        found["forces"] = random.normal(size=(len(atoms), 3))
    if atoms.pbc.any():
        found["stress"] = random.normal(size=6)
    return (atoms.numbers, atoms.positions), found


def written(path, count: int):
    """A dataset written in one go."""
    with DatasetWriter(path, {"made": "by a test"}) as writer:
        for k in range(count):
            arguments, keywords = given(k)
            writer.append(*arguments, **keywords)
    return path


def append(path, places, order=()) -> None:
    with DatasetAppender(path, {"made": "by a test"}, order) as writer:
        for k in places:
            arguments, keywords = given(k)
            writer.append(*arguments, **keywords)


def append_without_end(path, places) -> None:
    """Append frames and fold nothing in, like a process that is killed."""
    with pytest.raises(KeyboardInterrupt), DatasetAppender(path, {"made": "by a test"}) as writer:
        for k in places:
            arguments, keywords = given(k)
            writer.append(*arguments, **keywords)
        raise KeyboardInterrupt


def content(path):
    with Dataset(path) as dataset:
        return dataset.hash(), dataset.provenance, [str(f.labels["source"]) for f in dataset]


@pytest.mark.parametrize("first", [0, 1, 9])
def test_a_dataset_that_grew_is_one_written_in_one_go(tmp_path, first):
    right, path = content(written(tmp_path / "right.h5", 12)), tmp_path / "x.h5"
    if first:
        written(path, first)
    append_without_end(path, range(first, 11))
    with Dataset(path) as dataset:
        assert (len(dataset), dataset.appended) == (11, 11 - first)
        for frame, k in zip(dataset, range(11), strict=True):
            (numbers, positions), labels = given(k)
            assert np.array_equal(frame.numbers, numbers)
            assert np.array_equal(frame.positions, positions)
            assert frame.energy == labels["energy"]
            assert frame.labels["source"] == labels["labels"]["source"]
            assert (frame.forces is None) == (k % 5 == 0)
    assert content(path)[0] == content(written(tmp_path / "y.h5", 11))[0]
    append(path, [11])
    assert content(path) == right
    assert damages(path) == []
    assert path.read_bytes()[HEADER_SIZE:] == (tmp_path / "right.h5").read_bytes()[HEADER_SIZE:]


def test_a_kill_at_any_byte_costs_the_frame_in_progress_alone(tmp_path):
    path, cut = tmp_path / "x.h5", tmp_path / "cut.h5"
    ends = []
    for k in range(4):
        append_without_end(path, [k])
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for size in [*range(ends[1], ends[3], 61), *(end - 1 for end in ends[1:]), *ends[1:]]:
        count = sum(end <= size for end in ends)
        # the rest is missing, or the system had not written it
        zeros = b"\0" * (ends[count] - size if count < 4 and ends[count] - size > 4 else 0)
        for left in (whole[:size], whole[:size] + zeros):
            cut.write_bytes(left)
            records, end = read_records(cut, HEADER_SIZE)
            assert (len(records), end) == (count, ends[count - 1])
    cut.write_bytes(whole[: ends[3] - 100])
    assert len(Dataset(cut)) == 3
    assert damages(cut) == []
    append(cut, [3])
    append(path, [])
    assert content(cut) == content(path)


def test_a_killed_process_has_appended_what_it_said(tmp_path):
    random = np.random.default_rng(0)
    for attempt in range(4):
        path, (reader, writer) = tmp_path / f"{attempt}.h5", os.pipe()
        if not (child := os.fork()):
            with DatasetAppender(path) as appender:
                for k in range(10**6):
                    arguments, keywords = given(k)
                    appender.append(*arguments, **keywords)
                    os.write(writer, b".")
        os.close(writer)
        os.read(reader, 1)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = 1 + len(os.read(reader, 10**6))
        os.close(reader)
        found = len(Dataset(path))
        assert said <= found <= said + 1
        append(path, range(found, found + 2))
        written(tmp_path / "right.h5", found + 2)
        assert content(path)[0] == content(tmp_path / "right.h5")[0]


def test_flipped_bits_are_found(tmp_path):
    path, flipped = tmp_path / "x.h5", tmp_path / "flipped.h5"
    written(path, 2)
    begin = path.stat().st_size
    append_without_end(path, [2, 3, 4])
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(begin, len(whole), 25):
        changed = bytearray(whole)
        changed[place] ^= 8
        flipped.write_bytes(changed)
        with pytest.raises(DataError, match=r"flipped\.h5.*behind the HDF5 part is damaged"):
            Dataset(flipped)
        assert "behind the HDF5 part is damaged" in damages(flipped)[0]
        with pytest.raises(DataError, match="damaged"), DatasetAppender(flipped):
            pass
    path.write_bytes(whole + b"something else, and more of it")
    with pytest.raises(DataError, match="record 3 behind the HDF5 part is damaged"):
        Dataset(path)


def test_frames_are_folded_in_in_the_order_of_their_labels(tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    append_without_end(one, [4, 1, 7])
    append(one, [0, 9, 2], ["place"])
    append(two, [0, 1, 2, 4, 7, 9], ["place"])
    assert [float(f.labels["place"]) for f in Dataset(one)] == [0, 1, 2, 4, 7, 9]
    assert content(one) == content(two)
    append(one, [12, 11], ["place"])
    assert [float(f.labels["place"]) for f in Dataset(one)] == [0, 1, 2, 4, 7, 9, 11, 12]
    with pytest.raises(DataError, match="rank of frame 8: is missing"):
        append(one, [13], ["rank"])


def test_readers_see_the_same_while_it_is_folded_in(tmp_path):
    path = written(tmp_path / "x.h5", 3)
    append_without_end(path, range(3, 8))
    before = Dataset(path)
    append(path, [8])
    assert [str(f.labels["source"]) for f in before] == [f"level {k % 4}" for k in range(8)]
    assert len(Dataset(path)) == 9


def test_blocks_lack_labels_where_they_lack_them(tmp_path):
    path, positions = tmp_path / "x.h5", np.arange(15.0).reshape(5, 1, 3)
    energies = np.array([1.0, np.nan, np.nan, 4.0, 5.0])
    with DatasetAppender(path) as writer:
        writer.append([1], positions, energy=energies)
        with pytest.raises(DataError, match=r"dipole of frame 6: has shape \(2,\)"):
            for shape in (3, 2):
                writer.append([1], positions[0], labels={"dipole": np.zeros(shape)})
        assert writer.frames == 6
    frames = list(Dataset(path))
    assert [frame.energy for frame in frames] == [1.0, None, None, 4.0, 5.0, None]
    assert [frame.positions[0, 0] for frame in frames] == [0, 3, 6, 9, 12, 0]


def test_what_cannot_be_appended_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = written(tmp_path / "x.h5", 3)
    before = path.read_bytes()
    with DatasetAppender(path) as writer:
        with pytest.raises(DataError, match="holds NaN"):
            writer.append([1, 1], [[0, 0, np.nan], [0, 0, 1]])
        with pytest.raises(DataError, match="source of frame 3: is text in some"):
            writer.append([1], [[0, 0, 0]], labels={"source": 3.0})
    assert path.read_bytes() == before
    with DatasetAppender(path) as writer:
        writer.append([1], [[0, 0, 0]])
        with path.open("ab") as other:
            other.write(b"x")
        with pytest.raises(DataError, match="another process changes it"):
            writer.append([1], [[0, 0, 0]])
        path.write_bytes(path.read_bytes()[:-1])
    assert len(Dataset(path)) == 4
    with pytest.raises(DataError, match="no HDF5 file"), DatasetAppender(__file__):
        pass
    with DatasetAppender(tmp_path / "none.h5"):
        pass
    assert not (tmp_path / "none.h5").exists()


def test_files_of_early_versions_are_written_anew_first(tmp_path):
    path, early = written(tmp_path / "x.h5", 3), tmp_path / "early.h5"
    with h5py.File(path) as new, h5py.File(early, "w", userblock_size=HEADER_SIZE) as old:
        for name, value in new.attrs.items():
            old.attrs[name] = value
        new.copy("frames", old)
    assert content(early) == content(path)
    append(early, [3])
    append(path, [3])
    assert content(early) == content(path)
    assert damages(early) == []
