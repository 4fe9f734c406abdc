"""Checks 7 to 12: changes that are seen, state that is copied, globals that are left alone."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators import calculator as ase_calculator
from ase.calculators.calculator import BaseCalculator, Calculator, all_changes
from ase.outputs import all_outputs

from ase_biasgrad.testing.failures import Failure, NotApplicable, expect, short, without_folders
from ase_biasgrad.testing.process import (
    changes_in_a_process,
    differences,
    forces_in_a_process,
    modules_of_an_import,
    snapshot,
)
from ase_biasgrad.testing.subject import Subject

SMALL = 1e-10  # Å
CHANGES = {"positions", "numbers", "cell", "pbc", "initial_charges", "initial_magmoms"}  # of ASE
# what a calculator would be told of a charge or a spin, in the ways that are in use
TELLS: dict[str, Callable[[Atoms], Any]] = {
    "atoms.info['charge'] = 1": lambda atoms: atoms.info.update(charge=1),
    "initial charges of sum 1": lambda atoms: atoms.set_initial_charges(_first_one(atoms)),
}
SPINS: dict[str, Callable[[Atoms], Any]] = {
    "atoms.info['spin'] = 3": lambda atoms: atoms.info.update(spin=3),
    "initial moments of sum 2": lambda atoms: atoms.set_initial_magnetic_moments(
        2 * _first_one(atoms)
    ),
}


def direct_calls_with_some_changes(subject: Subject) -> None:
    """calculate(atoms, properties, ['positions']) redoes what depends on positions."""
    atoms, calc = subject.structure, subject.make()
    calc.calculate(atoms, ["energy", "forces"], all_changes)
    atoms.positions[1] += 0.1
    calc.calculate(atoms, ["energy", "forces"], ["positions"])
    forces = np.asarray(calc.results["forces"])
    subject.expect_same_forces(forces, subject.forces(atoms), "after calculate(…, ['positions'])")


def a_failure_leaves_no_results(subject: Subject) -> None:
    """After an error there are no results of other atoms to be taken for these."""
    good, calc = subject.structure, subject.make()
    bad = good.copy()
    bad.positions[0] = np.nan
    good.calc = bad.calc = calc
    good.get_potential_energy()
    for time in ("first", "second"):
        try:
            energy = bad.get_potential_energy()
        except Exception:
            continue
        if np.isfinite(energy):
            told = f"asked the {time} time, it gives the energy {energy:.6g} eV for NaN positions"
            raise Failure(told, "an error, however often")
        raise NotApplicable("it computes with positions of NaN; see 15")


def small_changes_are_seen(subject: Subject) -> None:
    """check_state reports nothing for the same atoms, and the smallest changes of others."""
    atoms = subject.calculated(subject.structure)
    atoms.get_potential_energy()
    same = atoms.calc.check_state(atoms.copy())
    expect(not same, f"the same atoms count as changed: {same}", "no change")
    moved = atoms.copy()
    moved.positions[0, 0] += SMALL
    seen = atoms.calc.check_state(moved)
    expect("positions" in seen, f"a change of {SMALL} Å counts as {seen}", "['positions']")


def results_follow_every_change(subject: Subject) -> None:
    """After a change of positions, cell, pbc, elements or count, results are those of now."""
    calc = subject.make()
    for atoms in _structures_that_there_are(subject):
        atoms.calc = calc
        atoms.get_forces()
        for what, change in _changes(atoms).items():
            change(atoms)
            try:
                wanted = subject.forces(atoms)
            except Exception:
                continue  # not what it is made for
            subject.expect_same_forces(atoms.get_forces(), wanted, f"after a change of {what}")


def _changes(atoms: Atoms) -> dict[str, Callable[[Atoms], Any]]:
    last = len(atoms) - 1
    changes: dict[str, Callable[[Atoms], Any]] = {
        "positions": lambda a: a.positions.__setitem__((0, 1), a.positions[0, 1] + 0.1)
    }
    if atoms.pbc.any():
        changes["cell"] = lambda a: a.set_cell(a.cell.array * 1.03)
        changes["pbc"] = lambda a: a.set_pbc([True, True, False])
    if atoms.numbers[0] != atoms.numbers[last]:
        changes["elements"] = lambda a: a.set_atomic_numbers(a.numbers[::-1])
    changes["the number of atoms"] = lambda a: a.__delitem__(last)
    return changes


def a_charge_is_read_or_refused(subject: Subject) -> None:
    """A charge is an input, or an error; it is not silently left out."""
    _read_or_refused(subject, TELLS)


def a_spin_is_read_or_refused(subject: Subject) -> None:
    """A spin is an input, or an error; it is not silently left out."""
    _read_or_refused(subject, SPINS)


def _read_or_refused(subject: Subject, tells: dict[str, Callable[[Atoms], Any]]) -> None:
    neutral = subject.energy(subject.structure)
    for tell in tells.values():
        told = subject.structure
        tell(told)
        try:
            energy = subject.energy(told)
        except Exception:
            return
        if abs(energy - neutral) > subject.tolerance + 10 * subject.noise:
            return
    raise Failure(f"neither {' nor '.join(tells)} changes the energy", "another energy or an error")


def a_new_charge_is_seen(subject: Subject) -> None:
    """One calculator notices a charge or spin that is set after the first evaluation."""
    read = False
    for what, tell in {**TELLS, **SPINS}.items():
        atoms = subject.calculated(subject.structure)
        neutral = atoms.get_potential_energy()
        tell(atoms)
        try:
            wanted = subject.energy(atoms)
        except Exception as error:
            read = True
            with contextlib.suppress(Exception):
                atoms.get_potential_energy()
                raise Failure(f"{what}, set later, is not seen", short(error)) from error
            continue
        if abs(wanted - neutral) > subject.tolerance + 10 * subject.noise:
            read = True
            subject.expect_same_energy(atoms.get_potential_energy(), wanted, f"{what}, set later")
    if not read:
        raise NotApplicable("it reads neither charge nor spin")


def reset_forgets(subject: Subject) -> None:
    """reset() clears the results, and the next evaluation gives the same."""
    atoms = subject.calculated(subject.structure)
    if not hasattr(atoms.calc, "reset"):
        raise NotApplicable("it has no reset(), which ASE's BaseCalculator does not ask for")
    forces = atoms.get_forces()
    atoms.calc.reset()
    expect(not atoms.calc.results, f"after reset() results hold {set(atoms.calc.results)}", "none")
    subject.expect_same_forces(atoms.get_forces(), forces, "after reset()")


def unknown_parameters_are_refused(subject: Subject) -> None:
    """set() of a parameter that there is not raises an error."""
    calc = subject.make()
    if not hasattr(calc, "set"):
        raise NotApplicable("it has no set(), which ASE's BaseCalculator does not ask for")
    try:
        calc.set(colour="red")
    except Exception:
        return
    raise Failure("set(colour='red') is accepted", "an error that names it")


def class_lists_of_ase_are_left_alone(subject: Subject) -> None:
    """No list of ASE's classes was extended in place, which would change every calculator."""
    subject.energy(subject.structure)
    more = set(ase_calculator.all_properties) - set(all_outputs)
    expect(not more, f"ase's all_properties now has {sorted(more)}", "ASE's own names")
    more = set(all_changes) - CHANGES
    expect(not more, f"ase's all_changes now has {sorted(more)}", "ASE's own names")
    for kind in (BaseCalculator, Calculator):
        listed = sorted(set(kind.implemented_properties))
        expect(not listed, f"{kind.__name__}.implemented_properties is {listed}", "[]")


def one_calculator_on_many_atoms(subject: Subject) -> None:
    """One calculator that goes from structure to structure gives what new ones give."""
    calc = subject.make()
    for atoms in subject.several() * 2:
        atoms.calc = calc
        what = f"{atoms.symbols} after other structures"
        subject.expect_same_forces(atoms.get_forces(), subject.forces(atoms), what)


def a_copy_is_independent(subject: Subject) -> None:
    """copy() gives a calculator with the same results and a state of its own."""
    atoms = subject.calculated(subject.structure)
    if not hasattr(atoms.calc, "copy"):
        raise NotApplicable("it has no copy(), which ASE's Calculator does not ask for")
    forces = atoms.get_forces()
    twin = atoms.copy()
    twin.calc = atoms.calc.copy()
    subject.expect_same_forces(twin.get_forces(), forces, "of the copy")
    twin.positions += 0.1 * np.arange(3 * len(twin)).reshape(-1, 3) / len(twin)
    twin.get_forces()
    subject.expect_same_forces(atoms.get_forces(), forces, "after the copy went on")


def deep_copies_work(subject: Subject) -> None:
    """copy.deepcopy(atoms) with its calculator evaluates as before."""
    _same_after(subject, copy.deepcopy)


def pickles_work(subject: Subject) -> None:
    """Atoms with their calculator survive pickle."""
    _same_after(subject, lambda atoms: pickle.loads(pickle.dumps(atoms)))


def _same_after(subject: Subject, again: Callable[[Atoms], Atoms]) -> None:
    atoms = subject.calculated(subject.structure)
    forces = atoms.get_forces()
    other = again(atoms)
    expect(other.calc is not atoms.calc, "the calculator is the same object", "another one")
    subject.expect_same_forces(_moved(other).get_forces(), _moved(atoms).get_forces(), "of it")
    expect(np.isfinite(forces).all(), "forces are not finite", "finite forces")


def _moved(atoms: Atoms) -> Atoms:
    atoms.positions[0] += 0.01
    return atoms


def another_process_evaluates(subject: Subject) -> None:
    """A calculator goes to a new process by pickle, and evaluates there."""
    atoms = subject.calculated(subject.structure)
    forces = atoms.get_forces()
    found = forces_in_a_process(pickle.dumps(atoms))
    subject.expect_same_forces(found, forces, "in another process")


def description_is_json(subject: Subject) -> None:
    """todict() describes it in JSON values, as databases and trajectories need it."""
    calc = subject.make()
    found = calc.todict()
    try:
        json.dumps(found)
    except TypeError as error:
        raise Failure(f"json.dumps(calc.todict()) raised {short(error)}", "JSON values") from error
    expect(isinstance(getattr(calc, "name", None), str), "its name is no text", "a name")


def globals_are_left_alone(subject: Subject) -> None:
    """No environment variables, seeds, default dtypes, handlers of logs or folders are changed."""
    if subject.name:
        changes = changes_in_a_process(subject.name, subject.structure).changes
    else:
        before = snapshot()
        subject.forces(subject.structure)
        changes = differences(before, snapshot())
    told = "; ".join(f"{name} from {old} to {new}" for name, (old, new) in changes.items())
    expect(not changes, f"importing, making and evaluating it changes {told}", "no change")


def it_prints_nothing(subject: Subject) -> None:
    """Making and evaluating it prints nothing."""
    if subject.name:
        printed = changes_in_a_process(subject.name, subject.structure).printed
    else:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            subject.forces(subject.structure)
        printed = said.getvalue()
    first = without_folders((printed.strip().splitlines() or [""])[0])
    expect(not printed.strip(), f"it prints {first[:150]!r}", "nothing")


def importing_it_is_light(subject: Subject) -> None:
    """Importing its package loads no framework of networks until a calculator is made."""
    package = type(subject.make()).__module__.partition(".")[0]
    loaded = modules_of_an_import(package)
    expect(not loaded, f"`import {package}` loads {', '.join(sorted(loaded))}", "none of these")


def _structures_that_there_are(subject: Subject) -> list[Atoms]:
    found = []
    for name in ("molecule", "crystal"):
        with contextlib.suppress(NotApplicable):
            found.append(getattr(subject, name))
    return found


def _first_one(atoms: Atoms) -> np.ndarray:
    values = np.zeros(len(atoms))
    values[0] = 1
    return values
