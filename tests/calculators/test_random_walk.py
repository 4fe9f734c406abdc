"""A calculator that has seen many structures equals one that has seen none.

A walk changes positions, cell, periodicity, elements and the number of atoms, little or much, and
at each place asks one of several kept calculators, from any thread, for properties in any order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError, InputError
from conftest import SIZES, copper, ethanol, mixed, small_potential

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calculators.engines.select import ENGINES
from ase_biasgrad.data.writer import closest_pair

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)
CUTOFF, SKIN = SIZES["cutoff"], 1.0  # Å; of the small potentials, of the calculator
ELEMENTS = (1, 6, 8, 29)
PROPERTIES = ("energy", "free_energy", "energies", "forces", "stress")
# A kept list has its pairs in the order of its last search, and holds others beyond the cutoff.
# So sums come in another order: they differ by some rounding errors of the numbers that they are
# of, which the networks carry on. Errors of a pair that is missing do not shrink with the dtype.
ROUNDINGS = 100
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}


def fluid(random: np.random.Generator, sites: int) -> Atoms:
    """Atoms on a cubic lattice of `sites³`, well off their sites."""
    grid = np.stack(np.meshgrid(*[np.arange(sites)] * 3), -1).reshape(-1, 3)
    positions = 1.9 * grid + random.uniform(-0.35, 0.35, grid.shape)
    numbers = random.choice(ELEMENTS, len(grid))
    return Atoms(numbers, positions, cell=[1.9 * sites] * 3, pbc=random.random(3) < 0.7)


# each changes `atoms` in place


def stay(atoms: Atoms, random: np.random.Generator) -> None:
    pass


def jitter(atoms: Atoms, random: np.random.Generator) -> None:
    atoms.positions += random.normal(0, 10 ** random.uniform(-9, -0.7), (len(atoms), 3))


def creep(atoms: Atoms, random: np.random.Generator) -> None:
    """Small steps of all atoms, like those of dynamics, and of the cell now and then."""
    atoms.positions += random.normal(0, 0.03, (len(atoms), 3))
    if random.random() < 0.3 and atoms.cell.rank == 3:
        atoms.set_cell(atoms.cell.array * random.uniform(0.997, 1.003), scale_atoms=True)


def approach(atoms: Atoms, random: np.random.Generator) -> None:
    """One atom comes from beyond the skin into the cutoff of another, or just not."""
    first, other = random.permutation(len(atoms))[:2]
    vector = atoms.positions[other] - atoms.positions[first]
    distance = np.linalg.norm(vector)
    if CUTOFF < distance < CUTOFF + 2 * SKIN:
        atoms.positions[first] += vector / distance * random.uniform(0.8, 1.4) * SKIN


def drift(atoms: Atoms, random: np.random.Generator) -> None:
    """Shifts of all atoms, and of one, by as much as the skin allows or more."""
    atoms.positions += random.uniform(-0.6, 0.6, 3)
    atoms.positions[random.integers(len(atoms))] += random.uniform(-0.6, 0.6, 3)


def jump(atoms: Atoms, random: np.random.Generator) -> None:
    atoms.positions[random.integers(len(atoms))] += random.uniform(-6, 6, 3)


def shift_by_cells(atoms: Atoms, random: np.random.Generator) -> None:
    steps = random.integers(-2, 3, (len(atoms), 3)) * atoms.pbc
    atoms.positions += steps @ atoms.cell.array


def wrap(atoms: Atoms, random: np.random.Generator) -> None:
    if atoms.cell.rank == 3:
        atoms.wrap()


def strain(atoms: Atoms, random: np.random.Generator) -> None:
    size = 10 ** random.uniform(-7, -0.8)
    cell = atoms.cell.array @ (np.eye(3) + random.normal(0, size, (3, 3)))
    atoms.set_cell(cell, scale_atoms=bool(random.integers(2)) and atoms.cell.rank == 3)


def turn_periodicity(atoms: Atoms, random: np.random.Generator) -> None:
    atoms.pbc[random.integers(3)] ^= True


def swap(atoms: Atoms, random: np.random.Generator) -> None:
    order = random.permutation(len(atoms))
    if random.integers(2):
        atoms.numbers[:] = atoms.numbers[order]
    else:
        atoms.positions[:] = atoms.positions[order]


def transmute(atoms: Atoms, random: np.random.Generator) -> None:
    atoms.numbers[random.integers(len(atoms))] = random.choice(ELEMENTS)


def remove(atoms: Atoms, random: np.random.Generator) -> None:
    if len(atoms) > 1:
        del atoms[random.integers(len(atoms))]


def add(atoms: Atoms, random: np.random.Generator) -> None:
    place = atoms.positions[random.integers(len(atoms))] + random.normal(0, 1.5, 3)
    atoms.extend(Atoms([random.choice(ELEMENTS)], [place]))


def spoil(atoms: Atoms, random: np.random.Generator) -> None:
    """Changes to something that no potential describes."""
    kind = random.integers(4)
    if kind == 0:
        atoms.positions[random.integers(len(atoms)), 1] = random.choice([np.nan, np.inf])
    elif kind == 1:
        atoms.numbers[random.integers(len(atoms))] = 79
    elif kind == 2:
        atoms.set_cell(np.zeros((3, 3)))
        atoms.pbc = True
    else:
        atoms.info["charge"] = 1


SMALL = (stay, jitter, creep, creep, creep, approach, approach)
LARGE = (drift, jump, shift_by_cells, wrap, strain, turn_periodicity, swap, transmute, remove, add)


def elsewhere(random: np.random.Generator) -> Atoms:
    """Another structure: one cell or all of a molecule, fewer or more atoms than 32."""
    kind = random.integers(5)
    if kind < 2:
        return fluid(random, 3 + kind)
    return (ethanol, copper, lambda seed: mixed())[kind - 2](int(random.integers(10**6)))


def next_place(atoms: Atoms, random: np.random.Generator) -> Atoms:
    """A changed copy of `atoms` whose atoms lie 0.6 Å apart, or more."""
    if random.random() < 0.03 or not 1 < len(atoms) < 90:
        return elsewhere(random)
    other = atoms.copy()
    if random.random() < 0.7:  # a kept list serves for a while
        SMALL[random.integers(len(SMALL))](other, random)
    else:
        LARGE[random.integers(len(LARGE))](other, random)
    try:
        close = closest_pair(other.positions, other.cell.array, other.pbc, 0.6)
    except ValueError:  # a cell without volume
        return atoms
    return atoms if close or len(other) == 0 else other


def calculators(name: str) -> dict[tuple[str, str], BiasGradCalculator]:
    """One of each engine and dtype that there is for a backbone."""
    made = {}
    potential = small_potential(name)
    counts = np.bincount([1] * 6 + [6] * 2 + [8], minlength=119)[None]
    potential.bias.fit(np.array([-4200.0]), counts, "mean")
    for engine in ENGINES:
        for dtype in EPSILON:
            try:
                made[engine, dtype] = BiasGradCalculator(
                    potential, device="cpu", dtype=dtype, engine=engine, skin=SKIN
                )
            except CalculatorSetupError:  # it does not fit
                continue
    return made


def values_of(calc: BiasGradCalculator, atoms: Atoms, asked: list[str]) -> dict[str, np.ndarray]:
    """Properties in the order asked for; the name of the error where there is one."""
    try:
        return {name: np.array(calc.get_property(name, atoms)) for name in asked}
    except (InputError, NotImplementedError) as error:
        return {type(error).__name__: np.zeros(0)}


def check(found: dict, right: dict, epsilon: float, atoms: int, case: str) -> float:
    """Compare; the largest difference in units of what is allowed."""
    assert found.keys() == right.keys(), case
    worst = 0.0
    for name, value in right.items():
        assert found[name].shape == value.shape, case
        # energies of atoms are of the order of 1 eV without the bias, which is added in float64
        size = 1.0 + (np.abs(value).max(initial=0) if name in ("forces", "stress") else 0)
        size *= atoms if name in ("energy", "free_energy") else 1
        bias = EPSILON["float64"] * np.abs(value).max(initial=0)
        allowed = ROUNDINGS * (epsilon * size + bias)
        worst = max(worst, float(np.abs(found[name] - value).max(initial=0)) / allowed)
        assert worst <= 1, f"{case}: {name} is off by {worst:.3g} times what is allowed"
    return worst


def walk(name: str, steps: int, seed: int) -> float:
    """Walk; the largest difference in units of what is allowed."""
    kept = calculators(name)
    fresh, keys = {key: calc.copy() for key, calc in kept.items()}, list(kept)
    atoms, key, worst = ethanol(), keys[0], 0.0
    with ThreadPoolExecutor(2) as threads:
        for step in range(steps):
            random = np.random.default_rng([seed, step])
            case = f"step {step} of {name}, seed {seed}"
            before, atoms = atoms, next_place(atoms, random)
            asked = [str(p) for p in random.permutation(PROPERTIES)[: random.integers(1, 6)]]
            key = keys[random.integers(len(keys))] if random.random() < 0.1 else key
            calc, epsilon, other = kept[key], EPSILON[key[1]], fresh[key].copy()
            place = atoms.copy()
            if random.random() < 0.05:
                spoil(place, random)
            right = values_of(other, place, asked)
            if random.random() < 0.2:  # two threads at once, at two places
                again = threads.submit(values_of, calc, before, asked)
                found = threads.submit(values_of, calc, place, asked).result()
                first = values_of(fresh[key].copy(), before, asked)
                worst = max(worst, check(again.result(), first, epsilon, len(before), case))
            elif random.random() < 0.3:
                found = threads.submit(values_of, calc, place, asked).result()
            else:
                found = values_of(calc, place, asked)
            worst = max(worst, check(found, right, epsilon, len(place), f"{case}, {key}, {asked}"))
            if step % 100 == 0:  # `copy` might share too much
                anew = values_of(calculators(name)[key], place, asked)
                check(right, anew, epsilon, len(place), f"{case}, made anew")
    return worst


@pytest.mark.parametrize("steps", [200, pytest.param(35_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_a_kept_calculator_equals_a_fresh_one(name, steps):
    print(worst := walk(name, steps, seed=steps))
    assert worst > 0  # the bound is compared with something
