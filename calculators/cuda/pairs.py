"""Edges as the kernels read them: sorted by centre, with the place where each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ase_biasgrad.neighbours import Edges


@dataclass(frozen=True)
class EdgeRows:
    """Directed edges of each atom; they hold every pair within the cutoff, and some beyond it.

    Those of atom i are `first[i]` to `first[i + 1]`, and each has its mirror among them.
    """

    numbers: np.ndarray  # (n,) int64
    structure: np.ndarray  # (n,) int32, the structure of each atom
    first: np.ndarray  # (n + 1,) int32
    neighbour: np.ndarray  # (e,) int32
    shift: np.ndarray  # (3, e) int32, cells between i and j


def edge_rows(edges: Edges, numbers: np.ndarray) -> EdgeRows:
    """Rows of one structure."""
    atoms = len(numbers)
    if len(edges) and (np.diff(edges.centre) < 0).any():
        edges = edges.select(np.argsort(edges.centre, kind="stable"))
    first = np.zeros(atoms + 1, np.int32)
    np.cumsum(np.bincount(edges.centre, minlength=atoms), out=first[1:])
    return EdgeRows(
        numbers,
        np.zeros(atoms, np.int32),
        first,
        edges.neighbour.astype(np.int32),
        np.ascontiguousarray(edges.shift.T, dtype=np.int32),
    )


def joined(parts: Sequence[EdgeRows], atoms: int) -> EdgeRows:
    """Several structures as one, filled up with atoms of number 0 and without edges to `atoms`."""
    sizes = [len(rows.numbers) for rows in parts]
    starts = np.cumsum([0, *sizes[:-1]])
    edges = np.cumsum([0, *(len(rows.neighbour) for rows in parts)])
    room = atoms - sum(sizes)
    first = [rows.first[:-1] + e for rows, e in zip(parts, edges[:-1], strict=True)]
    return EdgeRows(
        np.concatenate([*(rows.numbers for rows in parts), np.zeros(room, np.int64)]),
        np.concatenate(
            [np.repeat(np.arange(len(parts)), sizes), np.zeros(room, np.int64)], dtype=np.int32
        ),
        np.concatenate([*first, np.full(room + 1, edges[-1])], dtype=np.int32),
        np.concatenate(
            [rows.neighbour + s for rows, s in zip(parts, starts, strict=True)], dtype=np.int32
        ),
        np.concatenate([rows.shift for rows in parts], axis=1),
    )
