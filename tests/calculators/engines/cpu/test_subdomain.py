"""Sub-domains that give each other rows of atoms against the engine on all of them."""

from __future__ import annotations

from queue import Queue
from threading import Thread

import numpy as np
import pytest
from ase import Atoms
from conftest import copper, small_potential, structure_of

from ase_biasgrad.calculators.engines.base import Evaluation
from ase_biasgrad.calculators.engines.cpu.arrangement import arranged
from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine
from ase_biasgrad.calculators.engines.cpu.subdomain import READ, SubDomain
from ase_biasgrad.fused.operations import Operation
from ase_biasgrad.neighbours import pairs_within

NETWORKS = ("schnet", "painn", "tensornet")


class NoHalo:
    """The halo of a process that is alone."""

    def fill(self, values: np.ndarray) -> None:
        """Nothing: there are no copies."""


class Pipe:
    """The halo of one of two domains that know all atoms of each other."""

    def __init__(self, own: int, outbox: Queue, inbox: Queue) -> None:
        self.own, self.outbox, self.inbox = own, outbox, inbox

    def fill(self, values: np.ndarray) -> None:
        self.outbox.put(values[: self.own].copy())
        values[self.own :] = self.inbox.get(timeout=60)


def crystal() -> Atoms:
    atoms = copper() * (3, 3, 2)
    atoms.numbers[::3] = 8
    atoms.rattle(0.05, seed=1)
    return atoms


def in_domains(engine: CpuEngine, atoms: Atoms, parts: list[np.ndarray]) -> Evaluation:
    """The evaluation of all atoms by two domains, each in a thread."""
    s, boxes = structure_of(atoms), [Queue(), Queue()]
    found: dict[int, Evaluation] = {}

    def evaluate(k: int) -> None:
        own = parts[k]
        alone, n = not all(map(len, parts)), len(own)
        rows = own if alone else np.concatenate([own, parts[1 - k]])
        edges = pairs_within(s.positions[rows], s.cell, s.pbc, engine.cutoff + 0.3)
        edges = edges.select(edges.centre < n)
        domain = SubDomain(
            engine.networks,
            s.numbers[rows],
            arranged(edges.centre, edges.neighbour, edges.shift, n),
        )
        halo = NoHalo() if alone else Pipe(n, boxes[k], boxes[1 - k])
        found[k] = domain.evaluate(s.positions[own], s.cell, halo)

    threads = [Thread(target=evaluate, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    members, n = len(engine.networks), len(atoms)
    energies, forces = np.empty((members, n)), np.empty((members, n, 3))
    for k, part in enumerate(parts):
        energies[:, part], forces[:, part] = found[k].energies, found[k].forces
    return Evaluation(energies, forces, sum(each.strain_gradient for each in found.values()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
def test_domains_together_are_the_whole(name, share):
    networks = [small_potential(name, seed).arrays().network for seed in range(2)]
    engine, atoms = CpuEngine(networks, np.dtype("float64"), 0.5), crystal()
    mine = np.random.default_rng(0).random(len(atoms)) < share
    parts = [np.flatnonzero(~mine), np.flatnonzero(mine)]
    whole, found = engine.evaluate(structure_of(atoms), True), in_domains(engine, atoms, parts)
    assert np.abs(found.energies - whole.energies).max() < 1e-12
    assert np.abs(found.forces - whole.forces).max() < 1e-12
    scale = np.abs(whole.strain_gradient).max()
    assert np.abs(found.strain_gradient - whole.strain_gradient).max() < 1e-12 * max(scale, 1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_segments_read_of_others_is_known(name):
    network = small_potential(name).arrays().network
    program = CpuEngine([network], np.dtype("float64"), 0.5).networks[0].program
    firsts = program.segments[: program.first_order, 0]
    kinds = [Operation(int(program.instructions[first][0])) for first in firsts]
    messages = [kind for kind in kinds if kind in READ]
    interactions = 2 + (name == "tensornet")  # its embedding is a message, too
    assert len(messages) == 2 * interactions
    assert not [kind for kind in kinds if kind not in READ and "MESSAGE" in kind.name]
