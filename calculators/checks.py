"""Checks of a structure: its changes since the last one, elements, positions, charge and spin."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, InputError, all_changes
from ase.data import chemical_symbols, reference_states

# keys of atoms.info and their conventions; no backbone of ours reads any of them
NEUTRAL_INFO = {
    "charge": "a charge in e (neutral: 0)",
    "total_charge": "a charge in e (neutral: 0)",
    "spin": "a multiplicity (singlet: 1) or a number of unpaired electrons (singlet: 0)",
    "spin_multiplicity": "a multiplicity (singlet: 1)",
    "multiplicity": "a multiplicity (singlet: 1)",
}
NOTHING_SAID = (None,) * len(NEUTRAL_INFO)


def changes_between(last: Atoms | None, last_info: tuple[Any, ...], atoms: Atoms) -> list[str]:
    """Names of the differences between the atoms of the last calculation and these, exactly.

    `last_info` are the `info_values` of the last atoms.
    """
    if last is None:
        return list(all_changes)
    changes = [
        name
        for name in ("positions", "numbers", "initial_charges", "initial_magmoms")
        if not _equal(last.arrays.get(name), atoms.arrays.get(name))
    ]
    if not _equal(last.cell.array, atoms.cell.array):
        changes.append("cell")
    if not _equal(last.pbc, atoms.pbc):
        changes.append("pbc")
    if last_info != info_values(atoms):
        changes.append("info")
    return changes


def _equal(old: np.ndarray | None, new: np.ndarray | None) -> bool:
    """Exact equality. Most arrays have the same bytes, and that is found out quickly."""
    if old is None or new is None:
        return old is new
    if old.shape != new.shape:
        return False
    return (old.dtype == new.dtype and old.tobytes() == new.tobytes()) or bool((old == new).all())


def kept_copy(own: Atoms | None, atoms: Atoms) -> Atoms:
    """A copy of `atoms`: `own` with the arrays of `atoms` written into it, where only these differ.

    `Atoms.copy` takes as long as the forces of a small molecule.
    """
    if own is None or atoms.info or atoms.constraints or own.info or own.constraints:
        return atoms.copy()
    if own.arrays.keys() != atoms.arrays.keys() or len(own) != len(atoms):
        return atoms.copy()
    if not (_equal(own.cell.array, atoms.cell.array) and _equal(own.pbc, atoms.pbc)):
        return atoms.copy()
    for name, values in atoms.arrays.items():
        if own.arrays[name].shape != values.shape or own.arrays[name].dtype != values.dtype:
            return atoms.copy()
    for name, values in atoms.arrays.items():
        own.arrays[name][...] = values
    return own


def info_values(atoms: Atoms) -> tuple[Any, ...]:
    """Values of `NEUTRAL_INFO` that compare as one, arrays too."""
    if not atoms.info:
        return NOTHING_SAID
    values = [atoms.info.get(key) for key in NEUTRAL_INFO]
    return tuple(None if value is None else np.asarray(value).tolist() for value in values)


def check_numbers_and_positions(atoms: Atoms, elements: Collection[int]) -> None:
    """Raise `InputError` on positions that are not finite or elements that are not known."""
    # a sum is finite only if all of its terms are
    if not math.isfinite(atoms.positions.sum()) and not np.isfinite(atoms.positions).all():
        atom = int(np.argmin(np.isfinite(atoms.positions).all(axis=1)))
        raise InputError(f"the position of atom {atom} is not finite: {atoms.positions[atom]}")
    if message := unknown_elements(atoms.numbers, elements):
        raise InputError(message)


def unknown_elements(numbers: np.ndarray, elements: Collection[int]) -> str:
    """Say which of the atomic numbers `(n,)` a potential of `elements` does not know, if any."""
    if not (unknown := set(numbers.tolist()) - set(elements)):
        return ""
    names, known = ([chemical_symbols[z] for z in sorted(each)] for each in (unknown, elements))
    return f"the potential does not know {names}; it was trained for {known}"


def check_neutral(atoms: Atoms) -> None:
    """Raise `InputError` on charges or spins, which no potential of ours has as an input.

    Charges are neutral if their sum rounds to zero, and moments if they add up to zero or are
    those that `ase.build` gives to the ground state of a molecule or an element.
    """
    for key, meaning in NEUTRAL_INFO.items():
        value = atoms.info.get(key)
        if value is not None and not _is_neutral(key, value):
            raise InputError(
                f"atoms.info[{key!r}] is {value!r}, read as {meaning}: the potential has no such "
                "input and describes the neutral singlet alone"
            )
    if "initial_charges" in atoms.arrays:
        total = float(atoms.arrays["initial_charges"].sum())
        if not abs(total) < 0.5:
            raise InputError(
                f"initial_charges sum to {total:g} e, read as a total charge of {total:.0f}: the "
                "potential has no such input; atoms.set_initial_charges(None) drops them"
            )
    if "initial_magmoms" in atoms.arrays:
        moments = atoms.arrays["initial_magmoms"]
        if not np.abs(moments.sum(axis=0)).max() < 1e-6 and not _of_ground_state(atoms, moments):
            raise InputError(
                f"initial_magmoms sum to {moments.sum(axis=0)} μB, read as unpaired electrons: the "
                "potential has no such input; atoms.set_initial_magnetic_moments(None) drops them"
            )


def _is_neutral(key: str, value: Any) -> bool:
    try:
        numbers = np.asarray(value, float)
    except (TypeError, ValueError):
        return False
    if "charge" in key:
        return bool(abs(numbers.sum()) < 0.5)
    return bool(np.isin(numbers, (0, 1) if key == "spin" else 1).all())


def _of_ground_state(atoms: Atoms, moments: np.ndarray) -> bool:
    """Tell whether `ase.build` puts these moments `(n,)` on its crystals or molecules."""
    usual = [(reference_states[z] or {}).get("magmom_per_atom", 0) for z in atoms.numbers]
    if moments.ndim != 1:  # not collinear
        return False
    return np.array_equal(moments, usual) or _labels(atoms.numbers, moments) in _molecules()


def _labels(numbers: np.ndarray, moments: np.ndarray) -> tuple[Any, ...]:
    return tuple(sorted(zip(numbers.tolist(), moments.tolist(), strict=True)))


@cache
def _molecules() -> set[tuple[Any, ...]]:
    """Atomic numbers and moments of each molecule of `ase.build.molecule`."""
    from ase.build import molecule
    from ase.build.molecule import extra
    from ase.collections import g2

    molecules = [molecule(name) for name in (*g2.names, *extra)]
    return {_labels(m.numbers, m.get_initial_magnetic_moments()) for m in molecules}


def check_finite(results: dict[str, Any], atoms: int, advice: str) -> None:
    """Raise `CalculationFailed` naming the first result that is not finite."""
    for name, values in results.items():
        if name == "energy_reference_std":  # NaN: not known
            continue
        if not math.isfinite(values if isinstance(values, float) else values.sum()):
            raise CalculationFailed(
                f"the {name} of {atoms} atoms came out as NaN or infinity: {advice}"
            )
