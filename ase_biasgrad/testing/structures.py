"""Structures that a calculator is tried on: a molecule and a crystal of its elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import g2
from ase.data import atomic_numbers, chemical_symbols, reference_states

USUAL = ("CH3CH2OH", "H2O", "CH4", "N2")  # molecules, and crystals, where no elements are named
USUAL_CRYSTALS = ("Cu", "Si", "Ar")
LATTICES = ("fcc", "bcc", "diamond", "hcp")
SIZE = 9  # atoms that a molecule has at best: not so few that angles are missing


def numbers_of(names: Sequence[str]) -> set[int]:
    """Atomic numbers of elements.

    Raises `ValueError` naming what is no element.
    """
    unknown = [name for name in names if name not in atomic_numbers or name == "X"]
    if unknown:
        raise ValueError(f"{unknown} are no elements; write symbols such as H,C,O")
    return {atomic_numbers[name] for name in names}


def rattled(atoms: Atoms, seed: int = 0) -> Atoms:
    """The same off its minimum and off symmetry, a periodic cell sheared."""
    random = np.random.default_rng(seed)
    moved = atoms.copy()
    moved.info, moved.calc = {}, None
    moved.set_initial_magnetic_moments(None)
    moved.set_initial_charges(None)
    if moved.pbc.any():
        strain = np.eye(3) + random.normal(0, 0.03, (3, 3))
        moved.set_cell(moved.cell.array @ strain, scale_atoms=True)
    moved.positions += random.normal(0, 0.05, moved.positions.shape)
    return moved


def molecules(elements: set[int] | None) -> Iterator[Atoms]:
    """Molecules of these elements, the most telling first, and a cluster of a crystal."""
    if elements is None:
        yield from map(molecule, USUAL)
    else:
        found = [m for m in map(molecule, g2.names) if set(m.numbers.tolist()) <= elements]
        found = [m for m in found if len(m) > 1]
        yield from sorted(found, key=lambda m: (-len(set(m.numbers)), abs(len(m) - SIZE)))[:5]
    for crystal in lattices(elements):
        cluster = crystal * (2, 1, 1)
        cluster.pbc = False
        cluster.cell = None
        yield cluster[:SIZE]


def crystals(elements: set[int] | None) -> Iterator[Atoms]:
    """Crystals of these elements, small enough that atoms see their own images."""
    yield from lattices(elements)
    for packed in molecules(elements):
        size = np.ptp(packed.positions, axis=0) + 2.8
        packed.set_cell(np.diag(size), scale_atoms=False)
        packed.pbc = True
        yield packed


def lattices(elements: set[int] | None) -> Iterator[Atoms]:
    """Conventional cells of elements that crystallise simply."""
    names = USUAL_CRYSTALS if elements is None else [chemical_symbols[z] for z in sorted(elements)]
    lattice = {
        name: (reference_states[atomic_numbers[name]] or {}).get("symmetry") for name in names
    }
    for name in sorted(
        (n for n in names if lattice[n] in LATTICES), key=lambda n: LATTICES.index(lattice[n])
    ):
        hexagonal = lattice[name] == "hcp"
        yield bulk(name, orthorhombic=hexagonal, cubic=not hexagonal)


def primitive(crystal: Atoms) -> Atoms | None:
    """Primitive cell of an element that crystallises simply; none for other crystals."""
    kinds = set(crystal.get_chemical_symbols())
    state = reference_states[atomic_numbers[kinds.pop()]] if len(kinds) == 1 else None
    if state is None or state["symmetry"] not in LATTICES:
        return None
    return bulk(crystal.get_chemical_symbols()[0])
