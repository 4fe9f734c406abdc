"""Units that sources come in, as factors to ours: eV, Å, eV/Å³."""

from __future__ import annotations

from ase import units as ase_units

ENERGY: dict[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "kJ/mol": ase_units.kJ / ase_units.mol,
    "Hartree": ase_units.Hartree,
    "Ha": ase_units.Hartree,
    "Rydberg": ase_units.Rydberg,
    "Ry": ase_units.Rydberg,
}
LENGTH: dict[str, float] = {
    "Angstrom": 1.0,
    "Å": 1.0,
    "Ang": 1.0,
    "Bohr": ase_units.Bohr,
    "nm": 10.0,
}


class UnitError(ValueError):
    """A unit that is not known; the message lists those that are."""


def energy_unit(name: str) -> float:
    """One `name` in eV.

    Raises
    ------
    UnitError
        If there is no such unit.
    """
    return _find(name, ENERGY, "energy")


def length_unit(name: str) -> float:
    """One `name` in Å; errors as in `energy_unit`."""
    return _find(name, LENGTH, "length")


def _find(name: str, table: dict[str, float], kind: str) -> float:
    for known, factor in table.items():
        if name.strip().lower() == known.lower():
            return factor
    raise UnitError(f"{name!r} is no {kind} unit we know; use one of: {', '.join(table)}")
