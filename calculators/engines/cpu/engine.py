"""The CPU engine: SchNet, PaiNN and TensorNet as compiled programs, without autograd."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from ase_biasgrad.architectures import ARCHITECTURES
from ase_biasgrad.calculators.engines.base import Evaluation, split
from ase_biasgrad.calculators.engines.cpu.arrangement import (
    SortedEdges,
    SortedStructure,
    put_back,
)
from ase_biasgrad.calculators.engines.cpu.groups import GroupEdges, groups_of
from ase_biasgrad.calculators.engines.cpu.room import Room, Workspace
from ase_biasgrad.fused.kept_networks import keep_network, read_network
from ase_biasgrad.fused.runtime import Candidates, CompiledNetwork
from ase_biasgrad.neighbours import Structure, neighbour_list
from ase_biasgrad.numerics.threads import blocks_for, threads_allowed, together
from ase_biasgrad.potential_arrays import NetworkArrays, symmetric


def fits(networks: Sequence[NetworkArrays]) -> bool:
    """True if this engine can evaluate these networks."""
    return all(n.name in ARCHITECTURES and n.module is None for n in networks)


class CpuEngine:
    """Evaluates one or several networks that have a program (`fused`).

    Radial filters are sampled when the engine is made. Networks run in `dtype`; positions,
    distances, energy sums and forces are float64.
    """

    name = "cpu"

    def __init__(self, networks: Sequence[NetworkArrays], dtype: np.dtype, skin: float) -> None:
        self.of, self.dtype = list(networks), np.dtype(dtype)
        self.cutoff = max(network.cutoff for network in networks)
        self.networks = [_network(network, self.dtype) for network in networks]
        self.list = SortedEdges(self.cutoff, skin)
        self._edges = GroupEdges(self.cutoff, skin)
        self._rooms: list[Room] = []  # of each network
        self._workspace = Workspace()
        self._lanes: list[list[CpuEngine]] = []  # of threads: for each of its groups of structures
        self._moving: list[CompiledNetwork] = []  # made when first asked for

    def __getstate__(self) -> dict[str, Any]:
        return {"networks": self.of, "dtype": self.dtype, "skin": self.list.skin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> CpuEngine:
        return self.fresh()  # weights never change

    def reset(self) -> None:
        """Forget the neighbour list and the memory of the last structure."""
        self.list.reset()
        self._edges = GroupEdges(self.cutoff, self.list.skin)
        self._rooms, self._lanes = [], []

    def fresh(self) -> CpuEngine:
        """Another engine without neighbour list that shares the weights."""
        other = object.__new__(CpuEngine)
        other.__dict__ |= self.__dict__
        other.list, other._edges = self.list.fresh(), GroupEdges(self.cutoff, self.list.skin)
        other._rooms, other._workspace, other._lanes = [], Workspace(), []
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        return self._alone(structure, derivatives, None)

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives, in groups that the threads share out."""
        groups = groups_of([len(s.numbers) for s in structures])
        threads = threads_allowed()
        # fewer groups than threads: all threads share each of them
        count, blocks = (threads, 1) if len(groups) >= threads else (1, None)
        if len(self._lanes) != count:
            self._lanes = [[] for _ in range(count)]
        found: list[Evaluation | None] = [None] * len(structures)

        def run(lane: int) -> None:
            mine = groups[lane::count]
            for group, engine in zip(mine, self._of_lane(lane, len(mine)), strict=False):
                evaluations = engine._together([structures[k] for k in group], blocks)
                for k, evaluation in zip(group, evaluations, strict=True):
                    found[k] = evaluation

        together([partial(run, lane) for lane in range(count)])
        return cast("list[Evaluation]", found)

    def _of_lane(self, lane: int, groups: int) -> list[CpuEngine]:
        """Engines for the groups that one thread evaluates, in one workspace."""
        engines = self._lanes[lane]
        while len(engines) < groups:
            engines.append(self.fresh())
            engines[-1]._workspace = engines[0]._workspace
        return engines

    def _alone(self, structure: Structure, derivatives: bool, blocks: int | None) -> Evaluation:
        found = self._arranged(structure)
        energies, forces, strain = self._evaluate(
            [found.structure], found.edges, derivatives, blocks
        )
        energies = put_back(energies, found.order)
        if not derivatives:
            return Evaluation(energies)
        return Evaluation(energies, put_back(forces, found.order), strain[:, 0])

    def _arranged(self, structure: Structure) -> SortedStructure:
        """The structure as the engine sorts it, and its edges, searched anew where that must be."""
        found = self.list.find(structure)
        if found is None:
            self._rooms = []  # a search takes as much
            found = self.list.search(structure)
        return found

    def readouts(self, structure: Structure, weights: np.ndarray) -> Evaluation:
        """Energies and forces of the first network with other last layers (see `Engine`)."""
        found = self._arranged(structure)
        room = self._rooms_of([found.structure], found.edges, None)[0]
        rows = self.of[0].arguments["scale"] * weights
        energies, forces = room.readouts(found.structure, rows)
        return Evaluation(put_back(energies, found.order), put_back(forces, found.order))

    def _together(self, structures: list[Structure], blocks: int | None) -> list[Evaluation]:
        if len(structures) == 1:
            return [self._alone(structures[0], True, blocks)]
        values = self._evaluate(structures, self._edges.find(structures), True, blocks)
        return split(*values, [len(s.numbers) for s in structures])

    def second_derivatives(self, structure: Structure, strain: bool) -> np.ndarray:
        """Second derivatives in all coordinates by tangents in float64 (see `Engine`)."""
        from ase_biasgrad.fused.batches import structures_of
        from ase_biasgrad.fused.hessians import second_derivatives

        s = structure
        edges = neighbour_list(s.positions, s.cell, s.pbc, self.cutoff)
        pairs = np.stack([edges.centre, edges.neighbour]).astype(np.int64)
        one = structures_of(
            np.array([len(s.numbers)]), pairs, edges.shift.astype(np.int32),
            np.array([0, pairs.shape[1]]), s.numbers, s.positions, s.cell[None],
        )  # fmt: skip
        members = [second_derivatives(network, one, strain) for network in self._with_tangents()]
        return symmetric(np.mean(members, axis=0), self.name)

    def _with_tangents(self) -> list[CompiledNetwork]:
        """The networks in float64, with the tangents of their programs."""
        if not self._moving:
            from ase_biasgrad.fused.networks import compiled_network
            from ase_biasgrad.fused.tangents import HESSIAN

            exact = np.dtype(np.float64)
            self._moving += [
                compiled_network(n.name, n.arguments, n.tensors, exact, HESSIAN) for n in self.of
            ]
        return self._moving

    def _evaluate(
        self, structures: Sequence[Structure], candidates: Candidates, derivatives: bool,
        blocks: int | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """Energies `(members, n)`, forces, and ∂E/∂ε `(members, structures, 3, 3)`."""
        rooms = self._rooms_of(structures, candidates, blocks)
        for room in rooms:
            room.evaluate(structures, derivatives)
        return (
            np.stack([room.energies for room in rooms]),
            np.stack([room.forces for room in rooms]),
            np.stack([room.strain for room in rooms]),
        )

    def _rooms_of(
        self, structures: Sequence[Structure], candidates: Candidates, blocks: int | None
    ) -> list[Room]:
        """Memory of each network for these structures, that of the last ones where it fits."""
        if blocks is None:
            blocks = blocks_for(sum(len(s.numbers) for s in structures))
        kept = self._rooms
        if not kept or kept[0].candidates is not candidates or kept[0].blocks != blocks:
            self._rooms = [
                Room(each, structures, candidates, blocks, self._workspace)
                for each in self.networks
            ]
        return self._rooms


def _network(network: NetworkArrays, dtype: np.dtype) -> CompiledNetwork:
    """The program of a network; that of a checkpoint is kept for the next start."""
    kept = read_network(network.digest, dtype) if network.digest else None
    if kept is not None:
        return kept
    from ase_biasgrad.fused.networks import compiled_network  # loads Numba

    made = compiled_network(network.name, network.arguments, network.tensors, dtype)
    if network.digest:
        keep_network(network.digest, dtype, made)
    return made
