"""Frames known again by the digests of their structures."""

import numpy as np
import pytest
from ase.io import write
from conftest import copper, ethanol
from helpers import write_clusters

from ase_biasgrad.data import seen
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.data.seen import (
    frame_digests,
    lists_all,
    recorded_digests,
    seen_record,
    with_more,
)
from ase_biasgrad.data.writer import DatasetWriter


def dataset_of(path, structures) -> Dataset:
    with DatasetWriter(path) as writer:
        for atoms in structures:
            cell = {"cell": atoms.cell.array, "pbc": atoms.pbc}
            writer.append(atoms.numbers, atoms.positions, energy=0.0, **cell)
    return Dataset(path)


def test_a_frame_is_known_after_a_way_through_a_text_file(tmp_path):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", frames=40, periodic=True))
    # backwards, and with another order of groups
    write(tmp_path / "x.extxyz", [dataset[k].atoms() for k in range(39, -1, -1)])
    accepting = ImportOptions(accept=True)
    import_files([tmp_path / "x.extxyz"], tmp_path / "y.h5", accepting, progress=False)
    digests = frame_digests(dataset, np.arange(40))
    assert len(np.unique(digests)) == 40
    again = frame_digests(Dataset(tmp_path / "y.h5"), np.arange(40))
    np.testing.assert_array_equal(again, digests[::-1])
    np.testing.assert_array_equal(frame_digests(dataset, np.array([7, 3])), digests[[7, 3]])


def test_what_makes_another_structure(tmp_path):
    strained, element, moved, open_ = copper(), copper(), copper(), copper()
    strained.set_cell(1.001 * strained.cell.array)
    element.numbers[2] = 28
    moved.positions[1, 2] += 0.004
    open_.pbc = (True, True, False)
    others = [copper(), strained, element, moved, open_]
    digests = frame_digests(dataset_of(tmp_path / "x.h5", others), np.arange(5))
    assert len(np.unique(digests)) == 5
    # the box around a molecule is none of its structure
    boxed = ethanol()
    boxed.set_cell([20, 20, 20])
    same = frame_digests(dataset_of(tmp_path / "y.h5", [ethanol(), boxed]), np.arange(2))
    assert same[0] == same[1]


def test_records_are_compact_and_list_at_most_so_many(monkeypatch):
    digests = np.random.default_rng(0).integers(0, 2**48, 1000, np.uint64)
    record = seen_record(np.concatenate([digests, digests[:10]]))
    assert record["frames"] == 1000
    assert len(record["digests"]) == 8 * 1000
    np.testing.assert_array_equal(recorded_digests(record), np.sort(digests))
    assert lists_all(record)
    monkeypatch.setattr(seen, "MOST", 100)
    record = seen_record(digests)
    assert record["frames"] == 1000
    np.testing.assert_array_equal(recorded_digests(record), np.sort(digests)[:100])
    assert not lists_all(record)
    more = with_more(record, np.concatenate([np.sort(digests)[:5], np.array([3], np.uint64)]))
    assert more["frames"] == 1001
    assert recorded_digests(more)[0] == 3
    assert not lists_all(more)
    for damaged in ({}, {"digests": 3}, {"digests": "AAA"}, {"digests": "AAAA"}):
        with pytest.raises(ValueError, match="seen in training is damaged"):
            recorded_digests(damaged)
