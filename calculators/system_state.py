"""What every calculator asks of a structure: what changed, and whether it can be described."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import InputError, all_changes
from ase.data import chemical_symbols

if TYPE_CHECKING:
    from ase import Atoms

# what people write into atoms.info; no backbone of ours reads any, so only neutral values pass
NEUTRAL_INFO = {"charge": 0, "total_charge": 0, "spin": 0, "spin_multiplicity": 1}


def changes_between(last: Atoms | None, last_info: tuple[Any, ...], atoms: Atoms) -> list[str]:
    """What differs between the atoms of the last calculation and these, exactly.

    `last_info` are the `info_values` of the last atoms.
    """
    if last is None:
        return list(all_changes)
    changes = [
        name
        for name in ("positions", "numbers")
        if not np.array_equal(last.arrays[name], atoms.arrays[name])
    ]
    if not np.array_equal(last.cell.array, atoms.cell.array):
        changes.append("cell")
    if not np.array_equal(last.pbc, atoms.pbc):
        changes.append("pbc")
    for name in ("initial_charges", "initial_magmoms"):
        old, new = last.arrays.get(name), atoms.arrays.get(name)
        if (old is None) != (new is None) or not (old is None or np.array_equal(old, new)):
            changes.append(name)
    if last_info != info_values(atoms):
        changes.append("info")
    return changes


def info_values(atoms: Atoms) -> tuple[Any, ...]:
    """Values of `NEUTRAL_INFO` that compare as one, arrays too."""
    values = [atoms.info.get(key) for key in NEUTRAL_INFO]
    return tuple(None if value is None else np.asarray(value).tolist() for value in values)


def check_numbers_and_positions(atoms: Atoms, elements: Collection[int]) -> None:
    """Raise `InputError` on positions that are not finite or elements that are not known."""
    if not np.isfinite(atoms.positions).all():
        atom = int(np.argmin(np.isfinite(atoms.positions).all(axis=1)))
        raise InputError(f"the position of atom {atom} is not finite: {atoms.positions[atom]}")
    if unknown := set(atoms.numbers.tolist()) - set(elements):
        names = sorted(chemical_symbols[z] for z in unknown)
        known = [chemical_symbols[z] for z in sorted(elements)]
        raise InputError(f"the potential does not know {names}; it was trained for {known}")


def check_neutral(atoms: Atoms) -> None:
    """Raise `InputError` on charges or spins, which no potential of ours has as an input."""
    for key, neutral in NEUTRAL_INFO.items():
        value = atoms.info.get(key)
        if value is not None and not np.all(np.asarray(value) == neutral):
            raise InputError(
                f"atoms.info[{key!r}] is {value!r}, and the potential has no such "
                f"input; it describes {key}={neutral} only"
            )
    for name in ("initial_charges", "initial_magmoms"):
        if name in atoms.arrays and abs(atoms.arrays[name].sum()) > 1e-6:
            raise InputError(f"{name} do not sum to zero, and the potential has no such input")
