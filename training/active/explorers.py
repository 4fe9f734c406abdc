"""Explorers: they move a structure by the forces of a committee until it is not sure any more.

Each is a function of a starting structure with the committee as its calculator. It takes along
candidates, structures whose forces are expected to be off by more than half of the limit. One that
is off by more than the limit makes it unsure, but the way goes on to `FAR` times the limit: it
leads to other conformers, and what is met there differs more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.training.active.displacements import heat_displacements
from ase_biasgrad.training.active.options import LearnOptions

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

MakeCalculator = Callable[[Path], "Calculator"]
FAR = 3.0  # times the limit: what ends an exploration, as its way means nothing any more
CHECK_EVERY = 5  # steps of dynamics
MOST_CANDIDATES = 200  # of one exploration
BEGIN = 20  # steps of dynamics that are done however unsure the committee is of the start
ATTEMPTS = 40  # random structures of one exploration
NEWEST = 0.25  # share of the labelled frames that explorations go on from: the way leads onwards


@dataclass(frozen=True)
class Task:
    """One exploration: an explorer by name, its starting structures, and its random numbers."""

    explorer: str
    structures: tuple[Atoms, ...]  # one, or two ends of a path
    start: str  # name of the first structure
    temperature: float  # K
    seed: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name for people."""
        heat = f" at {self.temperature:g} K" if self.explorer == "md" else ""
        return f"{self.explorer}{heat} from {self.start}"


@dataclass
class Exploration:
    """Findings of an exploration.

    `largest` is the largest expected error in eV/Å on the way, `stopped` tells what the committee
    was not sure of, or what ended it before its time.
    """

    name: str
    steps: int = 0
    largest: float = 0.0
    stopped: str | None = None
    candidates: list[Atoms] = field(default_factory=list)


class Watch:
    """Looks at structures on the way and keeps candidates, thinned out evenly if there are many.

    Errors above `limit` are told; those above `end`, which is at least as much, end it.
    """

    def __init__(self, name: str, limit: float, end: float) -> None:
        self.found, self.limit, self.end = Exploration(name), limit, end
        self._unsure, self._every = 0, 1  # candidates so far, and how many of them are kept

    def goes_on(self, atoms: Atoms) -> bool:
        """Count a structure and keep it if it is a candidate; False where it ends."""
        from ase.calculators.calculator import CalculatorError

        self.found.steps += 1
        try:
            atoms.get_forces()
        except (CalculatorError, ArithmeticError, ValueError) as error:
            self.found.stopped = f"the committee cannot evaluate it: {error}"
            return False
        expected = expected_error(atoms.calc.results)
        self.found.largest = max(self.found.largest, expected)
        if expected > self.limit / 2:
            self._keep(atoms, expected)
        if expected > self.limit and self.found.stopped is None:
            self.found.stopped = f"a force is expected to be off by {expected:.3f} eV/Å"
        return expected <= self.end

    def _keep(self, atoms: Atoms, expected: float) -> None:
        if self._unsure % self._every == 0 or expected > self.end:
            copy = atoms.copy()
            copy.set_constraint()
            copy.info = {"found_by": self.found.name, "expected_error": expected}
            self.found.candidates.append(copy)
        self._unsure += 1
        if len(self.found.candidates) > MOST_CANDIDATES:
            self.found.candidates = self.found.candidates[::2]
            self._every *= 2


def expected_error(results: dict[str, Any]) -> float:
    """Largest expected length of the error of a force, eV/Å, from `forces_std (n, 3)`."""
    squares = np.square(results["forces_std"]).sum(axis=1)
    return float(np.sqrt(squares.max())) if len(squares) else 0.0


def explore(
    task: Task, options: LearnOptions, committee: Path, make: MakeCalculator
) -> Exploration:
    """Run one exploration with the committee in a file, of which `make` makes a calculator.

    It ends where a force is expected to be off by more than `FAR` times the limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it goes where the committee warns of
        structures = [atoms.copy() for atoms in task.structures]
        for atoms in structures:
            atoms.info = {}
            atoms.calc = make(committee)
        random = np.random.default_rng(task.seed)
        watch = Watch(task.name, options.limit, FAR * options.limit)
        RUN[task.explorer](structures, task.temperature, options, random, watch)
    return watch.found


def _md(
    structures: list[Atoms],
    temperature: float,
    options: LearnOptions,
    random: np.random.Generator,
    watch: Watch,
) -> None:
    """Langevin dynamics."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import Stationary, thermalize_momenta

    atoms = structures[0]
    thermalize_momenta(atoms, temperature, rng=random)
    Stationary(atoms)
    dynamics = Langevin(
        atoms,
        options.timestep * units.fs,
        temperature_K=temperature,
        friction=options.friction / units.fs,
        fixcm=False,
        rng=random,
    )
    for done in range(0, options.steps, CHECK_EVERY):
        try:
            dynamics.run(min(CHECK_EVERY, options.steps - done))
        except Exception as error:  # the structure broke between two looks
            watch.found.stopped = f"dynamics ended: {error}"
            return
        if not watch.goes_on(atoms) and done + CHECK_EVERY >= BEGIN:
            break
    watch.found.steps = min(watch.found.steps * CHECK_EVERY, options.steps)


def _displacements(
    structures: list[Atoms],
    temperature: float,
    options: LearnOptions,
    random: np.random.Generator,
    watch: Watch,
) -> None:
    """Random displacements of growing size."""
    atoms, start = structures[0], structures[0].copy()
    for size in np.linspace(0.2, 1.0, ATTEMPTS) * options.displacement:
        atoms.positions = start.positions + heat_displacements(start, size, random)
        if not watch.goes_on(atoms):
            break


def _relaxation(
    structures: list[Atoms],
    temperature: float,
    options: LearnOptions,
    random: np.random.Generator,
    watch: Watch,
) -> None:
    """Relaxations (FIRE) of displaced structures."""
    from ase.optimize import FIRE

    atoms = structures[0]
    atoms.positions += heat_displacements(atoms, options.displacement, random)
    search = FIRE(atoms, logfile=None)
    for _ in search.irun(fmax=0.02, steps=min(options.steps, 300)):
        if not watch.goes_on(atoms):
            break


def _strain(
    structures: list[Atoms],
    temperature: float,
    options: LearnOptions,
    random: np.random.Generator,
    watch: Watch,
) -> None:
    """Strained cells, of growing strain, with small displacements."""
    atoms = structures[0]
    cell, scaled = atoms.cell.array.copy(), atoms.get_scaled_positions(wrap=False)
    for size in np.linspace(0.2, 1.0, ATTEMPTS) * options.strain:
        strain = random.uniform(-size, size, (3, 3))
        atoms.set_cell(cell @ (np.eye(3) + 0.5 * (strain + strain.T)))
        atoms.set_scaled_positions(scaled)
        atoms.positions += heat_displacements(atoms, 0.2 * options.displacement, random)
        if not watch.goes_on(atoms):
            break


def _neb(
    structures: list[Atoms],
    temperature: float,
    options: LearnOptions,
    random: np.random.Generator,
    watch: Watch,
) -> None:
    """Images of a path between two structures, by nudged elastic bands."""
    from ase.mep import NEB
    from ase.optimize import FIRE

    first, last = structures
    images = [first, *(first.copy() for _ in range(7)), last]
    for image in images[1:-1]:
        image.calc = first.calc
    last.calc = first.calc
    band = NEB(images, climb=True, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate("idpp")
    for _ in FIRE(band, logfile=None).irun(fmax=0.05, steps=min(options.steps, 200)):
        looks = [watch.goes_on(image) for image in images]
        if not all(looks):
            break


Explorer = Callable[
    [list["Atoms"], float, LearnOptions, np.random.Generator, Watch], None
]  # fmt: skip
RUN: dict[str, Explorer] = {
    "md": _md,
    "displacements": _displacements,
    "relaxation": _relaxation,
    "strain": _strain,
    "neb": _neb,
}


def tasks(
    structures: Sequence[Atoms], options: LearnOptions, number: int, labelled: Sequence[Atoms] = ()
) -> list[Task]:
    """Explorations of round `number`, from every structure by every explorer that it suits.

    Those of one structure begin several times: in the first round from it, later once from it, then
    from the newest frames among `labelled`, so that one round goes on where the last one ended.

    Raises
    ------
    ValueError
        If no structure suits an explorer.
    """
    found = list(_tasks(structures, options, number, labelled))
    for explorer in options.explorers:
        if not any(task.explorer == explorer for task in found):
            raise ValueError(f"no structure suits the explorer {explorer!r}: {NEEDS[explorer]}")
    return found


NEEDS = {
    "strain": "it needs a periodic one",
    "neb": "it needs two after each other with the same atoms in the same order",
}


def _tasks(
    structures: Sequence[Atoms], options: LearnOptions, number: int, labelled: Sequence[Atoms]
) -> Iterator[Task]:
    for e, explorer in enumerate(options.explorers):
        for k, atoms in enumerate(structures):
            seed, start = (options.seed, number, e, k), f"structure {k}"
            if explorer == "strain" and not atoms.pbc.any():
                continue
            if explorer == "neb":
                if k + 1 < len(structures) and _same_atoms(atoms, structures[k + 1]):
                    yield Task(explorer, (atoms, structures[k + 1]), start, 0.0, seed)
                continue
            alike = [f for f, frame in enumerate(labelled) if _same_atoms(atoms, frame)]
            newest = alike[-max(1, round(NEWEST * len(alike))) :]
            heats = options.temperatures if explorer == "md" else (0.0,)
            for t, temperature in enumerate(heats):
                for r in range(options.trajectories):
                    own, first, name = (*seed, t, r), atoms, start
                    if r > 0 and number > 0 and newest:
                        frame = newest[int(np.random.default_rng(own).integers(len(newest)))]
                        first, name = labelled[frame], f"frame {frame}"
                    yield Task(explorer, (first,), name, temperature, own)


def _same_atoms(one: Atoms, other: Atoms) -> bool:
    return np.array_equal(one.numbers, other.numbers) and np.array_equal(one.pbc, other.pbc)
