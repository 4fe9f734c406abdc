"""Many relaxations at once go where each would go alone, whatever the others do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc100, molecule
from ase.calculators.calculator import CalculationFailed, InputError
from ase.constraints import FixAtoms, FixBondLength, Hookean
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read
from ase.optimize import LBFGS
from conftest import copper, ethanol, mixed, small_potential
from hypothesis import given
from hypothesis import strategies as st

from ase_biasgrad.calculators import BiasGradCalculator, ChargedParticles, relax_many
from ase_biasgrad.calculators import batch_relaxation as module
from ase_biasgrad.numerics.lbfgs import ManyLBFGS

ETHANOL = Path(__file__).parents[2] / "examples" / "potentials" / "ethanol_rmd17.safetensors"
LOOSE = {"fmax": 1e-3, "steps": 6}  # random weights: the path counts, not where it ends


def calculator(name: str = "schnet", **arguments) -> BiasGradCalculator:
    return BiasGradCalculator(
        small_potential(name), **{"device": "cpu", "dtype": "float64", **arguments}
    )


def structures() -> list[Atoms]:
    """Molecules and crystals of several sizes, one of them held by its constraints."""
    water, held, slab = molecule("H2O"), ethanol(1), fcc100("Cu", (2, 2, 2), vacuum=3)
    water.rattle(0.1, seed=0)
    held.set_constraint([FixAtoms([0, 3]), FixBondLength(1, 2), Hookean(4, 5, k=5.0, rt=1.0)])
    slab.rattle(0.1, seed=0)
    slab.set_constraint(FixAtoms(range(4)))
    return [ethanol(), copper(), water, held, mixed(), slab, Atoms("C")]


def alone(target, calc, fmax: float, steps: int) -> tuple[int, bool]:
    """Steps by ASE's optimizer, and if they led to the minimum."""
    getattr(target, "atoms", target).calc = calc
    search = LBFGS(target, logfile=None)
    converged = search.run(fmax=fmax, steps=steps)
    return search.nsteps, bool(converged)


def same_paths(ours, theirs, calc, tolerance: float, **limits) -> list:
    """Relax in both ways, compare, and return our outcomes."""
    outcomes = relax_many(ours, calc, **limits)
    for target, other, outcome in zip(ours, theirs, outcomes, strict=True):
        assert outcome.error is None
        assert (outcome.steps, outcome.converged) == alone(other, calc.copy(), **limits)
        atoms, reference = (getattr(each, "atoms", each) for each in (target, other))
        np.testing.assert_allclose(atoms.positions, reference.positions, atol=tolerance)
        np.testing.assert_allclose(atoms.cell.array, reference.cell.array, atol=tolerance)
        assert atoms.get_potential_energy() == pytest.approx(
            reference.get_potential_energy(), abs=tolerance
        )
    return outcomes


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_paths_are_those_of_ase(name, engine):
    outcomes = same_paths(
        structures(), structures(), calculator(name, engine=engine), 1e-6, **LOOSE
    )
    assert outcomes[-1].steps == 0  # a single atom has no forces
    assert outcomes[0].steps == 6


def test_paths_of_cells_are_those_of_ase():
    """Beside structures whose cells stay."""

    def targets():
        held = copper(2)
        held.set_constraint(FixAtoms([0]))
        return [
            FrechetCellFilter(copper()),
            ethanol(),
            FrechetCellFilter(copper(1), mask=[True, True, False, False, False, False]),
            FrechetCellFilter(held, scalar_pressure=0.1),
        ]

    same_paths(targets(), targets(), calculator("painn"), 1e-6, **LOOSE)


@given(st.lists(st.booleans(), max_size=12))
def test_those_that_go_on_keep_their_places(mask):
    """The last ones fill the gaps, and take their histories along."""
    lbfgs, count = ManyLBFGS([3] * len(mask), 70.0, 5), sum(mask)
    x = np.repeat(np.arange(len(mask), dtype=float), 3)
    lbfgs.step(x, x)
    kept = module._kept(list(range(len(mask))), lbfgs, mask)
    assert sorted(kept) == np.flatnonzero(mask).tolist()
    assert all(kept[k] == k for k in range(count) if mask[k])
    np.testing.assert_array_equal(lbfgs._last[0], np.repeat(np.array(kept, float), 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_minima_of_a_trained_potential(dtype):
    """Several starts, free and held, each to the minimum that it finds alone."""

    def starts():
        made = []
        for seed in range(6):
            atoms = molecule("CH3CH2OH")
            atoms.rattle(0.1, seed=seed)
            if seed % 2:
                atoms.set_constraint([FixAtoms([0]), FixBondLength(1, 2)])
            made.append(atoms)
        return made

    calc, first = BiasGradCalculator(ETHANOL, device="cpu", dtype=dtype), starts()
    ours, theirs = starts(), starts()
    outcomes = relax_many(ours, calc, fmax=1e-3, steps=500)
    assert all(outcome.converged and outcome.fmax < 1e-3 for outcome in outcomes)
    assert len({outcome.steps for outcome in outcomes}) > 1  # each in its own time
    for start, atoms, other in zip(first, ours, theirs, strict=True):
        assert alone(other, calc, 1e-3, 500)[1]
        assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-4)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 1e-3
        if atoms.constraints:
            np.testing.assert_array_equal(atoms.positions[0], start.positions[0])
            assert atoms.get_distance(1, 2) == pytest.approx(start.get_distance(1, 2), abs=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
def test_others_and_threads_change_nothing(dtype, tolerance, monkeypatch):
    calc, threads = calculator("tensornet", dtype=dtype), torch.get_num_threads()
    single = structures()
    for atoms in single:
        relax_many([atoms], calc, **LOOSE)
    results = [single]
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(structures())
            relax_many(results[-1], calc, **LOOSE)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(module, "ATOMS_AT_ONCE", 15)
    results.append(structures()[::-1])
    relax_many(results[-1], calc, **LOOSE)
    results[-1].reverse()
    for first, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_allclose(other.positions, first.positions, atol=tolerance)


def test_one_that_fails_is_named_and_stops_no_other():
    class Broken(FixAtoms):
        def adjust_forces(self, atoms, forces):
            raise ZeroDivisionError("of a constraint")

    bad = [molecule("H2O") for _ in range(4)]
    bad[0].numbers[0] = 92
    bad[1].positions[1, 2] = np.nan
    bad[2].positions[1] = bad[2].positions[2]
    bad[3].set_constraint(Broken([0]))
    calc, good = calculator(), structures()
    mixture = [x for pair in zip(good, [*bad, Atoms()], strict=False) for x in pair]
    mixture += [FrechetCellFilter(ethanol()), *good[5:]]
    outcomes = dict(zip(map(id, mixture), relax_many(mixture, calc, **LOOSE), strict=True))
    reference = structures()
    relax_many(reference, calc, **LOOSE)
    for atoms, expected in zip(good, reference, strict=True):
        assert outcomes[id(atoms)].error is None
        np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-9)
    for target, kind, said in (
        (bad[0], InputError, "does not know ..U"),
        (bad[1], InputError, "position of atom 1 is not finite"),
        (bad[2], CalculationFailed, "came out as NaN"),
        (bad[3], ZeroDivisionError, "of a constraint"),
        (mixture[9], ValueError, "there are no atoms"),
        (mixture[10], NotImplementedError, "no stress of a structure without volume"),
    ):
        outcome = outcomes[id(target)]
        assert isinstance(outcome.error, kind)
        assert said.replace("..", "['") in str(outcome.error)
        assert (outcome.converged, outcome.steps) == (False, 0)


def test_observers_and_trajectories_see_every_evaluation(tmp_path):
    calc, seen = calculator(), {}
    targets = structures()

    def observer(index: int, atoms: Atoms) -> None:
        assert atoms is targets[index]
        seen.setdefault(index, []).append(atoms.get_potential_energy())
        with Trajectory(str(tmp_path / f"{index}.traj"), "a", atoms) as path:
            path.write()

    outcomes = relax_many(targets, calc, **LOOSE, observer=observer)
    for k, (atoms, outcome) in enumerate(zip(targets, outcomes, strict=True)):
        frames = read(tmp_path / f"{k}.traj", ":")
        assert len(frames) == len(seen[k]) == outcome.steps + 1
        np.testing.assert_array_equal(frames[-1].positions, atoms.positions)
        for frame, energy in zip(frames, seen[k], strict=True):
            own = frame.copy()
            own.calc = calc
            assert own.get_potential_energy() == pytest.approx(energy, abs=1e-9)
            np.testing.assert_allclose(
                frame.get_forces(apply_constraint=False),
                own.get_forces(apply_constraint=False),
                atol=1e-9,
            )


def test_an_error_of_an_observer_is_an_error():
    def full(index: int, atoms: Atoms) -> None:
        raise OSError("no space left")

    atoms = ethanol()
    with pytest.raises(OSError, match="no space left"):
        relax_many([atoms], calculator(), observer=full)
    assert isinstance(atoms.calc, BiasGradCalculator)


def test_structures_keep_a_calculator_that_knows_their_results(monkeypatch):
    calc, targets = calculator(), structures()
    relax_many(targets, calc, **LOOSE)
    assert calc.results == {}
    known = [atoms.get_forces(apply_constraint=False) for atoms in targets]
    for atoms in targets:
        atoms.calc.reset()
    for atoms, forces in zip(targets, known, strict=True):
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), forces, atol=1e-12)

    def never(*_):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(BiasGradCalculator, "evaluated", never)
    again = structures()
    relax_many(again, calc, **LOOSE)
    for atoms in again:
        assert np.isfinite(atoms.get_potential_energy())
    again[0].positions[0] += 0.1
    with pytest.raises(AssertionError, match="evaluated again"):
        again[0].get_potential_energy()


def test_what_cannot_be_relaxed():
    atoms = ethanol()
    with pytest.raises(ValueError, match="structures 0 and 2 are the same object"):
        relax_many([atoms, copper(), atoms], calculator())
    with pytest.raises(ValueError, match="must be positive"):
        relax_many([atoms], calculator(), fmax=0)
    with pytest.raises(TypeError, match="not ChargedParticles"):
        relax_many([atoms], ChargedParticles())
    assert relax_many([], calculator()) == []
