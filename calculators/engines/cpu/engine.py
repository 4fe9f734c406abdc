"""The CPU engine: SchNet, PaiNN and TensorNet as compiled programs, without autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_biasgrad.architectures import ARCHITECTURES
from ase_biasgrad.calculators.engines.base import Evaluation
from ase_biasgrad.calculators.engines.cpu.arrangement import (
    ARRANGED_FROM,
    SortedEdges,
    SortedStructure,
    put_back,
)
from ase_biasgrad.calculators.engines.cpu.room import Room, Workspace
from ase_biasgrad.calculators.engines.cpu.small_structures import SmallStructures, joined
from ase_biasgrad.fused.kept_networks import keep_network, read_network
from ase_biasgrad.fused.runtime import CompiledNetwork
from ase_biasgrad.neighbours import Structure, neighbour_list
from ase_biasgrad.numerics.threads import blocks_for, threads_allowed
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
        self._small = SmallStructures(self.networks, self.cutoff, skin)
        self._rooms: list[Room] = []  # of each network
        self._workspace = Workspace()
        self._others: list[CpuEngine] = []  # of large structures, by their places
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
        self._small = SmallStructures(self.networks, self.cutoff, self.list.skin)
        self._rooms, self._others = [], []

    def fresh(self) -> CpuEngine:
        """Another engine without neighbour list that shares the weights."""
        other = object.__new__(CpuEngine)
        other.__dict__ |= self.__dict__
        other.list = self.list.fresh()
        other._small = SmallStructures(self.networks, self.cutoff, self.list.skin)
        other._rooms, other._workspace, other._others = [], Workspace(), []
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        found = self._arranged(structure)
        rooms = self._rooms_of(found)
        for room in rooms:
            room.evaluate(found.structure, derivatives)
        energies = put_back(np.stack([room.energies for room in rooms]), found.order)
        if not derivatives:
            return Evaluation(energies)
        forces = put_back(np.stack([room.forces for room in rooms]), found.order)
        return Evaluation(energies, forces, np.stack([room.strain[0] for room in rooms]))

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives: small ones by a thread each, and others by
        all threads, one after another."""
        sizes = [len(s.numbers) for s in structures]
        small = [k for k, size in enumerate(sizes) if size < ARRANGED_FROM]
        if len(small) < threads_allowed():  # too few for each thread to have one
            small = [k for k in small if blocks_for(sizes[k]) == 1]
        large = sorted(set(range(len(structures))) - set(small))
        of_small = self._small.evaluate([structures[k] for k in small]) if small else []
        found = dict(zip(small, of_small, strict=True))
        while len(self._others) < len(large):
            self._others.append(self.fresh())
            self._others[-1]._workspace = self._workspace
        for k, engine in zip(large, self._others, strict=False):
            found[k] = engine.evaluate(structures[k], True)
        return [found[k] for k in range(len(structures))]

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
        room = self._rooms_of(found)[0]
        rows = self.of[0].arguments["scale"] * weights
        energies, forces = room.readouts(found.structure, rows)
        return Evaluation(put_back(energies, found.order), put_back(forces, found.order))

    def second_derivatives(self, structure: Structure, strain: bool) -> np.ndarray:
        """Second derivatives in all coordinates by tangents in float64 (see `Engine`)."""
        from ase_biasgrad.fused.hessians import second_derivatives

        s = structure
        edges = neighbour_list(s.positions, s.cell, s.pbc, self.cutoff)
        one = joined([s], [edges])
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

    def _rooms_of(self, found: SortedStructure) -> list[Room]:
        """Memory of each network for this structure, that of the last one where it fits."""
        kept, blocks = self._rooms, blocks_for(len(found.structure.numbers))
        if not kept or kept[0].candidates is not found.edges or kept[0].blocks != blocks:
            self._rooms = [
                Room(each, found.structure, found.edges, blocks, self._workspace)
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
