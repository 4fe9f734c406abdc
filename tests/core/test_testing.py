"""The conformance list as a product: it tells good calculators from bad ones, in any pytest."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, InputError, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from ase_biasgrad.testing import CHECKS, Subject, verdicts_on
from ase_biasgrad.testing.derivatives import derivative, energy_noise, numerical_stress
from ase_biasgrad.testing.structures import crystals, molecules, numbers_of

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = {check.name.partition("_")[2]: check for check in CHECKS}


def verdict(make, name: str, **arguments):
    """Verdict of one check on a calculator."""
    (found,) = verdicts_on(Subject(make, **arguments), [NAMES[name]])
    return found


class Broken(LennardJones):
    """Lennard-Jones atoms with one thing gone wrong."""

    broken = ""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if self.broken == "cell" and "cell" in system_changes and self.results_before is not None:
            self.results = dict(self.results_before)
            return
        super().calculate(atoms, properties, system_changes)
        self.change(self.results)
        self.results_before = dict(self.results)

    results_before = None

    def change(self, results):
        if self.broken == "forces":
            results["forces"][1, 2] += 1e-2
        elif self.broken == "energy":
            results["energy"] = np.float32(results["energy"])
        elif self.broken == "array":
            results["energy"] = np.array([results["energy"]])
        elif self.broken == "stress" and "stress" in results:
            results["stress"] = -results["stress"]
        elif self.broken == "voigt" and "stress" in results:
            results["stress"] = results["stress"][[0, 1, 2, 5, 4, 3]]
        elif self.broken == "float32":
            results["forces"] = results["forces"].astype(np.float32)
        elif self.broken == "names":
            results["spread"] = 1.0
        elif self.broken == "noise":
            results["energy"] += 1e-3 * np.sin(1e9 * self.atoms.positions.sum())


def broken(what: str):
    return type("Broken", (Broken,), {"broken": what})


@pytest.mark.parametrize(
    ("what", "name", "told"),
    [
        ("forces", "forces_of_a_molecule_are_derivatives", "force on atom 1 along z"),
        ("forces", "forces_of_a_crystal_are_derivatives", "force on atom 1 along z"),
        ("forces", "the_order_of_atoms_changes_nothing", "in another order: forces differ by 0.01"),
        ("energy", "energy_is_a_float", "a numpy.float32; expected a float"),
        ("array", "energy_is_a_float", "a numpy.ndarray of shape (1,)"),
        ("stress", "stress_is_a_derivative", "the sign is that of a pressure"),
        ("voigt", "stress_is_a_derivative", "the stress "),
        ("float32", "arrays_are_float64", "forces is float32; expected float64"),
        ("names", "only_standard_names_are_exported", "results hold ['spread']"),
        ("noise", "energy_is_resolved", "scatter by 0.000"),
        ("cell", "results_follow_every_change", "after a change of "),
    ],
)
def test_a_fault_is_found_and_told(what, name, told):
    assert verdict(LennardJones, name).outcome == "passed"
    found = verdict(broken(what), name)
    assert found.outcome == "failed"
    assert told in found.reason


def test_what_it_does_not_offer_is_not_applicable():
    found = verdict(EMT, "stresses_sum_to_the_stress")
    assert (found.outcome, found.reason) == ("not applicable", "it does not offer stresses")
    found = verdict(
        LennardJones, "forces_of_a_crystal_are_derivatives", structures=[molecule("H2O")]
    )
    assert found.outcome == "not applicable"
    assert "no structure with three periodic directions" in found.reason


class MoleculesOnly(EMT):
    """Refuses what is periodic."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if atoms.pbc.any():
            raise InputError("no periodicity")
        super().calculate(atoms, properties, system_changes)


def test_a_refusal_is_not_applicable_and_says_what_was_refused():
    found = verdict(MoleculesOnly, "left_handed_cell")
    assert found.outcome == "not applicable"
    assert "pbc [True, True, True], is refused: InputError: no periodicity" in found.reason


class Extends(Calculator):
    """Extends the list of its class in place, as some do."""

    implemented_properties = ("energy", "forces")

    def __init__(self):
        super().__init__()
        Calculator.implemented_properties.append("spread")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def test_an_extended_list_of_ase_is_found():
    try:
        found = verdict(Extends, "class_lists_of_ase_are_left_alone")
        assert "implemented_properties is ['spread']" in found.reason
    finally:
        Calculator.implemented_properties.clear()


def test_an_exception_is_a_failure_with_its_place():
    class Raises(LennardJones):
        def check_state(self, atoms, tol=1e-15):
            if self.atoms is not None:
                raise ZeroDivisionError("oops")
            return super().check_state(atoms, tol)

    found = verdict(Raises, "small_changes_are_seen")
    assert "raised ZeroDivisionError: oops (" in found.reason
    assert "test_testing.py" in found.reason


def test_derivatives_know_their_errors():
    exact = derivative(lambda x: np.sin(3 * x + 1), 1e-15)
    assert abs(exact.value - 3 * np.cos(1)) < exact.error < 1e-8
    kinked = derivative(lambda x: x + 5 * max(0.0, x - 3e-4), 1e-15)  # a pair comes within a cutoff
    assert abs(kinked.value - 1) < kinked.error
    noisy = derivative(lambda x: x + 1e-6 * np.sin(1e9 * x), 1e-6)
    assert abs(noisy.value - 1) < noisy.error < 1e-2


def test_noise_is_measured():
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    assert energy_noise(atoms) < 1e-12
    atoms.calc = broken("noise")()
    assert energy_noise(atoms) == pytest.approx(1e-3 / 2**0.5, rel=0.6)


def test_numerical_stress_has_voigt_order():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(
        atoms.cell.array @ [[1.03, 0.02, 0.01], [0, 0.99, -0.03], [0, 0, 1.01]], scale_atoms=True
    )
    atoms.calc = EMT()
    stress, error = numerical_stress(atoms, 1e-14)
    assert np.abs(stress - atoms.get_stress()).max() < 1e-8
    assert error.max() < 1e-6


@pytest.mark.parametrize(
    ("names", "first", "crystal"),
    [("H,C,O", "C2H6O", "C8"), ("Cu", "Cu8", "Cu4"), ("Si", "Si2", "Si8"), ("H", "H2", "H2")],
)
def test_structures_are_of_the_elements(names, first, crystal):
    elements = numbers_of(names.split(","))
    found = list(molecules(elements))
    assert all(set(m.numbers.tolist()) <= elements for m in [*found, *crystals(elements)])
    assert len(found[0]) > 1
    assert next(crystals(elements)).get_chemical_formula() == crystal
    if first != "C2H6O":
        assert found[0].get_chemical_formula() == first


def test_what_is_no_element_is_named():
    with pytest.raises(ValueError, match=r"\['Xx'\] are no elements"):
        numbers_of(["H", "Xx"])


# --- the plugin ------------------------------------------------------------------------------


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """pytest in a folder that is not the repository's."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "mine.py").write_text(
        "from ase.build import bulk\n"
        "from ase.calculators.emt import EMT\n"
        "def make():\n    return EMT()\n"
        "def copper():\n    return EMT()\n"
        "copper.structures = [bulk('Cu', cubic=True)]\n"
    )
    (tmp_path / "test_own.py").write_text("def test_mine():\n    pass\n")
    return tmp_path


def test_the_plugin_runs_the_list_alone(folder):
    done = run_pytest(folder, "--ase-calculator", "mine:make", "-k", "01 or 04 or reset or charge")
    assert "conformance of mine:make" in done.stdout, done.stdout + done.stderr
    assert "passed         01_energy_is_a_float" in done.stdout
    assert "failed         08_a_charge_is_read_or_refused: neither atoms.info" in done.stdout
    assert "not applicable 08_a_new_charge_is_seen: it reads neither" in done.stdout
    assert "measured: neither atoms.info['charge'] = 1" in done.stdout
    assert "test_own" not in done.stdout
    assert done.returncode == 1


def test_structures_of_the_factory_and_paths(folder):
    done = run_pytest(folder, "--ase-calculator", "mine:copper", "-k", "01 or 16 or mine", ".")
    assert "passed         16_forces_of_a_crystal_are_derivatives" in done.stdout, done.stdout
    assert "not applicable 16_forces_of_a_molecule" in done.stdout
    assert "test_own.py" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--ase-calculator", "mine"), "write module:function"),
        (("--ase-calculator", "mine:nothing"), "has no function or class 'nothing'"),
        (("--ase-calculator", "mine:make", "--ase-elements", "H,Xx"), "are no elements"),
        (("--ase-elements", "H"), "goes with --ase-calculator"),
    ],
)
def test_bad_options_are_told(folder, arguments, told):
    done = run_pytest(folder, *arguments)
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 4


def test_pytest_that_does_not_ask_is_left_alone(folder):
    """The plugin is there, and neither ASE nor NumPy is loaded for it."""
    (folder / "test_own.py").write_text(
        "import sys\n"
        "def test_mine(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.get_plugin('ase-calculator')\n"
        "    assert not {'ase', 'numpy', 'torch'} & set(sys.modules)\n"
    )
    done = run_pytest(folder)
    assert done.returncode == 0, done.stdout
    assert "conformance" not in done.stdout


def test_empty_atoms_and_names():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.title and not check.title.endswith(".") for check in CHECKS)
    assert verdict(EMT, "no_atoms").outcome == "passed"
    assert len(Atoms()) == 0
