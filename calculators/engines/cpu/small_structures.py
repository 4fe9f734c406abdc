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
    share_out,
    shared_room_for,
    structures_of,
)
from ase_biasgrad.neighbours import Edges, Structure, VerletList
from ase_biasgrad.numerics.native import BoundCall, NativeKernel
from ase_biasgrad.numerics.threads import threads_allowed, together

EVALUATE = NativeKernel("ase_biasgrad.fused.batches", "evaluate")


class SmallStructures:
    """Memory and edges of several structures, kept while no atom could have come in.

    Each structure is evaluated as if it were alone, so results depend neither on the others nor on
    the number of threads. Where the last of them leave, as in relaxations, the others go on with
    what there is.
    """

    def __init__(self, networks: Sequence[CompiledNetwork], cutoff: float, skin: float) -> None:
        self.networks, self.cutoff, self.skin = networks, cutoff, skin
        self._lists: list[VerletList] = []  # of the structures, by their places
        self._edges: list[Edges] = []  # of those that there is memory for
        self._blocks: list[tuple[int, int]] = []  # of structures, one for each thread
        self._structures: Structures | None = None
        self._rooms: list[Room] = []  # of each network
        self._found: list[Evaluated] = []  # by each network
        self._calls: list[list[BoundCall]] = []  # of each network, by blocks

    def evaluate(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Energies of atoms, forces and strain gradients, by all networks."""
        sizes = [len(s.numbers) for s in structures]
        n, b = sum(sizes), len(sizes)
        there = self._arrange(structures)
        np.concatenate([s.positions for s in structures], out=there.positions[:n])
        np.stack([s.cell for s in structures], out=there.cells[:b])
        for calls in self._calls:
            together(calls)
        energies, forces, strain = (
            np.stack([values[:rows] for values in each])
            for each, rows in zip(zip(*self._found, strict=True), (n, n, b), strict=True)
        )
        return split(energies, forces, strain, sizes)

    def _arrange(self, structures: Sequence[Structure]) -> Structures:
        """Structures of which these are the first, with the calls that evaluate these alone."""
        while len(self._lists) < len(structures):
            self._lists.append(VerletList(self.cutoff, self.skin))
        edges = [each.candidates(s) for each, s in zip(self._lists, structures, strict=False)]
        count, threads = len(structures), min(threads_allowed(), len(structures))
        there = self._structures
        same = list(map(id, edges)) == list(map(id, self._edges[:count]))
        if there is None or not same or len(self._blocks) != threads:
            self._edges, there = edges, joined(structures, edges)
            self._structures = there
            self._bind(there, threads)
        elif self._blocks[-1][1] != count:
            self._blocks = share_out(there, count, self._rooms, threads)
            for calls in self._calls:
                for call, block in zip(calls, self._blocks, strict=True):
                    call.replace_first(*block)
        return there

    def _bind(self, there: Structures, threads: int) -> None:
        """Memory and calls that evaluate all of these."""
        n, b = len(there.numbers), len(there.chunk)
        last: list[Room | None] = [*self._rooms] or [None for _ in self.networks]
        self._rooms, self._found, self._calls = [], [], []
        for network, room in zip(self.networks, last, strict=True):
            p, dtype = network.program, network.program.weights.dtype
            self._rooms.append(shared_room_for(there, p, dtype, threads, room))
            self._found.append(Evaluated(np.empty(n), np.empty((n, 3)), np.empty((b, 3, 3))))
        self._blocks = share_out(there, b, self._rooms, threads)
        for network, room, found in zip(self.networks, self._rooms, self._found, strict=True):
            p, splines = network.program, SplineConstants.of(network.knots)
            segments = p.segments[: p.first_order]
            self._calls.append([
                EVALUATE.bind(
                    *block, p.instructions, segments, p.kept, p.local, p.weights, splines, there,
                    room, found,
                )
                for block in self._blocks
            ])  # fmt: skip


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
