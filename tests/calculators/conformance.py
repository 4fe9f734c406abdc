"""The conformance suite: what every calculator of this package must do.

The general list is the product's (`ase_biasgrad.testing`); here is what only our calculators
promise. A factory in, the suite out: subclass `Conformance` and give it a `make` fixture that
returns a function `make(**arguments) -> calculator` for structures of H, C, O and Cu. Numbers in
the names refer to the conformance list of the design.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, InputError, all_changes
from ase.optimize import FIRE
from conftest import copper, ethanol

from ase_biasgrad.testing import CHECKS, Failure, NotApplicable, Subject

SUBJECTS: dict[tuple[type, str | None], Subject] = {}


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning")
class Conformance:
    """Inherit and define `make` and `is_float64`."""

    is_float64 = True
    breaks: frozenset[str] = frozenset()  # checks that it cannot pass
    not_applicable = frozenset({"03_stresses_sum_to_the_stress"})

    @property
    def tolerance(self) -> float:
        """Of forces in eV/Å, for results that agree up to rounding of the network."""
        return 1e-9 if self.is_float64 else 2e-4

    # --- the general list ------------------------------------------------------------------

    @pytest.fixture
    def subject(self, make, request):
        """The same for all checks of a calculator: it finds its structures once."""
        key = (type(self), request.node.callspec.params.get("name"))
        if key not in SUBJECTS:
            structures = [molecule("CH3CH2OH"), bulk("Cu", cubic=True)]
            SUBJECTS[key] = Subject(make, {1, 6, 8, 29}, structures, self.tolerance)
        return SUBJECTS[key]

    @pytest.mark.parametrize(
        "check", [c for c in CHECKS if not c.starts_a_process], ids=lambda check: check.name
    )
    def test_check(self, subject, check):
        if check.name in self.breaks | self.not_applicable:
            with pytest.raises(Failure if check.name in self.breaks else NotApplicable):
                check.run(subject)
        else:
            check.run(subject)

    # --- state -----------------------------------------------------------------------------

    def test_05_one_evaluation_serves_all(self, make):
        atoms = copper()
        atoms.calc = make()
        calls = counted(atoms.calc)
        atoms.get_forces()
        atoms.get_potential_energy()
        atoms.get_stress()
        assert calls == [True]
        atoms.positions[0, 0] += 0.01
        atoms.get_potential_energy()
        assert calls == [True, False]

    def test_07_a_failure_leaves_no_results_of_other_atoms(self, make):
        calc, gold = make(), Atoms("Au")
        calc.calculate(ethanol(), ["forces"], all_changes)
        with pytest.raises(InputError):
            calc.calculate(gold, ["energy"], all_changes)
        assert calc.results == {}
        with pytest.raises(InputError):
            calc.get_property("energy", gold)

    def test_08_check_state_is_exact(self, make):
        atoms, calc = copper(), make()
        atoms.calc = calc
        atoms.get_forces()
        assert calc.check_state(atoms) == []
        other = atoms.copy()
        other.positions[0, 0] = np.nextafter(other.positions[0, 0], 9)
        assert calc.check_state(other) == ["positions"]
        other = atoms.copy()
        other.set_cell(other.cell * (1 + 1e-12))
        assert calc.check_state(other) == ["cell"]
        other = atoms.copy()
        other.pbc[1] = False
        assert calc.check_state(other) == ["pbc"]
        other = atoms.copy()
        other.info["charge"] = 1
        assert calc.check_state(other) == ["info"]
        atoms.info["charge"] = 1
        with pytest.raises(InputError, match="charge"):
            atoms.get_forces()

    def test_08_neutral_values_of_any_kind_pass(self, make):
        atoms = ethanol()
        atoms.calc = calc = make()
        for value in (0, 0.0, None, np.array([0]), np.zeros(9)):
            atoms.info["charge"] = value
            atoms.get_forces()
            assert calc.check_state(atoms) == []
        atoms.info["charge"][3] = 1.0  # in place
        assert calc.check_state(atoms) == ["info"]
        with pytest.raises(InputError, match="charge"):
            atoms.get_forces()

    def test_08_charge_and_spin_are_refused(self, make):
        cases = {
            ("spin_multiplicity", 3): "read as a multiplicity",
            ("total_charge", -1): "-1, read as a charge in e",
            ("charge", "none"): "'none', read as a charge",
            ("spin", 2): r"read as a multiplicity \(singlet: 1\) or a number of unpaired",
        }
        calc = make()
        for (key, value), message in cases.items():
            atoms = ethanol()
            atoms.info[key] = value
            atoms.calc = calc
            with pytest.raises(InputError, match=rf"{key}.*{message}"):
                atoms.get_potential_energy()
        atoms = ethanol()
        atoms.set_initial_magnetic_moments([1] + [0] * 8)
        atoms.calc = calc
        with pytest.raises(InputError, match=r"initial_magmoms.*read as unpaired electrons"):
            atoms.get_potential_energy()
        atoms = ethanol()
        atoms.set_initial_charges([0.9] + [0] * 8)
        with pytest.raises(InputError, match=r"sum to 0\.9 e, read as a total charge of 1"):
            calc.get_property("energy", atoms)

    def test_08_conventions_that_mean_neutral_pass(self, make):
        energy = make().get_property("energy", ethanol())
        for info in ({"charge": 0, "spin": 1}, {"spin": 0}, {"multiplicity": 1, "charge": 1e-3}):
            atoms = ethanol()
            atoms.info |= info
            atoms.set_initial_charges([0.017] + [0.002] * 8)  # rounded
            assert make().get_property("energy", atoms) == pytest.approx(energy, abs=1e-4)
        methyl = molecule("CH3")
        assert methyl.get_initial_magnetic_moments().sum() == 1
        plain = methyl.copy()
        plain.set_initial_magnetic_moments(None)
        energies = [make().get_property("energy", atoms) for atoms in (methyl, plain)]
        assert energies[0] == pytest.approx(energies[1], abs=1e-4)

    def test_12_threads_share_one_calculator(self, make):
        frames = [copper(k) * (1, 1, 1 + k % 2) for k in range(4)]
        expected = [make().get_property("forces", atoms) for atoms in frames]
        calc = make()

        def forces(k):
            atoms = frames[k % 4].copy()
            atoms.calc = calc
            return atoms.get_forces()

        with ThreadPoolExecutor(4) as pool:
            for k, found in enumerate(pool.map(forces, range(24))):
                np.testing.assert_allclose(found, expected[k % 4], atol=self.tolerance)

    def test_12_settings_of_torch_change_nothing(self, make):
        import torch

        atoms = copper() * (2, 1, 1)
        expected = make().get_property("forces", atoms)
        calc = make()
        threads = torch.get_num_threads()
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        try:
            with torch.inference_mode():
                inside = calc.get_property("forces", atoms), make().get_property("forces", atoms)
                later = make()
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_num_threads(threads)
        for forces in (*inside, later.get_property("forces", atoms)):
            np.testing.assert_allclose(forces, expected, atol=self.tolerance)

    # --- geometry --------------------------------------------------------------------------

    def test_14_lists_with_skin_stay_exact(self, make):
        random, calc = np.random.default_rng(0), make(skin=0.4)
        atoms = copper() * (2, 2, 1)
        atoms.calc = calc
        for step in range(8):
            atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
            if step % 2:
                atoms.set_cell(atoms.cell.array * random.uniform(0.98, 1.02), scale_atoms=True)
            fresh = atoms.copy()
            fresh.calc = make(skin=0.0)
            np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=self.tolerance)

    def test_15_bad_input_is_refused(self, make):
        atoms = ethanol()
        atoms.calc = make()
        atoms.positions[2, 1] = np.nan
        with pytest.raises(InputError, match="atom 2"):
            atoms.get_forces()
        gold = Atoms("AuH", [[0, 0, 0], [0, 0, 2]])
        gold.calc = make()
        with pytest.raises(InputError, match=r"\['Au'\].*'Cu'"):
            gold.get_potential_energy()
        flat = Atoms("O", cell=[3, 3, 0], pbc=True)
        flat.calc = make()
        with pytest.raises(InputError, match="linearly independent"):
            flat.get_forces()

    def test_15_results_that_are_not_finite_are_errors(self, make):
        atoms = copper()
        atoms.calc = make()
        evaluate = atoms.calc._engine.evaluate

        def broken(structure, derivatives):
            evaluation = evaluate(structure, derivatives)
            if evaluation.forces is not None:
                evaluation.forces[0, 1, 2] = np.nan
            return evaluation

        atoms.calc._engine.evaluate = broken
        with pytest.raises(CalculationFailed, match="forces of 4 atoms"):
            FIRE(atoms, logfile=None).run(fmax=1e-3, steps=3)
        assert atoms.calc.results == {}

    # --- energies and many structures ------------------------------------------------------

    def test_19_the_energy_zero_is_part_of_the_state(self, make):
        from ase_biasgrad.calculators.calculator import EnergyZeroWarning

        atoms, calc = ethanol(), make()
        atoms.calc = calc
        with pytest.warns(EnergyZeroWarning, match="has not been fitted"):
            atoms.get_potential_energy()
        with warnings.catch_warnings():
            warnings.simplefilter("error", EnergyZeroWarning)
            atoms.rattle(0.01)
            atoms.get_forces()
        atoms.calc = make(strict=True)
        with pytest.raises(InputError, match="energy zero is not known"):
            atoms.get_potential_energy()

    def test_many_structures_at_once(self, make):
        structures = [ethanol(), copper(), molecule("CH3OH"), copper(2), Atoms("O")]
        calc = make()
        for atoms, results in zip(
            structures, calc.evaluate_many(structures, atoms_per_batch=12), strict=True
        ):
            atoms.calc = make()
            assert results["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
            np.testing.assert_allclose(results["forces"], atoms.get_forces(), atol=self.tolerance)
            assert ("stress" in results) == bool(atoms.cell.rank == 3)
        structures[2].positions[0] = np.inf
        with pytest.raises(InputError, match="structure 2: the position of atom 0"):
            calc.evaluate_many(structures)


def counted(calc) -> list[bool]:
    """Record `derivatives` of each evaluation of the calculator's engine."""
    calls: list[bool] = []
    evaluate = calc._engine.evaluate

    def recorded(structure, derivatives):
        calls.append(derivatives)
        return evaluate(structure, derivatives)

    calc._engine.evaluate = recorded
    return calls
