"""The CPU engine: numba kernels with written-out derivatives over half neighbour lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_biasgrad.backbones import Backbone, SchNet
from ase_biasgrad.calculators.engines.base import Evaluation, Structure, split
from ase_biasgrad.calculators.engines.cpu import painn, schnet
from ase_biasgrad.calculators.engines.cpu.arrangement import SortedPairs, put_back
from ase_biasgrad.calculators.engines.cpu.geometry import (
    Pairs,
    Results,
    directed_forces,
    radial_forces,
    within_cutoff,
)
from ase_biasgrad.calculators.engines.cpu.painn_model import CpuPaiNN
from ase_biasgrad.calculators.engines.cpu.schnet_model import CpuSchNet
from ase_biasgrad.calculators.engines.cpu.threads import blocks_for, run
from ase_biasgrad.neighbours import HalfPairs, half, joined, neighbour_list


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
        self.list = SortedPairs(self.cutoff, skin)
        self._memory: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"backbones": self.backbones, "skin": self.list.skin}

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
        other.list = self.list.fresh()
        other._memory = None
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        found = self.list.find(structure)
        if found is None:
            self._memory = None  # a search takes as much
            found = self.list.search(structure)
        arranged, pairs, order = found
        atoms = arranged.numbers, arranged.positions, np.zeros(len(arranged.numbers), np.int64)
        energies, forces, strain = self._evaluate(*atoms, arranged.cell[None], pairs, derivatives)
        if forces is None or strain is None:
            return Evaluation(put_back(energies, order))
        return Evaluation(put_back(energies, order), put_back(forces, order), strain[:, 0])

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives; each has at least one atom."""
        sizes = [len(s.numbers) for s in structures]
        lists = [neighbour_list(s.positions, s.cell, s.pbc, self.cutoff) for s in structures]
        energies, forces, strain = self._evaluate(
            np.concatenate([s.numbers for s in structures]),
            np.concatenate([s.positions for s in structures]),
            np.repeat(np.arange(len(sizes)), sizes),
            np.stack([s.cell for s in structures]),
            joined([half(edges) for edges in lists], sizes),
            derivatives=True,
        )
        assert forces is not None
        assert strain is not None
        return split(energies, forces, strain, sizes)

    def _evaluate(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        structure: np.ndarray,
        cells: np.ndarray,
        pairs: HalfPairs,
        derivatives: bool,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Energies `(members, n)`, forces and `(members, structures, 3, 3)` ∂E/∂ε.

        `structure (n,)` counts the structures, whose cells are `(structures, 3, 3)`.
        """
        model, table, n = self.model, self.model.table, len(numbers)
        blocks = blocks_for(n, 4 * n * model.message_width)
        (atoms, vectors, bin, t), work = self._buffers(n, blocks, len(pairs.i))
        found = within_cutoff(
            positions, cells, structure, pairs.i, pairs.j, pairs.shift, self.cutoff,
            table.knots.spacing, table.n_bins, atoms, vectors, bin, t,
        )  # fmt: skip
        energies = np.empty((model.members, n))
        adj_distances = np.zeros((model.members, found))
        adj_units = np.zeros((model.members, found if model.directed else 0, 3))
        near = Pairs(numbers, atoms, vectors, bin, t, found)
        out = Results(energies, adj_distances, adj_units)
        phases = model.kernel.plan(model.members, model.layers, derivatives)
        arrays = model.weights, near, work, out
        run(model.kernel.whole, model.kernel.phase, phases, blocks, arrays)
        if not derivatives:
            return energies, None, None
        forces = np.zeros((model.members, n, 3))
        strain = np.zeros((model.members, len(cells), 3, 3))
        for m in range(model.members):
            pair = (atoms, vectors, found, adj_distances[m], table.knots.spacing)
            if model.directed:
                directed_forces(*pair, adj_units[m], structure, forces[m], strain[m])
            else:
                radial_forces(*pair, structure, forces[m], strain[m])
        return energies, forces, strain

    def _buffers(
        self, n: int, blocks: int, pairs: int
    ) -> tuple[tuple[np.ndarray, ...], schnet.Memory | painn.Memory]:
        """Memory for pairs and atoms, kept from step to step; old memory goes before new comes."""
        if self._memory is None or self._memory[0] != (n, blocks, pairs):
            self._memory = None
            kinds = (((2,), np.int32), ((4,), np.float64), ((), np.int32), ((), np.float32))
            of_pairs = tuple(np.empty((pairs, *shape), kind) for shape, kind in kinds)
            self._memory = (n, blocks, pairs), of_pairs, self.model.memory(n, blocks)
        return self._memory[1:]
