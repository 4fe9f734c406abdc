"""Checks 1 to 6: types, shapes and consistency of results."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.outputs import all_outputs

from ase_biasgrad.testing.failures import Failure, NotApplicable, expect, expect_small, short
from ase_biasgrad.testing.subject import Subject

FINEST = 1e-5  # eV per atom: what rounding and convergence may leave


def energy_is_a_float(subject: Subject) -> None:
    """The energy is one float."""
    atoms = subject.calculated(subject.structure)
    energy = atoms.get_potential_energy()
    expect(isinstance(energy, float), f"the energy is {_kind(energy)}", "a float")
    expect("energy" in subject.implemented, f"it offers {sorted(subject.implemented)}", "energy")


def free_energy_is_offered(subject: Subject) -> None:
    """Force-consistent energies are asked for by ASE's tools, and named as implemented."""
    atoms = subject.calculated(subject.structure)
    energy = atoms.get_potential_energy()
    try:
        free = atoms.get_potential_energy(force_consistent=True)
    except PropertyNotImplementedError as error:
        raise Failure(f"force_consistent=True raised {short(error)}", "an energy") from error
    expect(isinstance(free, float), f"the free energy is {_kind(free)}", "a float")
    expect("free_energy" in subject.implemented, "free_energy comes, but is not listed", "both")
    expect(np.isfinite(free), f"the free energy is {free}, the energy {energy}", "both finite")


def stress_has_voigt_shape(subject: Subject) -> None:
    """A stress has six components, and nine when asked for."""
    subject.needs("stress")
    atoms = subject.calculated(subject.crystal)
    stress = np.asarray(atoms.get_stress())
    expect(stress.shape == (6,), f"the stress has shape {stress.shape}", "(6,)")
    full = np.asarray(atoms.get_stress(voigt=False))
    expect(full.shape == (3, 3), f"with voigt=False it has shape {full.shape}", "(3, 3)")


def stress_of_a_molecule_is_refused(subject: Subject) -> None:
    """Without a volume there is no stress: PropertyNotImplementedError."""
    subject.needs("stress")
    atoms = subject.calculated(subject.molecule)
    try:
        stress = atoms.get_stress()
    except PropertyNotImplementedError:
        return
    except Exception as error:
        raise Failure(f"it raised {short(error)}", "PropertyNotImplementedError") from error
    told = f"a molecule has a stress, of up to {np.abs(stress).max():.2g} eV/Å³"
    raise Failure(told, "PropertyNotImplementedError")


def energies_sum_to_the_energy(subject: Subject) -> None:
    """Energies of atoms add up to the energy."""
    subject.needs("energies")
    for atoms in map(subject.calculated, subject.several()):
        try:
            energies = np.asarray(atoms.get_potential_energies())
        except PropertyNotImplementedError as error:
            raise Failure("energies are listed, but do not come", "what is listed") from error
        expect(energies.shape == (len(atoms),), f"shape {energies.shape}", f"({len(atoms)},)")
        difference = abs(energies.sum() - atoms.get_potential_energy())
        limit = FINEST * len(atoms) + 10 * subject.noise
        expect_small(difference, limit, f"for {atoms.symbols} the sum is off by", "eV")


def stresses_sum_to_the_stress(subject: Subject) -> None:
    """Stresses of atoms add up to the stress."""
    subject.needs("stress", "stresses")
    atoms = subject.calculated(subject.crystal)
    stresses, stress = np.asarray(atoms.get_stresses()), np.asarray(atoms.get_stress())
    difference = float(np.abs(stresses.sum(axis=0) - stress).max())
    expect_small(difference, 1e-4 * np.abs(stress).max(), "the sum is off by", "eV/Å³")


def arrays_are_float64(subject: Subject) -> None:
    """Results are contiguous float64 arrays of the right shapes."""
    atoms = subject.calculated(_periodic_if_possible(subject))
    for name, value in _arrays(subject, atoms).items():
        kind = getattr(value, "dtype", type(value).__name__)
        expect(isinstance(value, np.ndarray), f"{name} is a {kind}", "an array")
        expect(value.dtype == np.float64, f"{name} is {kind}", "float64")
        expect(value.flags.c_contiguous, f"{name} has strides {value.strides}", "C order")


def arrays_are_copies(subject: Subject) -> None:
    """Whoever changes a returned array does not change the results."""
    atoms = subject.calculated(subject.structure)
    subject.needs("forces")
    forces = atoms.get_forces()
    kept = np.array(forces)
    forces[:] = 0
    left = np.abs(atoms.get_forces() - kept).max()
    expect_small(left, 0, "after forces[:] = 0 the calculator's own have changed by", "eV/Å")


def energy_is_resolved(subject: Subject) -> None:
    """Rounding does not show: energies along a line are smooth."""
    atoms = subject.structure
    limit = FINEST * len(atoms)
    expect_small(subject.noise, limit, f"energies of {atoms.symbols} scatter by", "eV")


def one_evaluation_serves_all(subject: Subject) -> None:
    """An energy that came with the forces is not calculated again."""
    subject.needs("forces")
    atoms = subject.calculated(subject.structure)
    calls = _counted(atoms.calc)
    atoms.get_forces()
    first = len(calls)
    if first == 0:
        raise NotApplicable("its evaluations cannot be counted: it does not call calculate()")
    atoms.get_potential_energy()
    atoms.get_forces()
    expect(len(calls) == first, f"energy after forces made {len(calls) - first} more", "none")


def only_standard_names_are_exported(subject: Subject) -> None:
    """Results under other names than ASE's do not break export_properties."""
    atoms = subject.calculated(_periodic_if_possible(subject))
    atoms.get_potential_energy()
    others = sorted(set(atoms.calc.results) - set(all_outputs))
    try:
        exported = set(atoms.calc.export_properties())
    except KeyError as error:
        raise Failure(
            f"export_properties raised {short(error)}, results hold {others}", "them left out"
        ) from error
    expect(exported <= set(all_outputs), f"it exports {sorted(exported)}", "ASE's names alone")


def _kind(value: Any) -> str:
    shape = f" of shape {np.shape(value)}" if np.shape(value) else ""
    return f"a {type(value).__module__}.{type(value).__name__}{shape}"


def _periodic_if_possible(subject: Subject) -> Any:
    try:
        return subject.crystal
    except NotApplicable:
        return subject.structure


def _arrays(subject: Subject, atoms: Any) -> dict[str, Any]:
    """Forces, and stress and energies where it has them, as they lie in `results`."""
    wanted = ["forces", "energies", *(["stress"] if atoms.cell.rank == 3 else [])]
    found = {}
    for name in wanted:
        if name in subject.implemented:
            with contextlib.suppress(PropertyNotImplementedError):  # listed, but it does not come
                atoms.calc.get_property(name, atoms)
                found[name] = atoms.calc.results[name]
    return found


def _counted(calc: Any) -> list[Any]:
    """Calls of `calculate`, recorded as they come."""
    calls: list[Any] = []
    calculate = calc.calculate

    def recorded(*args: Any, **keywords: Any) -> Any:
        calls.append(args)
        return calculate(*args, **keywords)

    calc.calculate = recorded
    return calls
