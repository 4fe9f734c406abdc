"""Three-way splits: sizes, shares, files of indices, few frames."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ase_biasgrad.data.splits import PARTS, random_split, read_indices, split_dataset


def sizes_of(split) -> list[int]:
    return [len(split[part]) for part in PARTS]


def split_of(n, train, validation, test=None, **more):
    sizes = {"train": train, "validation": validation, "test": test}
    return split_dataset(n, sizes, more.pop("seed", 0), **more)


@pytest.mark.parametrize(
    ("n", "sizes", "expected"),
    [
        (200, (0.8, 0.1, None), [160, 20, 20]),
        (200, (0.8, 0.1, 0.05), [160, 20, 10]),
        (200, (0.8, 0.1, 0), [160, 20, 0]),
        (2000, (950, 50, None), [950, 50, 50]),
        (1020, (950, 50, None), [950, 50, 20]),  # what is left
        (2000, (950, 50, 1000), [950, 50, 1000]),
        (10, (0.8, 0.1, None), [8, 1, 1]),
        (5, (0.8, 0.1, None), [3, 1, 1]),  # shares below a frame take one
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (2, (0.8, 0.1, None), [1, 1, 0]),
    ],
)
def test_sizes(n, sizes, expected):
    split, _ = split_of(n, *sizes)
    assert sizes_of(split) == expected
    together = np.concatenate(list(split.values()))
    assert len(np.unique(together)) == len(together)
    assert set(together.tolist()) <= set(range(n))


@given(st.integers(6, 200), st.integers(0, 20))
def test_a_test_part_leaves_training_and_validation_as_they_were(n, seed):
    sizes = {"train": n // 2, "validation": 2}
    split, _ = split_dataset(n, {**sizes, "test": None}, seed)
    before = random_split(n, sizes, seed)
    for part in sizes:
        np.testing.assert_array_equal(split[part], before[part])
    assert len(split["test"]) == min(2, n - n // 2 - 2)


def test_blocks_of_consecutive_frames():
    for seed in range(5):
        split, _ = split_of(100, 0.6, 0.2, contiguous=True, seed=seed)
        assert sizes_of(split) == [60, 20, 20]
        assert all((np.diff(frames) == 1).all() for frames in split.values())


@pytest.mark.parametrize(
    ("n", "sizes", "notes"),
    [
        (200, (0.8, 0.1, None), []),
        (200, (180, 20, 0), []),
        (200, (180, 20, None), ["no test part: the others take all 200 frames"]),
        (50, (0.8, 0.1, None), [r"few frames for validation \(5\) and test \(5\)"]),
        (5, (0.8, 0.1, None), ["shares of 5 frames .*: 3 train, 1 validation, 1 test", "few"]),
    ],
)
def test_notes(n, sizes, notes):
    _, found = split_of(n, *sizes)
    assert len(found) == len(notes)
    for note, pattern in zip(found, notes, strict=True):
        assert re.match(pattern, note), note


def test_files_of_indices(tmp_path):
    (tmp_path / "test.csv").write_text("17\n3\n40\n")
    split, _ = split_of(60, 40, 10, tmp_path / "test.csv")
    assert split["test"].tolist() == [3, 17, 40]
    assert sizes_of(split) == [40, 10, 3]
    assert not set(split["test"].tolist()) & set(split["train"].tolist())
    np.savez(tmp_path / "split.npz", train_idx=[1, 2], val_idx=[5], test_idx=np.arange(8, 12))
    split, _ = split_of(60, *[tmp_path / "split.npz"] * 3)
    assert [split[part].tolist() for part in PARTS] == [[1, 2], [5], [8, 9, 10, 11]]
    (tmp_path / "split.json").write_text(json.dumps({k: v.tolist() for k, v in split.items()}))
    again, _ = split_of(60, tmp_path / "split.json", 0.5, tmp_path / "split.json")
    assert again["train"].tolist() == [1, 2]
    assert len(again["validation"]) == 30
    # a file for validation decides the size of the test part
    split, _ = split_of(60, 40, tmp_path / "test.csv")
    assert sizes_of(split) == [40, 3, 3]


def test_files_that_cannot_be_used_are_named(tmp_path):
    file = tmp_path / "index.csv"
    for text, message in (
        ("1\n2\n1\n", "names a frame twice"),
        ("1\n60\n61\n", "names the frames 60, 61; there are 0…59"),
        ("-1\n", "names the frames -1"),
        ("1.5\n", "holds no frame indices of a test part"),
        ("", "holds no frame indices of a test part"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"index\.csv: {message}"):
            split_of(60, 40, 10, file)
    (tmp_path / "split.json").write_text('{"train": [1]}')
    with pytest.raises(ValueError, match="no frame indices of a test part: 'test'"):
        read_indices(tmp_path / "split.json", "test", 60)
    file.write_text("4\n5\n")
    with pytest.raises(ValueError, match="train, test: their files share the frames 4, 5"):
        split_of(60, file, 10, file)
    with pytest.raises(ValueError, match="need 61 frames, and there are 58"):
        split_of(60, 51, 10, file)
    with pytest.raises(ValueError, match="train part of 60 frames would be empty"):
        split_of(60, 0, 10)
