"""Units that sources come in, as factors to ours: eV, Å, eV/Å, eV/Å³."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from ase import units as ase_units
from ase.data import atomic_numbers

N_ELEMENTS = 119  # rows of every table by atomic number; row 0 is no element

ENERGY: dict[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "kJ/mol": ase_units.kJ / ase_units.mol,
    "Hartree": ase_units.Hartree,
    "Ha": ase_units.Hartree,
    "Rydberg": ase_units.Rydberg,
    "Ry": ase_units.Rydberg,
    "a.u.": ase_units.Hartree,
}
LENGTH: dict[str, float] = {
    "Angstrom": 1.0,
    "Å": 1.0,
    "Ang": 1.0,
    "A": 1.0,
    "Bohr": ase_units.Bohr,
    "a0": ase_units.Bohr,
    "a.u.": ase_units.Bohr,
    "nm": 10.0,
}
PRESSURE: dict[str, float] = {
    "GPa": ase_units.GPa,
    "kbar": 1e3 * ase_units.bar,
    "bar": ase_units.bar,
    "Pa": ase_units.Pascal,
}


def counts_of(symbols: Mapping[str, int]) -> np.ndarray:
    """Composition `(N_ELEMENTS,)` of numbers of atoms by symbol."""
    counts = np.zeros(N_ELEMENTS, np.int64)
    for symbol, count in symbols.items():
        counts[atomic_numbers[symbol]] = count
    return counts


class UnitError(ValueError):
    """A unit that is not known; the message lists those that are."""


def energy_unit(name: str) -> float:
    """One `name`, or a number of one such as `0.5 Hartree`, in eV.

    Raises `UnitError` if there is no such unit.
    """
    return _find(name, ENERGY, "energy")


def length_unit(name: str) -> float:
    """One `name` in Å; errors as in `energy_unit`."""
    return _find(name, LENGTH, "length")


def force_unit(name: str) -> float:
    """One `name`, such as kcal/mol/Ang, in eV/Å; errors as in `energy_unit`."""
    energy, slash, length = name.rpartition("/")
    if not slash:
        raise UnitError(f"{name!r} is no force unit; write an energy unit / a length unit")
    return energy_unit(energy) / length_unit(length)


def stress_unit(name: str) -> float:
    """One `name`, such as GPa, eV/Ang^3 or eV/Ang/Ang/Ang, in eV/Å³; errors as in `energy_unit`."""
    bare = re.sub(r"\s", "", name)
    cubed = re.fullmatch(r"(.+)/([^/]+?)(?:\^3|\*\*3|3|³)", bare) or re.fullmatch(
        r"(.+)/([^/]+)/\2/\2", bare
    )
    if cubed:
        return energy_unit(cubed[1]) / length_unit(cubed[2]) ** 3
    return _find(bare, PRESSURE, "pressure")


def _find(name: str, table: dict[str, float], kind: str) -> float:
    wanted = re.sub(r"\s", "", name)
    if wanted in table:
        return table[wanted]
    number = re.fullmatch(r"(\d*\.?\d+(?:[eE][+-]?\d+)?)\*?(\D.*)", wanted)
    if number and 0 < float(number[1]) < float("inf"):
        return float(number[1]) * _find(number[2], table, kind)
    # "MeV" is not "meV": the case of a prefix counts, that of "ev" or "hartree" does not
    same = [known for known in table if known.lower() == wanted.lower()]
    if same and not (wanted[:1] == "M" and same[0][:1] == "m"):
        return table[same[0]]
    raise UnitError(f"{name!r} is no {kind} unit we know; use one of: {', '.join(table)}")
