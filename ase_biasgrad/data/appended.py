"""Frames that a dataset file ends with, behind its HDF5 part, each written whole.

HDF5 keeps no journal: a process that is killed while it changes a file may leave one that cannot be
opened. What is appended therefore comes behind the end of the HDF5 part, where HDF5 does not look,
in records:

    mark (8 bytes), length of the content (8, little-endian), CRC-32 of these 16 (4)
    content: a line of JSON, [name, type, shape] of each column, and the columns one after another
    first 16 bytes of the SHA-256 of the content

A last record that is cut off, or ends in zeros that the system had not yet replaced when the
machine stopped, is that of a frame in progress and no part of the dataset. Anything else that is
not what was written is damage.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

MARK = b"\x89frame\r\n"
START = struct.Struct("<8sQI")  # mark, length, CRC-32
DIGEST = 16
HDF5 = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK = struct.Struct("<8sBBBBQQQ")  # of versions 2 and 3, up to the end of the file


def record_of(columns: Mapping[str, np.ndarray]) -> bytes:
    """Record of the columns of frames of the same atoms: `numbers (n,)`, others `(m, …)`."""
    kinds = [[name, values.dtype.str, values.shape] for name, values in columns.items()]
    content = json.dumps(kinds).encode() + b"\n" + b"".join(v.tobytes() for v in columns.values())
    begin = MARK + len(content).to_bytes(8, "little")
    digest = hashlib.sha256(content).digest()[:DIGEST]
    return begin + zlib.crc32(begin).to_bytes(4, "little") + content + digest


def read_records(path: Path, block: int) -> tuple[list[dict[str, np.ndarray]], int]:
    """Columns of each whole record, and the place in the file behind the last of them.

    `block` is the size of the user block, at the start of an HDF5 file.

    Raises
    ------
    ValueError
        If one is damaged; the message says which.
    """
    found: list[dict[str, np.ndarray]] = []
    if (place := end_of_hdf5(path, block)) is None:
        return [], path.stat().st_size
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(place)
        while (content := _next(file, size, len(found))) is not None:
            found.append(_columns(content))
            place = file.tell()
    return found, place


def _columns(content: bytes) -> dict[str, np.ndarray]:
    place, found = content.index(b"\n") + 1, dict[str, np.ndarray]()
    for name, kind, shape in json.loads(content[: place - 1]):
        count = math.prod(shape)
        found[name] = np.frombuffer(content, kind, count, place).reshape(shape)
        place += found[name].nbytes
    return found


def end_of_hdf5(path: Path, block: int) -> int | None:
    """Place behind the HDF5 part of a file; None where an early version does not tell it."""
    with path.open("rb") as file:
        file.seek(block)
        begin = file.read(SUPERBLOCK.size)
    if len(begin) < SUPERBLOCK.size:
        return None
    mark, version, offsets, _, _, _, _, end = SUPERBLOCK.unpack(begin)
    known = mark == HDF5 and version in (2, 3) and offsets == 8
    return int(end) if known else None


def _next(file: BinaryIO, size: int, number: int) -> bytes | None:
    """Content of the next record, or None at the end of those that are whole."""
    damaged = f"record {number} behind the HDF5 part is damaged"
    begin = file.read(START.size)
    if len(begin) < START.size:
        return None
    mark, length, check = START.unpack(begin)
    if mark != MARK or check != zlib.crc32(begin[:16]):
        if any(file.read()):
            raise ValueError(damaged)
        return None
    if file.tell() + length + DIGEST > size:
        return None
    content, digest = file.read(length), file.read(DIGEST)
    if hashlib.sha256(content).digest()[:DIGEST] != digest:
        if any(digest[-4:]) or any(file.read()):
            raise ValueError(damaged)
        return None
    return content
