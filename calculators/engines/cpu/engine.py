"""The CPU engine: SchNet, PaiNN and TensorNet as compiled programs, without autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_biasgrad.calculators.engines.base import Evaluation, Structure, split
from ase_biasgrad.calculators.engines.cpu.arrangement import SortedEdges, by_centre, put_back
from ase_biasgrad.calculators.engines.cpu.threads import blocks_for, in_blocks
from ase_biasgrad.fused.compiled.candidates import Candidates
from ase_biasgrad.fused.compiled.execute import atoms_at_once, execute, numbers_needed
from ase_biasgrad.fused.compiled.geometry import add_forces, edges_within
from ase_biasgrad.fused.compiled.networks import NETWORKS, CompiledNetwork, compiled_network
from ase_biasgrad.fused.compiled.operations import Edges
from ase_biasgrad.neighbours import neighbour_list
from ase_biasgrad.numerics.splines import N_WEIGHTS, polynomials, slope_polynomials
from ase_biasgrad.potential_arrays import NetworkArrays


def fits(networks: Sequence[NetworkArrays]) -> bool:
    """True if this engine can evaluate these networks."""
    return all(network.name in NETWORKS for network in networks)


class CpuEngine:
    """Evaluates one or several networks that have a program (`fused.compiled`).

    Radial filters are sampled when the engine is made. Networks run in `dtype`; positions,
    distances, energy sums and forces are float64.
    """

    name = "cpu"

    def __init__(self, networks: Sequence[NetworkArrays], dtype: np.dtype, skin: float) -> None:
        self.of, self.dtype = list(networks), np.dtype(dtype)
        self.cutoff = max(network.cutoff for network in networks)
        self.networks = [
            compiled_network(n.name, n.arguments, n.tensors, self.dtype) for n in networks
        ]
        self.list = SortedEdges(self.cutoff, skin)
        self._memory: dict[tuple[int, ...], tuple[np.ndarray, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"networks": self.of, "dtype": self.dtype, "skin": self.list.skin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> CpuEngine:
        return self.fresh()  # weights never change

    def reset(self) -> None:
        """Forget the neighbour list and the memory of the last structure."""
        self.list.reset()
        self._memory = {}

    def fresh(self) -> CpuEngine:
        """Another engine without neighbour list that shares the weights."""
        other = object.__new__(CpuEngine)
        other.__dict__ |= self.__dict__
        other.list, other._memory = self.list.fresh(), {}
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        found = self.list.find(structure)
        if found is None:
            self._memory = {}  # a search takes as much
            found = self.list.search(structure)
        energies, forces, strain = self._evaluate([found.structure], found.edges, derivatives)
        energies = put_back(energies, found.order)
        if not derivatives:
            return Evaluation(energies)
        return Evaluation(energies, put_back(forces, found.order), strain[:, 0])

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives, in one pass."""
        sizes = [len(s.numbers) for s in structures]
        lists = [neighbour_list(s.positions, s.cell, s.pbc, self.cutoff) for s in structures]
        return split(*self._evaluate(structures, by_centre(lists, sizes), True), sizes)

    def _evaluate(
        self, structures: Sequence[Structure], candidates: Candidates, derivatives: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies `(members, n)`, forces, and ∂E/∂ε `(members, structures, 3, 3)`."""
        numbers = np.concatenate([s.numbers for s in structures])
        positions = np.concatenate([s.positions for s in structures])
        cells = np.stack([s.cell for s in structures])
        owner = np.repeat(np.arange(len(structures)), [len(s.numbers) for s in structures])
        n, members = len(numbers), len(self.networks)
        energies, forces = np.empty((members, n)), np.zeros((members, n, 3))
        strain = np.zeros((members, len(structures), 3, 3))
        blocks = blocks_for(n)
        for m, network in enumerate(self.networks):
            memory, vectors, edges = self._buffers(network, numbers, candidates, blocks)
            edges = edges._replace(energies=energies[m], cotangents=np.ones(n))
            h, program = network.knots.spacing, network.program
            in_blocks(
                edges_within, blocks, positions, cells, owner, candidates, network.knots.cutoff, h,
                network.knots.count - 1, polynomials(), slope_polynomials(), vectors, edges,
            )  # fmt: skip
            segments = program.segments if derivatives else program.segments[: program.forward]
            for stage in [segments] if blocks == 1 else np.split(segments, len(segments)):
                in_blocks(
                    execute, blocks, program.instructions, stage, atoms_at_once(n), program.kept,
                    program.local, memory, program.weights, edges,
                )  # fmt: skip
            if derivatives:
                add_forces(vectors, edges, owner, h, forces[m], strain[m])
        return energies, forces, strain

    def _buffers(
        self, network: CompiledNetwork, numbers: np.ndarray, candidates: Candidates, blocks: int
    ) -> tuple[np.ndarray, np.ndarray, Edges]:
        """Memory of the program, vectors of edges `(e, 4)`, and edges, kept from step to step."""
        n, count = len(numbers), len(candidates.neighbour)
        key = (id(network), n, count, blocks)
        if key not in self._memory:
            self._memory = {k: v for k, v in self._memory.items() if k[1:] == key[1:]}
            self._memory[key] = (
                np.empty(numbers_needed(network.program, n, blocks), self.dtype),
                np.empty((count, 4)),
                *np.empty((3, n), np.int64), *np.empty((2, count), np.int32),
                np.empty((count, 2, N_WEIGHTS), self.dtype), np.empty((count, 3), self.dtype),
                np.empty((count, 4)),
            )  # fmt: skip
        memory, vectors, *arrays = self._memory[key]
        energies = np.empty(0)  # another one for each evaluation
        edges = Edges._make((numbers, candidates.starts, *arrays, energies, energies))
        return memory, vectors, edges
