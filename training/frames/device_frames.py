"""Frames as tensors that stay on the training device, with their neighbour lists.

Batches are gathered by index on the device: no worker processes, no copies, no host
synchronisation. Molecules of one kind share one list of all pairs; other structures get their
lists once, when the frames are loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ase_biasgrad.data.dataset import Dataset, Group
from ase_biasgrad.graph import AtomGraph, forward_edges
from ase_biasgrad.neighbours import ALL_PAIRS_UP_TO, Edges, all_pairs, pairs_within
from ase_biasgrad.progress import progress_bar
from ase_biasgrad.training.elastic import Springs, kept_springs, springs_of

MEMORY_FOR_SPRINGS = 2**28  # bytes, of the matrices of all frames


@dataclass(frozen=True)
class Batch:
    """A graph of `b` structures and what it should give.

    A label that no frame has is None, and NaN in the frames that lack it.
    """

    graph: AtomGraph
    energy: Tensor | None  # (b,) float64 eV
    forces: Tensor | None  # (n, 3) float64 eV/Å
    stress: Tensor | None  # (b, 6) float64 eV/Å³
    counts: Tensor  # (b,) int64, atoms of each structure
    springs: Springs | None = None  # where they are kept


@dataclass(frozen=True)
class Labels:
    """Labels of `m` frames with `a` atoms, of a baseline, for example; NaN is missing."""

    energy: np.ndarray  # (m,) eV
    forces: np.ndarray  # (a, 3) eV/Å
    stress: np.ndarray  # (m, 6) eV/Å³

    def negative(self) -> Labels:
        """All with the other sign."""
        return Labels(-self.energy, -self.forces, -self.stress)

    def of(self, places: np.ndarray, counts: np.ndarray) -> Labels:
        """Labels of the frames at `places` `(k,)`; `counts` `(m,)` are the atoms of all frames."""
        first = np.cumsum(counts) - counts
        atoms = [np.arange(first[k], first[k] + counts[k]) for k in places]
        rows = np.concatenate([np.zeros(0, np.int64), *atoms])
        return Labels(self.energy[places], self.forces[rows], self.stress[places])


@dataclass(frozen=True)
class Ragged:
    """Rows of several lists one after another; list k is rows start[k] : start[k] + count[k].

    `start` and `count` live on the CPU too, so that sizes are known without asking the device.
    """

    start: np.ndarray  # (lists,)
    count: np.ndarray  # (lists,)

    @classmethod
    def of(cls, lists: Sequence[Sized]) -> Ragged:
        """For these lists one after another."""
        count = np.array([len(rows) for rows in lists], np.int64)
        return cls(np.cumsum(count) - count, count)

    def rows(self, lists: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows of `lists` `(r,)`, and the place in `lists` that each row belongs to `(r,)`."""
        count = self.count[lists]
        owner = np.repeat(np.arange(len(lists)), count)
        first = np.cumsum(count) - count
        rows = np.arange(len(owner)) + np.repeat(self.start[lists] - first, count)
        return _to(rows, device), _to(owner, device)


class DeviceFrames(TorchDataset[Batch]):
    """All frames of a dataset, or some of them, ready to be batched on one device.

    Parameters
    ----------
    dataset
        Where the frames come from.
    frames
        Indices into it; frame k of this object is `dataset[frames[k]]`.
    cutoff
        Range of the neighbour lists in Å.
    device
        Where the tensors live.
    progress
        Show a bar while neighbour lists are made.

    Raises
    ------
    ase_biasgrad.data.dataset.DataError
        If a frame cannot be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        frames: Sequence[int] | np.ndarray,
        cutoff: float,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.frames = np.asarray(frames, np.int64)
        parts = list(_parts(dataset, self.frames))
        order = np.argsort(np.concatenate([part.places for part in parts]), kind="stable")
        of_parts = Ragged.of([p.numbers for p in parts for _ in p.places])
        atom_order = of_parts.rows(order, torch.device("cpu"))[0].numpy()
        counts = of_parts.count[order]
        self._atoms = Ragged(np.cumsum(counts) - counts, counts)

        def per_frame(values: Iterable[np.ndarray]) -> Tensor:
            return _to(np.concatenate(list(values))[order], self.device)

        def per_atom(values: Iterable[np.ndarray]) -> Tensor:
            return _to(np.concatenate(list(values))[atom_order], self.device)

        self.numbers = per_atom(np.tile(p.numbers, len(p.places)) for p in parts).long()
        self.positions = per_atom(p.positions.reshape(-1, 3) for p in parts)
        self.cell = per_frame(p.cell for p in parts)
        self.pbc = per_frame(p.pbc for p in parts)
        self.energy = _where_known(per_frame(p.energy for p in parts))
        self.forces = _where_known(per_atom(p.forces.reshape(-1, 3) for p in parts))
        self.stress = _where_known(per_frame(p.stress for p in parts))
        self._make_edges(cutoff, progress)
        self._springs: tuple[Ragged, np.ndarray] | None = None
        self.baseline: Labels | None = None  # what the labels are less

    def __len__(self) -> int:
        return len(self.frames)

    def labelled(self) -> dict[str, int]:
        """Number of frames that have energies, forces and stress."""
        first = torch.from_numpy(self._atoms.start).to(self.device)
        known = {"energy": self.energy, "forces": self.forces, "stress": self.stress}
        if self.forces is not None:
            known["forces"] = self.forces[first]
        return {
            name: 0 if v is None else int(v.reshape(len(v), -1).isfinite().all(dim=1).sum())
            for name, v in known.items()
        }

    def less(self, baseline: Labels) -> DeviceFrames:
        """The same frames, whose labels are differences to those of a baseline."""
        other = copy.copy(self)
        other.baseline = baseline
        for name, values in vars(baseline).items():
            if (own := getattr(self, name)) is not None:
                setattr(other, name, own - torch.from_numpy(values).to(own))
        return other

    def keep_springs(self, most: int = MEMORY_FOR_SPRINGS) -> None:
        """Invert the elastic networks of all frames now, instead of iterating in every epoch.

        Batches then bring their `Springs`. Nothing is done where that takes more than `most` bytes.
        """
        sizes = (3 * self.atom_counts) ** 2
        if 8 * sizes.sum() > most:
            return
        first = np.cumsum(sizes) - sizes
        inverses = np.empty(sizes.sum())
        for frame, (begin, size) in enumerate(zip(first, sizes, strict=True)):
            one = self.batch([frame])
            inverses[begin : begin + size] = springs_of(one.graph, one.counts).inverse().ravel()
        self._springs = (Ragged(first, sizes), inverses)

    @property
    def atom_counts(self) -> np.ndarray:
        """Atoms of each frame, `(m,)`."""
        return self._atoms.count

    def compositions(self) -> np.ndarray:
        """Atoms of each element in each frame, `(m, N_ELEMENTS)` int64."""
        from ase_biasgrad.bias import composition_counts

        batch = torch.from_numpy(np.repeat(np.arange(len(self)), self.atom_counts))
        return composition_counts(self.numbers.cpu(), batch, len(self)).numpy()

    def batch(self, places: Sequence[int] | np.ndarray) -> Batch:
        """The frames at `places` (positions in this object, not in the dataset) as one batch."""
        places = np.asarray(places, np.int64)
        atoms, owner = self._atoms.rows(places, self.device)
        lists = self._edge_list[places]
        edges, edge_owner = self._edges.rows(lists, self.device)
        forward, forward_owner = self._forward.rows(lists, self.device)
        count = self._atoms.count[places]
        first_atom = _to(np.cumsum(count) - count, self.device)
        edge_count = self._edges.count[lists]
        first_edge = _to(np.cumsum(edge_count) - edge_count, self.device)
        index = _to(places, self.device)
        graph = AtomGraph(
            positions=self.positions[atoms],
            numbers=self.numbers[atoms],
            cell=self.cell[index],
            pbc=self.pbc[index],
            edge_index=self._edge_index[:, edges] + first_atom[edge_owner],
            edge_shift=self._edge_shift[edges],
            batch=owner,
            forward=self._forward_edges[forward] + first_edge[forward_owner],
        )
        springs = None
        if self._springs is not None:
            rows, inverses = self._springs
            springs = kept_springs(inverses, rows.start[places], count)
        return Batch(
            graph,
            energy=None if self.energy is None else self.energy[index],
            forces=None if self.forces is None else self.forces[atoms],
            stress=None if self.stress is None else self.stress[index],
            counts=_to(count, self.device),
            springs=springs,
        )

    def __getitem__(self, places: Sequence[int]) -> Batch:
        return self.batch(np.asarray(places))

    def _make_edges(self, cutoff: float, progress: bool) -> None:
        positions, cells = self.positions.cpu().numpy(), self.cell.cpu().numpy()
        pbc = self.pbc.cpu().numpy()
        lists: list[Edges] = []
        shared: dict[int, int] = {}  # atoms of a small molecule → its list of all pairs
        self._edge_list = np.zeros(len(self), np.int64)
        frames = progress_bar(range(len(self)), "neighbour lists", progress)
        for frame in frames:
            start, count = self._atoms.start[frame], self._atoms.count[frame]
            is_molecule = not pbc[frame].any() and count <= ALL_PAIRS_UP_TO
            if not is_molecule:
                self._edge_list[frame] = len(lists)
                atoms = positions[start : start + count]
                lists.append(pairs_within(atoms, cells[frame], pbc[frame], cutoff))
                continue
            if count not in shared:
                shared[count] = len(lists)
                lists.append(all_pairs(count))
            self._edge_list[frame] = shared[count]
        self._edges = Ragged.of(lists)
        joined = [np.stack([edges.centre, edges.neighbour]).astype(np.int64) for edges in lists]
        self._edge_index = _to(np.concatenate(joined, axis=1), self.device)
        shifts = [edges.shift.astype(np.int32) for edges in lists]
        self._edge_shift = _to(np.concatenate(shifts), self.device)
        forward = [
            forward_edges(torch.from_numpy(index), torch.from_numpy(shift), periodic=True).numpy()
            for index, shift in zip(joined, shifts, strict=True)
        ]
        self._forward = Ragged.of(forward)
        self._forward_edges = _to(np.concatenate(forward), self.device)


@dataclass(frozen=True)
class _Part:
    """Frames of one group of the dataset, and their places among the frames asked for."""

    places: np.ndarray  # (k,)
    numbers: np.ndarray  # (atoms,)
    positions: np.ndarray  # (k, atoms, 3)
    cell: np.ndarray  # (k, 3, 3)
    pbc: np.ndarray  # (k, 3)
    energy: np.ndarray  # (k,)
    forces: np.ndarray  # (k, atoms, 3)
    stress: np.ndarray  # (k, 6)


def _where_known(values: Tensor) -> Tensor | None:
    """Labels that are NaN in frames without; None where no frame has one."""
    return values if bool(values.isfinite().any()) else None


def _parts(dataset: Dataset, frames: np.ndarray) -> Iterable[_Part]:
    for group in dataset.groups():
        place_of = np.full(len(dataset), -1, np.int64)
        place_of[group.index] = np.arange(len(group.index))
        places = np.flatnonzero(place_of[frames] >= 0)
        if len(places):
            yield _part(group, places, place_of[frames[places]])


def _part(group: Group, places: np.ndarray, rows: np.ndarray) -> _Part:
    k, n = len(rows), len(group.numbers)

    def read(name: str, shape: tuple[int, ...], missing: float) -> np.ndarray:
        values = group.read(name, rows)
        return np.full((k, *shape), missing) if values is None else values

    return _Part(
        places,
        group.numbers,
        read("positions", (n, 3), np.nan),
        read("cell", (3, 3), 0.0),
        read("pbc", (3,), 0.0).astype(bool),
        read("energy", (), np.nan),
        read("forces", (n, 3), np.nan),
        read("stress", (6,), np.nan),
    )


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
