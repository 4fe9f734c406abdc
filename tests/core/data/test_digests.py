"""Digests of a dataset's content find every changed value and say where it is."""

import h5py
import numpy as np
import pytest
from helpers import biasgrad, write_clusters

from ase_biasgrad.data.dataset import HEADER_SIZE, DataError, Dataset
from ase_biasgrad.data.digests import damages
from ase_biasgrad.data.writer import DatasetWriter


def write_large(path):
    """Frames of water in chunks of 1024 rows, and one of hydrogen in one piece."""
    random = np.random.default_rng(0)
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]]) + random.normal(0, 0.05, (2500, 3, 3))
    with DatasetWriter(path, {"made by": "a test"}) as writer:
        writer.append([1, 1], positions[0, :2], energy=-1.0, labels={"dipole": np.zeros(3)})
        writer.append([8, 1, 1], positions, energy=positions[:, 0, 0], forces=positions - 0.5)
    return path


def flip(path, column: str, chunk: int, byte: int) -> None:
    """Flip a bit of a stored chunk, HDF5's own checksum left as it is."""
    with h5py.File(path) as file:
        place = file[column].id.get_chunk_info(chunk)
    with path.open("r+b") as file:
        file.seek(HEADER_SIZE + place.byte_offset + byte)
        before = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([before ^ 8]))


def test_what_was_written_has_no_damage(tmp_path):
    for path in (write_large(tmp_path / "a.h5"), write_clusters(tmp_path / "b.h5", periodic=True)):
        assert damages(path) == []
        said = biasgrad(tmp_path, "data", "info", "--check", path)
        assert f"{path}: all content is as it was written" in said
        assert "provenance" in said


def test_flipped_bits_are_found_in_their_chunk(tmp_path):
    path = write_large(tmp_path / "x.h5")
    flip(path, "frames/000001_H2O/forces", 1, 500)
    (found,) = damages(path)
    assert found.startswith(
        "000001_H2O: forces (rows 1024–2047, frames 1025–2048 of the dataset) cannot be read"
    )
    said = biasgrad(tmp_path, "data", "info", "--check", path, code=1)
    assert f"{path}: is not as it was written:\n  {found}" in said


@pytest.mark.parametrize(
    ("column", "row", "expected"),
    [
        ("000001_H2O/energy", 2100, "000001_H2O: energy (rows 2048–2499, frames 2049–2500"),
        ("000001_H2O/positions", 0, "000001_H2O: positions (rows 0–1023, frames 1–1024"),
        ("000000_H2/dipole", 0, "000000_H2: dipole (rows 0–0, frames 0–0"),
        ("000000_H2/numbers", 1, "000000_H2: numbers was changed"),
    ],
)
def test_values_that_were_written_over_are_found(tmp_path, column, row, expected):
    path = write_large(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:  # with checksums of HDF5 that fit
        values = file["frames"][column][()]
        values.reshape(-1)[np.prod(values.shape[1:], dtype=int) * row] += 1
        file["frames"][column][...] = values
    (found,) = damages(path)
    assert found.startswith(expected)
    assert found.endswith("was changed")


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file.attrs.__setitem__("provenance", "{}"),
        lambda file: file["frames/000001_H2O"].pop("forces"),
        lambda file: file.move("frames/000000_H2", "frames/000002_H2"),
        lambda file: file["frames/000000_H2"].__setitem__("spin", [1.0]),
        lambda file: file["frames/000001_H2O/energy"].resize(2000, axis=0),
    ],
)
def test_changed_texts_and_columns_are_found(tmp_path, edit):
    path = write_large(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        edit(file)
    assert damages(path) == ["its texts, or the names and shapes of its columns, were changed"]


def test_files_without_digests_say_so(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        del file["digests"]
    with pytest.raises(DataError, match=r"x\.h5: holds no digests, as earlier versions"):
        damages(path)
    assert len(Dataset(path)) == 60
    assert "--check" in biasgrad(tmp_path, "data", "info", "--help")
    biasgrad(tmp_path, "data", "import", path, "-o", tmp_path / "y.h5", "--accept")
    assert damages(tmp_path / "y.h5") == []


def test_no_flip_anywhere_goes_unseen(tmp_path):
    path = write_clusters(tmp_path / "x.h5", frames=9)
    whole, digest = path.read_bytes(), Dataset(path).hash()
    provenance = Dataset(path).provenance
    random, unseen = np.random.default_rng(0), 0
    for place in random.integers(HEADER_SIZE, len(whole), 150):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            if damages(path):
                continue
        except (DataError, FileNotFoundError):
            continue
        unseen += 1  # padding, and bytes that HDF5 has for later
        assert Dataset(path).hash() == digest
        assert Dataset(path).provenance == provenance
    assert unseen < 75
