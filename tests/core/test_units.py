"""Units: factors against CODATA values, names as people write them."""

import pytest

from ase_biasgrad.units import UnitError, energy_unit, force_unit, length_unit, stress_unit


@pytest.mark.parametrize(
    ("unit", "name", "factor"),
    [
        (energy_unit, "kcal/mol", 0.0433641043),
        (energy_unit, "kJ / mol", 0.0103642697),
        (energy_unit, "hartree", 27.211386),
        (energy_unit, "Ry", 13.605693),
        (energy_unit, "meV", 1e-3),
        (energy_unit, "EV", 1.0),
        (energy_unit, "a.u.", 27.211386),
        (energy_unit, "0.5 Hartree", 13.605693),
        (energy_unit, "1e-3eV", 1e-3),
        (force_unit, "0.25 eV/Ang", 0.25),
        (stress_unit, "0.1 GPa", 0.000624150907),
        (length_unit, "bohr", 0.529177211),
        (length_unit, "Angstrom", 1.0),
        (length_unit, "nm", 10.0),
        (force_unit, "kcal/mol/Å", 0.0433641043),
        (force_unit, "Ha/Bohr", 51.4220675),
        (stress_unit, "GPa", 0.00624150907),
        (stress_unit, "kbar", 0.000624150907),
        (stress_unit, "eV/Ang^3", 1.0),
        (stress_unit, "eV/A**3", 1.0),
        (stress_unit, "eV/Å³", 1.0),
        (stress_unit, "Ha/Bohr/Bohr/Bohr", 183.631544),
    ],
)
def test_factors(unit, name, factor):
    assert unit(name) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("unit", "name", "message"),
    [
        (energy_unit, "cal", "'cal' is no energy unit we know; use one of: eV, meV, kcal/mol"),
        (energy_unit, "MeV", "'MeV' is no energy unit"),
        (energy_unit, "0 eV", "'0 eV' is no energy unit"),
        (energy_unit, "-1 eV", "is no energy unit"),
        (energy_unit, "3", "is no energy unit"),
        (energy_unit, "", "is no energy unit"),
        (length_unit, "m", "is no length unit we know; use one of: Angstrom"),
        (force_unit, "eV", "is no force unit"),
        (force_unit, "eV/s", "'s' is no length unit"),
        (stress_unit, "psi", "'psi' is no pressure unit"),
        (stress_unit, "eV/Ang/Bohr/Ang", "is no pressure unit"),
    ],
)
def test_unknown_units_are_refused(unit, name, message):
    with pytest.raises(UnitError, match=message):
        unit(name)
