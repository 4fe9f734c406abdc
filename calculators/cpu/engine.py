"""The CPU engine: numba kernels with written-out derivatives over half neighbour lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_biasgrad.backbones import Backbone, SchNet
from ase_biasgrad.calculators.cpu.geometry import directed_forces, radial_forces, within_cutoff
from ase_biasgrad.calculators.cpu.painn_model import CpuPaiNN
from ase_biasgrad.calculators.cpu.schnet_model import CpuSchNet
from ase_biasgrad.calculators.cpu.threads import blocks_for, run
from ase_biasgrad.calculators.engine import Evaluation, Structure
from ase_biasgrad.calculators.half_pairs import HalfPairList, HalfPairs, half, joined
from ase_biasgrad.neighbours import neighbour_list


class CpuEngine:
    """Evaluates SchNet or PaiNN, or a committee of them, in float32 on the CPU.

    Radial filters are sampled when the engine is made (`model.table` says how accurately). The
    networks run in float32; positions, distances, forces of pairs and their sums are float64.
    """

    name = "cpu"

    def __init__(self, backbones: list[Backbone], skin: float) -> None:
        self.backbones = [backbone.requires_grad_(False).eval() for backbone in backbones]
        self.cutoff = float(backbones[0].cutoff)
        self.model: CpuSchNet | CpuPaiNN = (
            CpuSchNet(backbones) if isinstance(backbones[0], SchNet) else CpuPaiNN(backbones)
        )
        self.list = HalfPairList(self.cutoff, skin)
        self._memory: tuple[tuple[int, int], tuple[np.ndarray, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"backbones": self.backbones, "skin": self.list.list.skin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> CpuEngine:
        return self.fresh()  # weights never change

    def reset(self) -> None:
        """Forget the neighbour list and the memory of the last structure."""
        self.list.reset()
        self._memory = None

    def fresh(self) -> CpuEngine:
        """Another engine without neighbour list that shares the weights."""
        other = object.__new__(CpuEngine)
        other.__dict__ |= self.__dict__
        other.list = HalfPairList(self.cutoff, self.list.list.skin)
        other._memory = None
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        pairs = self.list.of(structure)
        return self._evaluate([structure], pairs, derivatives)[0]

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """All of several structures in one pass, with derivatives."""
        halves = [half(neighbour_list(s.positions, s.cell, s.pbc, self.cutoff)) for s in structures]
        pairs = joined(halves, [len(s.numbers) for s in structures])
        return self._evaluate(structures, pairs, derivatives=True)

    def _evaluate(
        self, structures: Sequence[Structure], pairs: HalfPairs, derivatives: bool
    ) -> list[Evaluation]:
        sizes = [len(s.numbers) for s in structures]
        structure = np.repeat(np.arange(len(sizes)), sizes)  # (n,)
        numbers = np.concatenate([s.numbers for s in structures])
        positions = np.concatenate([s.positions for s in structures])
        cells = np.stack([s.cell for s in structures])
        n, most, table = len(numbers), len(pairs.i), self.model.table
        atoms, vectors = np.empty((most, 2), np.int64), np.empty((most, 4))
        interval, place = np.empty(most, np.int64), np.empty(most, np.float32)
        found = within_cutoff(
            positions, cells, structure, pairs.i, pairs.j, pairs.shift, self.cutoff,
            table.spacing, len(table.values) - 1, atoms, vectors, interval, place,
        )  # fmt: skip
        members = self.model.members
        energies, slopes = np.empty((members, n)), np.zeros((members, found))
        turns = np.zeros((members, found if self.model.directed else 0, 3))
        blocks = blocks_for(n, 4 * n * self.model.message_width)
        geometry = (numbers, atoms, interval, place, found, derivatives, blocks)
        extra = (vectors, turns) if self.model.directed else ()
        run(
            self.model.kernels,
            blocks,
            (*self.model.weights, *geometry, *extra, *self._work(n, blocks), energies, slopes),
        )
        ends = np.cumsum(sizes)[:-1]
        if not derivatives:
            return [Evaluation(e) for e in np.split(energies, ends, axis=1)]
        slopes /= table.spacing
        forces, strain = np.zeros((members, n, 3)), np.zeros((members, len(sizes), 3, 3))
        for m in range(members):
            result = (structure, forces[m], strain[m])
            if self.model.directed:
                directed_forces(atoms, vectors, found, slopes[m], turns[m], *result)
            else:
                radial_forces(atoms, vectors, found, slopes[m], *result)
        parts = (np.split(array, ends, axis=1) for array in (energies, forces))
        return [Evaluation(e, f, s) for e, f, s in zip(*parts, strain.swapaxes(0, 1), strict=True)]

    def _work(self, n: int, blocks: int) -> tuple[np.ndarray, ...]:
        """Memory for `n` atoms, kept from step to step."""
        if self._memory is None or self._memory[0] != (n, blocks):
            self._memory = (n, blocks), self.model.memory(n, blocks)
        return self._memory[1]
