"""Copies of atoms of other processes: which ones are near, and how their rows come over."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ROUNDING = 1e-6  # of a cell vector


class Offered(NamedTuple):
    """Atoms that may be near those of another process, as both of them know."""

    own: dict[int, np.ndarray]  # own rows that each other process was told of
    counts: dict[int, int]  # atoms that each other process told of
    positions: np.ndarray  # (m, 3) Å, all that others told of
    labels: np.ndarray  # (m, 2) int64, atomic numbers and ids


class MpiHalo:
    """Rows of atoms that processes send each other, without a collective call.

    `sent` are the own rows `(k,)` that each other process has copies of, `received` the number of
    copies from each other process, which follow the `own` rows in this order.
    """

    def __init__(
        self, comm: Any, sent: dict[int, np.ndarray], received: dict[int, int], own: int
    ) -> None:
        self.comm = comm
        self.sent = {rank: rows for rank, rows in sent.items() if len(rows)}
        ends = own + np.cumsum(list(received.values()), dtype=np.int64)
        self.received = {
            rank: slice(int(end) - count, int(end))
            for (rank, count), end in zip(received.items(), ends, strict=True)
            if count
        }

    def fill(self, values: np.ndarray) -> None:
        """Write the copies' rows of values `(rows, width)`, and give away those of own atoms."""
        waiting = [self.comm.Irecv(values[rows], rank) for rank, rows in self.received.items()]
        packed = self.packed(values)
        waiting += [self.comm.Isend(rows, rank) for rank, rows in packed.items()]
        for request in waiting:
            request.Wait()

    def packed(self, values: np.ndarray) -> dict[int, np.ndarray]:
        """Rows of own atoms for each other process."""
        return {rank: values[rows] for rank, rows in self.sent.items()}


def offered(
    comm: Any, positions: np.ndarray, labels: np.ndarray, cell: np.ndarray, pbc: np.ndarray,
    reach: float,
) -> Offered:  # fmt: skip
    """Tell each process of the own atoms that may be nearer than `reach` to one of its atoms.

    Atoms are compared with the box around the atoms of a process, along the cell vectors. All
    processes call this, with the positions `(n, 3)` of their own atoms and, as labels `(n, 2)`,
    atomic numbers and ids; lengths in Å.
    """
    inverse = np.linalg.inv(cell)
    fractional = positions @ inverse
    bounds = np.full((2, 3), np.nan)
    if len(positions):
        bounds = np.stack([fractional.min(axis=0), fractional.max(axis=0)])
    boxes = np.empty((comm.size, 2, 3))
    comm.Allgather(bounds, boxes)
    margin = reach * np.linalg.norm(inverse, axis=0) + ROUNDING  # (3,) of the cell vectors
    middle, half = boxes.mean(axis=1), (boxes[:, 1] - boxes[:, 0]) / 2  # (ranks, 3)
    apart = _apart(middle - middle[comm.rank], pbc) - half - half[comm.rank]
    near = [int(k) for k in np.flatnonzero((apart <= margin).all(axis=1)) if k != comm.rank]
    own = {
        k: np.flatnonzero((_apart(fractional - middle[k], pbc) <= half[k] + margin).all(axis=1))
        for k in near
    }
    sent = [comm.isend((positions[rows], labels[rows]), k) for k, rows in own.items()]
    received = [comm.recv(source=k) for k in near]
    for request in sent:
        request.wait()
    counts = {k: len(found[1]) for k, found in zip(near, received, strict=True)}
    return Offered(
        own, counts,
        np.concatenate([np.empty((0, 3)), *(found[0] for found in received)]),
        np.concatenate([np.empty((0, 2), np.int64), *(found[1] for found in received)]),
    )  # fmt: skip


def agreed(comm: Any, known: Offered, needed: np.ndarray, own: int) -> MpiHalo:
    """The halo that brings the `needed` ones of the atoms that others told of, sorted `(k,)`."""
    sent, received, first, asking = {}, {}, 0, []
    for rank, count in known.counts.items():
        low, high = np.searchsorted(needed, [first, first + count])
        asking.append(comm.isend(needed[low:high] - first, rank, tag=1))
        received[rank], first = int(high - low), first + count
    for rank, rows in known.own.items():
        sent[rank] = rows[comm.recv(source=rank, tag=1)]
    for request in asking:
        request.wait()
    return MpiHalo(comm, sent, received, own)


def _apart(difference: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Distances along the cell vectors, to the nearest image; the same from either end."""
    apart = np.abs(difference)
    return np.where(pbc, np.minimum(apart % 1.0, 1.0 - apart % 1.0), apart)
