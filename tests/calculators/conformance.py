"""The conformance suite: what every calculator of this package must do.

A factory in, the suite out: subclass `Conformance` and give it a `make` fixture that returns a
function `make(**arguments) -> calculator` for structures of H, C, O and Cu. Numbers in the
names refer to the conformance list of the design.
"""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import (
    CalculationFailed,
    InputError,
    PropertyNotImplementedError,
    all_changes,
)
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.db import connect
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import MTKNPT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from ase.outputs import all_outputs
from ase.phonons import Phonons
from ase.vibrations import Vibrations
from conftest import copper, ethanol
from scipy.spatial.transform import Rotation


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning")
class Conformance:
    """Inherit and define `make` and `is_float64`."""

    is_float64 = True

    @property
    def tolerance(self) -> float:
        """Of forces in eV/Å, for results that agree up to rounding of the network."""
        return 1e-9 if self.is_float64 else 2e-4

    # --- results ---------------------------------------------------------------------------

    def test_01_energy_is_a_float(self, make):
        atoms = ethanol()
        atoms.calc = make()
        energy = atoms.get_potential_energy()
        assert type(energy) is float
        assert energy == atoms.get_potential_energy(force_consistent=True)
        assert {"energy", "free_energy"} <= set(atoms.calc.implemented_properties)
        assert atoms.calc.export_properties()["energy"] == energy

    def test_02_stress_is_voigt_and_needs_volume(self, make):
        atoms = copper()
        atoms.calc = make()
        assert atoms.get_stress().shape == (6,)
        # tension is positive: a stretched crystal wants to shrink
        expanded, compressed = (energy_of(make, copper, 1 + s) for s in (1e-3, -1e-3))
        slope = (expanded - compressed) / (2e-3 * 3 * atoms.get_volume())
        assert np.sign(slope) == np.sign(atoms.get_stress()[:3].mean())
        molecule_ = ethanol()
        molecule_.calc = make()
        with pytest.raises(PropertyNotImplementedError):
            molecule_.get_stress()

    def test_03_energies_sum_to_the_energy(self, make):
        atoms = copper()
        atoms.calc = make()
        assert abs(atoms.get_potential_energies().sum() - atoms.get_potential_energy()) < 1e-9

    def test_04_arrays_are_float64_contiguous_copies(self, make):
        atoms = copper()
        atoms.calc = make()
        forces = atoms.get_forces()
        for name in ("forces", "stress", "energies"):
            value = atoms.calc.results[name]
            assert value.dtype == np.float64
            assert value.flags.c_contiguous
        forces[:] = 0
        assert np.abs(atoms.get_forces()).max() > 0

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

    def test_06_only_standard_names_are_exported(self, make):
        atoms = copper()
        atoms.calc = make()
        atoms.get_forces()
        assert set(atoms.calc.export_properties()) <= set(all_outputs)

    # --- state -----------------------------------------------------------------------------

    def test_07_direct_calls_with_a_subset_of_changes(self, make):
        atoms, calc = copper(), make()
        calc.calculate(atoms, ["forces"], all_changes)
        atoms.positions[1] += 0.1
        calc.calculate(atoms, ["forces"], ["positions"])
        fresh = make()
        fresh.calculate(atoms, ["forces"], all_changes)
        np.testing.assert_allclose(
            calc.results["forces"], fresh.results["forces"], atol=self.tolerance
        )

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

    def test_09_reset_and_set(self, make):
        from ase.calculators import calculator as ase_calculator
        from ase.calculators.emt import EMT

        atoms, calc = copper(), make()
        atoms.calc = calc
        before = atoms.get_forces()
        calc.reset()
        assert calc.results == {}
        assert calc.atoms is None
        np.testing.assert_allclose(atoms.get_forces(), before, atol=self.tolerance)
        with pytest.raises(Exception, match="colour"):
            calc.set(colour="red")
        assert "energies" in EMT.implemented_properties
        assert len(ase_calculator.all_properties) == len(set(ase_calculator.all_properties))
        assert "energy_std" not in ase_calculator.all_properties

    def test_10_one_calculator_on_many_atoms(self, make):
        calc = make()
        structures = [ethanol(), copper(), molecule("CH3OH"), copper(3) * (1, 1, 2)]
        for atoms in structures * 2:
            atoms.calc = calc
            fresh = atoms.copy()
            fresh.calc = make()
            np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=self.tolerance)
        twin = calc.copy()
        assert twin.results == {}
        assert twin.get_potential_energy(structures[0]) == pytest.approx(
            structures[0].get_potential_energy(), abs=1e-4
        )

    def test_11_copies_pickles_and_json(self, make):
        atoms = copper()
        atoms.calc = make()
        forces = atoms.get_forces()
        for again in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
            again.positions += 0.0
            again.calc.reset()
            np.testing.assert_allclose(again.get_forces(), forces, atol=self.tolerance)
        json.dumps(atoms.calc.todict())

    def test_12_no_output_and_no_globals(self, make, capsys):
        import torch

        state, dtype = torch.get_rng_state(), torch.get_default_dtype()
        random = np.random.get_state()[1].copy()  # noqa: NPY002 (the global one is meant)
        atoms = copper()
        atoms.calc = make()
        atoms.get_forces()
        assert torch.get_default_dtype() == dtype
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], random)  # noqa: NPY002
        assert capsys.readouterr() == ("", "")

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

    @pytest.mark.parametrize(
        "pbc", [(True, False, True), (False, True, False), (True, True, False)]
    )
    def test_13_mixed_pbc_and_atoms_outside(self, make, pbc):
        atoms = copper()
        atoms.pbc = pbc
        atoms.positions += 2 * atoms.cell[0] - atoms.cell[2]
        self.check_forces(atoms, make)
        moved = atoms.copy()
        moved.positions[1] += 3 * moved.cell[int(np.argmax(pbc))]
        moved.calc = make()
        assert abs(moved.get_potential_energy() - atoms.get_potential_energy()) < 1e-4

    def test_13_slab_with_a_zero_cell_vector(self, make):
        atoms = fcc111("Cu", (2, 2, 2))
        assert atoms.cell.rank == 2
        atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
        self.check_forces(atoms, make)

    def test_13_left_handed_and_tiny_cells(self, make):
        atoms = bulk("Cu")  # one atom, cell far smaller than the cutoff
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05), scale_atoms=True)
        left = Atoms("Cu", cell=atoms.cell.array[[1, 0, 2]], pbc=True)
        atoms.calc, left.calc = make(), make()
        assert abs(atoms.get_potential_energy() - left.get_potential_energy()) < 1e-5
        np.testing.assert_allclose(atoms.get_stress(), left.get_stress(), atol=1e-5)
        assert np.abs(atoms.get_forces()).max() < self.tolerance

    def test_13_isolated_atoms_and_none_at_all(self, make):
        for atoms in (Atoms("O"), Atoms("O2", [[0, 0, 0], [0, 0, 90]]), Atoms()):
            atoms.calc = make()
            assert np.isfinite(atoms.get_potential_energy())
            assert atoms.get_forces().shape == (len(atoms), 3)
            assert (atoms.get_forces() == 0).all()

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

    # --- with the rest of ASE --------------------------------------------------------------

    def check_forces(self, atoms, make) -> None:
        atoms.calc = make()
        forces = atoms.get_forces()
        step, limit = (1e-4, 1e-6) if self.is_float64 else (5e-3, 1e-2)
        numerical = calculate_numerical_forces(atoms, step)
        assert np.abs(forces - numerical).max() < limit * max(1.0, np.abs(forces).max())
        assert np.abs(forces).max() > 1e-3
        assert np.abs(forces.sum(axis=0)).max() < self.tolerance

    @pytest.mark.parametrize("structure", [ethanol, copper])
    def test_16_forces_are_derivatives(self, make, structure):
        self.check_forces(structure(), make)

    def test_16_stress_is_a_derivative(self, make):
        atoms = copper()
        atoms.calc = make()
        stress = atoms.get_stress()
        step, limit = (1e-5, 1e-6) if self.is_float64 else (2e-3, 2e-2)
        numerical = calculate_numerical_stress(atoms, step)
        assert np.abs(stress - numerical).max() < limit * np.abs(stress).max()

    def test_16_symmetries(self, make):
        atoms = ethanol()
        atoms.calc = make()
        rotation = Rotation.from_rotvec([1.0, 2.0, -0.5]).as_matrix()
        order = np.random.default_rng(0).permutation(9)
        moved = Atoms(atoms.numbers[order], (atoms.positions @ rotation.T + 5.0)[order])
        moved.calc = make()
        np.testing.assert_allclose(
            moved.get_forces(), (atoms.get_forces() @ rotation.T)[order], atol=self.tolerance
        )

    @pytest.mark.parametrize("optimizer", [BFGS, LBFGS, FIRE])
    def test_17_optimizers(self, make, optimizer):
        atoms = copper()
        atoms.calc = make()
        before = atoms.get_potential_energy()
        # short steps: BFGS and LBFGS may climb where a random potential curves much
        optimizer(atoms, logfile=None, maxstep=0.01).run(fmax=1e-3, steps=5)
        assert atoms.get_potential_energy() < before

    def test_17_cell_filter_and_equation_of_state(self, make):
        atoms = copper()
        atoms.calc = make()
        before = atoms.get_potential_energy()
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=4)
        assert atoms.get_potential_energy() < before
        volumes, energies = [], []
        for scale in np.linspace(0.99, 1.01, 5):
            scaled = copper()
            scaled.set_cell(scaled.cell * scale, scale_atoms=True)
            scaled.calc = atoms.calc
            volumes.append(scaled.get_volume())
            energies.append(scaled.get_potential_energy())
        assert np.isfinite(EquationOfState(volumes, energies).fit(warn=False)[0])

    def test_17_dynamics(self, make):
        random = np.random.default_rng(0)
        atoms = copper()
        atoms.calc = make()
        thermalize_momenta(atoms, 50, rng=random)
        VelocityVerlet(atoms, 0.2 * units.fs).run(1)
        before = atoms.get_total_energy()
        VelocityVerlet(atoms, 0.2 * units.fs).run(20)
        assert abs(atoms.get_total_energy() - before) < 1e-3
        Langevin(atoms, units.fs, temperature_K=50, friction=0.01, fixcm=False, rng=random).run(3)
        volume = atoms.get_volume()
        MTKNPT(atoms, units.fs, temperature_K=50, pressure_au=0.1, tdamp=50, pdamp=500).run(3)
        assert np.isfinite(atoms.positions).all()
        assert atoms.get_volume() != volume

    def test_17_vibrations_and_phonons(self, make, tmp_path):
        water = molecule("H2O")
        water.calc = make()
        vibrations = Vibrations(water, name=str(tmp_path / "vib"))
        vibrations.run()
        assert len(vibrations.get_energies()) == 9
        phonons = Phonons(bulk("Cu"), make(), supercell=(2, 2, 2), name=str(tmp_path / "phonons"))
        phonons.run()
        phonons.read(acoustic=True)
        gamma = phonons.band_structure([[0, 0, 0]])[0]
        assert np.abs(gamma).max() < 1e-2

    def test_17_neb_with_a_shared_calculator(self, make):
        first, last = ethanol(), ethanol()
        last.rotate(20, "x")
        images = [first, first.copy(), first.copy(), last]
        band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
        band.interpolate()
        calc = make()
        for image in images:
            image.calc = calc
        assert np.isfinite(band.get_forces()).all()

    def test_17_files_and_databases(self, make, tmp_path):
        atoms = copper()
        atoms.set_constraint(FixAtoms([0]))
        atoms.calc = make()
        atoms.get_stress()
        with Trajectory(str(tmp_path / "x.traj"), "w", atoms) as trajectory:
            trajectory.write()
        atoms.write(tmp_path / "x.extxyz")
        for name in ("x.traj", "x.extxyz"):
            again = read(tmp_path / name)
            assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
            np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=1e-7)
        with connect(tmp_path / "x.db") as database:
            database.write(atoms)
        assert connect(tmp_path / "x.db").get(1).energy == atoms.get_potential_energy()

    def test_17_as_drivers_call(self, make):
        atoms, calc = copper(), make()
        properties = calc.calculate_properties(atoms, ["energy", "forces", "stress"])
        assert properties["forces"].shape == (4, 3)
        # PLUMED wraps a calculator and calls it directly, one property after another
        calc.calculate(atoms, ["energy"], all_changes)
        calc.calculate(atoms, ["forces"], [])
        assert "forces" in calc.results

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


def energy_of(make, structure, scale: float) -> float:
    atoms = structure()
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    atoms.calc = make()
    return atoms.get_potential_energy()


def counted(calc) -> list[bool]:
    """Record `derivatives` of each evaluation of the calculator's engine."""
    calls: list[bool] = []
    evaluate = calc._engine.evaluate

    def recorded(structure, derivatives):
        calls.append(derivatives)
        return evaluate(structure, derivatives)

    calc._engine.evaluate = recorded
    return calls
