"""Several small structures at once: each is evaluated by one thread, without Python in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ase_biasgrad.calculators.engines.base import Evaluation, split
from ase_biasgrad.fused.runtime import CompiledNetwork
from ase_biasgrad.fused.structures import (
    Evaluated,
    Room,
    SplineConstants,
    Structures,
    shared_room_for,
    shares,
    structures_of,
)
from ase_biasgrad.neighbours import Edges, Structure, VerletList
from ase_biasgrad.numerics.native import BoundCall, NativeKernel
from ase_biasgrad.numerics.threads import threads_allowed, together

EVALUATE = NativeKernel("ase_biasgrad.fused.batches", "evaluate")


class SmallStructures:
    """Memory and edges of several structures, kept while no atom could have come in.

    Each structure is evaluated as if it were alone, so results depend neither on the others nor on
    the number of threads.
    """

    def __init__(self, networks: Sequence[CompiledNetwork], cutoff: float, skin: float) -> None:
        self.networks, self.cutoff, self.skin = networks, cutoff, skin
        self._lists: list[VerletList] = []  # of the structures, by their places
        self._edges: list[Edges] = []
        self._structures: Structures | None = None
        self._rooms: list[Room | None] = [None] * len(networks)
        self._found: list[Evaluated] = []  # by each network
        self._calls: list[list[BoundCall]] = []  # of each network, by threads

    def evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Energies of atoms, forces and strain gradients, by all networks."""
        self._arrange(structures)
        assert self._structures is not None
        np.concatenate([s.positions for s in structures], out=self._structures.positions)
        np.stack([s.cell for s in structures], out=self._structures.cells)
        for calls in self._calls:
            together(calls)
        energies, forces, strain = (
            np.stack([getattr(found, name) for found in self._found]) for name in Evaluated._fields
        )
        return split(energies, forces, strain, [len(s.numbers) for s in structures])

    def _arrange(self, structures: Sequence[Structure]) -> None:
        """Find edges and memory anew where those of the last evaluation do not serve."""
        while len(self._lists) < len(structures):
            self._lists.append(VerletList(self.cutoff, self.skin))
        edges = [each.candidates(s) for each, s in zip(self._lists, structures, strict=False)]
        threads = min(threads_allowed(), len(structures))
        same = list(map(id, edges)) == list(map(id, self._edges))
        if same and self._calls and len(self._calls[0]) == threads:
            return
        self._edges = edges
        self._structures = joined(structures, edges)
        n, b = len(self._structures.numbers), len(structures)
        self._found = [
            Evaluated(np.empty(n), np.empty((n, 3)), np.empty((b, 3, 3))) for _ in self.networks
        ]
        self._calls = [self._bound(k, threads) for k in range(len(self.networks))]

    def _bound(self, k: int, threads: int) -> list[BoundCall]:
        """Calls of the threads that evaluate network k."""
        assert self._structures is not None
        p, dtype = self.networks[k].program, self.networks[k].program.weights.dtype
        room = shared_room_for(self._structures, p, dtype, threads, self._rooms[k])
        self._rooms[k] = room
        return [
            EVALUATE.bind(
                *block, p.instructions, p.segments[: p.first_order], p.kept, p.local, p.weights,
                SplineConstants.of(self.networks[k].knots), self._structures, room, self._found[k],
            )
            for block in shares(self._structures, threads)
        ]  # fmt: skip


def joined(structures: Sequence[Structure], edges: Sequence[Edges]) -> Structures:
    """The structures, whose atoms their edges count one after another."""
    sizes = np.array([len(s.numbers) for s in structures])
    counts = [len(each.centre) for each in edges]
    first = np.repeat(np.cumsum(sizes) - sizes, counts)
    pairs = [
        np.concatenate([getattr(each, name) for each in edges]).astype(np.int64) + first
        for name in ("centre", "neighbour")
    ]
    return structures_of(
        sizes, np.stack(pairs), np.concatenate([each.shift for each in edges]).astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([s.numbers for s in structures]),
        np.concatenate([s.positions for s in structures]),
        np.stack([s.cell for s in structures]),
    )  # fmt: skip
