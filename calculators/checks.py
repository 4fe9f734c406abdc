"""What every calculator asks of a structure: what changed, and whether it can be described."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import InputError, all_changes
from ase.data import chemical_symbols

if TYPE_CHECKING:
    from ase import Atoms

# what people write into atoms.info; no backbone of ours reads any, so only neutral values pass
NEUTRAL_INFO = {"charge": 0, "total_charge": 0, "spin": 0, "spin_multiplicity": 1}
NOTHING_SAID = (None,) * len(NEUTRAL_INFO)


def changes_between(last: Atoms | None, last_info: tuple[Any, ...], atoms: Atoms) -> list[str]:
    """What differs between the atoms of the last calculation and these, exactly.

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
