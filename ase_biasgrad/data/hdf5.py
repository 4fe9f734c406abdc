"""HDF5 files in which everything has a checksum, so that a flipped bit is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

# HDF5 has checksums for chunks alone; Fletcher's takes 0x0000 and 0xFFFF for the same, zlib's not
CHECKED = {"fletcher32": True, "compression": "gzip", "compression_opts": 0}


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
