"""HDF5 files in which everything has a checksum, so that a flipped bit is an error."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np

# HDF5 has checksums for chunks alone; Fletcher's takes 0x0000 and 0xFFFF for the same, zlib's not
CHECKED = {"fletcher32": True, "compression": "gzip", "compression_opts": 0}

HEAP = b"GCOL\x01\0\0\0"  # a collection of texts begins so


def new_file(path: Path, **options: Any) -> h5py.File:
    """A new file in the format of HDF5 1.10, the first with checksums in all of its structure."""
    return h5py.File(path, "w", libver=("v110", "v110"), **options)


def add_column(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """A dataset in one piece."""
    options = {"chunks": values.shape, **CHECKED} if values.size else {}
    group.create_dataset(name, data=values, **options)


def set_text(file: h5py.File, name: str, text: str) -> None:
    """An attribute of fixed length: others lie in a heap that has no checksum."""
    content = text.encode()
    file.attrs.create(name, content, dtype=h5py.string_dtype("utf-8", max(1, len(content))))


def get_text(file: h5py.File, name: str) -> str:
    """A text attribute of either kind; `KeyError` if there is none."""
    text = file.attrs[name]
    return text.decode() if isinstance(text, bytes) else str(text)


def values_of(item: h5py.Dataset) -> Any:
    """All values of a dataset in a file of others; errors are those of `check_kind`."""
    check_kind(str(item.name), item.dtype)
    return item[()]


def check_kind(name: str, dtype: np.dtype) -> None:
    """Refuse values of variable length that are no text: HDF5 reads beyond damaged ones.

    Raises `ValueError` that names them.
    """
    if dtype.hasobject and h5py.check_string_dtype(dtype) is None:
        raise ValueError(f"{name}: of variable length, and no text")


def check_heaps(path: Path) -> None:
    """Refuse a file of others whose texts would make HDF5 go on for ever.

    Texts of variable length lie in collections of objects, each a header of 16 bytes (index,
    references, size) and its content; a free object of size 0 has no end. Raises `ValueError`
    saying where the collection is.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(HEAP)
            while start >= 0:
                if not _is_sound(content, start):
                    raise ValueError(f"the collection of texts at byte {start} is damaged")
                start = content.find(HEAP, start + len(HEAP))


def _is_sound(content: mmap.mmap, start: int) -> bool:
    if start + 16 > len(content):
        return False
    (size,) = struct.unpack_from("<Q", content, start + 8)
    place, end = start + 16, start + size
    if end > len(content):
        return False
    while place + 16 <= end:
        index, length = struct.unpack_from("<H6xQ", content, place)
        step = length if index == 0 else 16 + -(-length // 8) * 8
        if step == 0 or place + step > end:
            return False
        place += step
    return True
