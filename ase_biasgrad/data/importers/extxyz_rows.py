"""Rows of extxyz files, counted: ASE's reader leaves out columns and frames without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ase_biasgrad.data.dataset import DataError


def check_rows(text: Iterable[str]) -> None:
    """Compare the rows of each frame with its number of atoms and its `Properties`.

    Raises `DataError` on a row with more or fewer columns, a frame that is cut off, and lines
    between frames.
    """
    lines = enumerate(text, 1)
    for number, line in lines:
        if not line.strip():
            break
        if not line.strip().isdigit():
            if line.lstrip().startswith("VEC"):
                continue  # cell vectors of older files, below the atoms
            raise DataError(f"line {number}: {line[:60]!r} is no number of atoms")
        _check_frame(lines, number, int(line))
    for number, line in lines:
        if line.strip():
            raise DataError(f"line {number}: stands below an empty line, where frames end")


def _check_frame(lines: Iterator[tuple[int, str]], begin: int, atoms: int) -> None:
    columns = _columns(next(lines, (0, ""))[1])
    for k in range(atoms):
        number, row = next(lines, (0, ""))
        if not row.strip():
            raise DataError(f"line {begin}: says {atoms} atoms, and {k} follow")
        if columns is not None and len(row.split()) != columns:
            raise DataError(
                f"line {number}: has {len(row.split())} columns, and Properties in line "
                f"{begin + 1} name {columns}"
            )


def _columns(header: str) -> int | None:
    """Columns of a frame's rows; None if its header does not say."""
    named = re.search(r"(?<!\S)Properties\s*=\s*[\"']?((?:[^:\s]+:[A-Za-z]:\d+:?)+)", header)
    return None if named is None else sum(map(int, named[1].split(":")[2::3]))
