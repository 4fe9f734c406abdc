"""`BiasedCalculator`: other people's calculators keep everything but the zero of their energy."""

import copy
import json
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import (
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
)
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential
from ase.db import connect
from ase.io import Trajectory, read
from ase.optimize import BFGS
from conftest import copper, ethanol, small_potential

from ase_biasgrad import Bias, BiasedCalculator, BiasGradCalculator
from ase_biasgrad.bias_file import save_bias
from ase_biasgrad.calculators import EnergyZeroWarning
from ase_biasgrad.units import N_ELEMENTS

NAMES = ("H2O", "CH4", "CH3OH", "CH3CH2OH", "C2H4", "C2H6", "H2CO", "CO2")
SHIFT = {1: -13.25, 6: -1030.5, 8: -2043.125, 29: -3.75}


def counts(atoms: Atoms) -> np.ndarray:
    return np.bincount(atoms.numbers, minlength=N_ELEMENTS)


def zero_of(structures, noise: float = 0.02) -> Bias:
    """A bias fitted to residuals of these energies per element, and some noise."""
    rows = np.stack([counts(atoms) for atoms in structures for _ in range(3)])
    exact = sum(energy * rows[:, z] for z, energy in SHIFT.items())
    bias = Bias()
    random = np.random.default_rng(0)
    bias.fit(exact + random.normal(0, noise, len(rows)), rows, "least-squares")
    return bias


def molecules() -> list[Atoms]:
    return [molecule(name) for name in NAMES]


def schnetpack(folder):
    """SchNetPack's own calculator, in float32."""
    import schnetpack as spk
    import torch

    torch.manual_seed(0)
    model = spk.model.NeuralNetworkPotential(
        representation=spk.representation.PaiNN(
            16, 2, spk.nn.GaussianRBF(12, 4.0), spk.nn.CosineCutoff(4.0)
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=16, output_key="energy"),
            spk.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
    )
    torch.save(model, folder / "best_model")
    return spk.interfaces.SpkCalculator(
        str(folder / "best_model"), neighbor_list=spk.transform.MatScipyNeighborList(cutoff=4.0)
    )


CALCULATORS = {
    "emt": lambda _: EMT(),
    "lennard_jones": lambda _: LennardJones(sigma=1.1, rc=3.0, smooth=True),
    "morse": lambda _: MorsePotential(r0=1.2, rho0=3.0),
    "schnetpack": schnetpack,
    "ours": lambda _: BiasGradCalculator(small_potential("painn"), device="cpu"),
}


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning")
@pytest.mark.parametrize("name", CALCULATORS)
def test_energies_get_the_bias_and_all_else_is_passed_on(tmp_path, name):
    structures = [*molecules(), copper()]
    bias = zero_of(structures)
    plain = CALCULATORS[name](tmp_path)
    biased = BiasedCalculator(CALCULATORS[name](tmp_path), bias, strict=True)
    for atoms in structures:
        atoms.rattle(0.05, seed=1)
        b = float(bias.per_element.numpy() @ counts(atoms))
        energy = plain.get_potential_energy(atoms)
        assert biased.get_potential_energy(atoms) == pytest.approx(float(energy) + b, abs=1e-9)
        assert type(biased.get_property("energy", atoms)) is float
        properties = [p for p in ("forces", "stress") if p in plain.implemented_properties]
        assert "forces" in properties
        for property_ in properties:
            if property_ == "stress" and (name == "schnetpack" or atoms.cell.rank < 3):
                continue  # this model of SchNetPack has none
            one, two = plain.get_property(property_, atoms), biased.get_property(property_, atoms)
            assert one.dtype == two.dtype
            assert np.array_equal(one, two)
            assert np.array_equal(biased.results[property_], plain.results[property_])
        energy = biased.get_potential_energy(atoms)  # some calculate and keep one property alone
        error = float(bias.standard_error(counts(atoms)[None])[0])
        assert 0 < error < 0.1
        assert biased.results["energy_reference_std"] == pytest.approx(error, rel=1e-12)
        assert "energy_reference_std" not in biased.export_properties()
        assert biased.results["energy"] == energy
        if "energies" in plain.implemented_properties:
            parts = biased.get_potential_energies(atoms)
            assert parts.sum() == pytest.approx(biased.get_potential_energy(atoms), abs=1e-4)
            by_atom = bias.per_element.numpy()[atoms.numbers]
            expected = plain.get_potential_energies(atoms) + by_atom
            np.testing.assert_allclose(parts, expected, atol=1e-9)
        if "free_energy" in plain.implemented_properties:
            free = biased.get_potential_energy(atoms, force_consistent=True)
            expected = float(plain.get_potential_energy(atoms, force_consistent=True)) + b
            assert free == pytest.approx(expected, abs=1e-9)


def run(code: str, folder, executable: str = sys.executable) -> None:
    done = subprocess.run(
        [executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_xtb_has_the_same_forces(tmp_path):
    """Forces are compared in a process of its own: tblite loads before torch alone."""
    pytest.importorskip("tblite")
    save_bias(tmp_path / "zero.json", zero_of(molecules()))
    code = """
        from tblite.ase import TBLite
        import numpy as np
        from ase.build import molecule
        from ase_biasgrad import BiasedCalculator

        biased = BiasedCalculator(TBLite(method="GFN2-xTB", verbosity=0), "zero.json", strict=True)
        for name in ("H2O", "CH3OH"):
            atoms = molecule(name)
            atoms.rattle(0.05, seed=1)
            plain = TBLite(method="GFN2-xTB", verbosity=0)
            atoms.calc = biased
            forces, energy = atoms.get_forces(), atoms.get_potential_energy()
            atoms.calc = plain
            assert np.array_equal(forces, atoms.get_forces())
            b = biased.zero.per_element[atoms.numbers].sum()
            assert abs(energy - atoms.get_potential_energy() - b) < 1e-9
            assert np.array_equal(biased.results["charges"], plain.results["charges"])
            assert biased.parameters.method == "GFN2-xTB"
        assert biased.set(method="GFN1-xTB") == {"method": "GFN1-xTB"}
        plain.set(method="GFN1-xTB")
        assert np.array_equal(biased.get_forces(atoms), plain.get_forces(atoms))
    """
    run(code, tmp_path)


def test_mace_has_the_same_forces_and_hessian(tmp_path):
    pytest.importorskip("mace")
    save_bias(tmp_path / "zero.json", zero_of(molecules()))
    code = """
        import numpy as np, torch
        from ase.build import molecule
        from e3nn import o3
        from mace import modules
        from mace.calculators import MACECalculator
        from mace.tools import AtomicNumberTable
        from ase_biasgrad import BiasedCalculator

        torch.manual_seed(0)
        numbers = AtomicNumberTable([1, 6, 8])
        model = modules.ScaleShiftMACE(
            r_max=4.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=2, num_interactions=2,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_elements=3, hidden_irreps=o3.Irreps("8x0e"), MLP_irreps=o3.Irreps("8x0e"),
            gate=torch.nn.functional.silu, atomic_energies=np.array([-13.6, -1029.0, -2041.0]),
            avg_num_neighbors=6.0, atomic_numbers=numbers.zs, correlation=2,
            radial_type="bessel", atomic_inter_scale=1.0, atomic_inter_shift=0.0,
        )
        model = [model.double()]
        plain = MACECalculator(models=model, device="cpu", default_dtype="float64")
        inner = MACECalculator(models=model, device="cpu", default_dtype="float64")
        biased = BiasedCalculator(inner, "zero.json", strict=True)
        for name in ("H2O", "CH3OH"):
            atoms = molecule(name)
            atoms.rattle(0.05, seed=1)
            b = biased.zero.per_element[atoms.numbers].sum()
            energies = [c.get_potential_energy(atoms) for c in (plain, biased)]
            assert abs(energies[1] - energies[0] - b) < 1e-9
            assert np.array_equal(plain.get_forces(atoms), biased.get_forces(atoms))
            assert np.abs(plain.get_forces(atoms)).max() > 1e-3
            assert np.array_equal(plain.get_hessian(atoms), biased.get_hessian(atoms))
            assert biased.r_max == plain.r_max and biased.device == plain.device
            assert "node_energy" in biased.results
    """
    run(code, tmp_path)


class Coloured(LennardJones):
    """A calculator with things that ASE's interface does not know."""

    implemented_properties = (*LennardJones.implemented_properties, "charges")

    def __init__(self, colour: str = "red"):
        super().__init__(sigma=2.2, epsilon=0.4)
        self.device = "toaster"
        self.parameters["colour"] = colour
        self.calls = 0

    def calculate(self, *args, **kw):
        self.calls += 1
        super().calculate(*args, **kw)
        self.results["charges"] = np.arange(len(self.atoms), dtype=np.float32)

    def get_hessian(self, atoms):
        return np.eye(3 * len(atoms))


def test_the_state_is_that_of_the_calculator():
    atoms, calc = copper(), Coloured()
    biased = BiasedCalculator(calc, zero_of([atoms]))
    assert isinstance(biased, type(calc).__mro__[2])  # ASE's Calculator
    assert biased.results == {}
    assert biased.atoms is None
    atoms.calc = biased
    forces = atoms.get_forces()
    assert np.array_equal(atoms.get_charges(), np.arange(4))
    assert (calc.calls, biased.calls) == (1, 1)
    assert biased.check_state(atoms) == []
    assert not biased.calculation_required(atoms, ["energy", "forces"])
    assert biased.atoms is calc.atoms
    assert np.array_equal(biased.get_hessian(atoms), np.eye(12))
    assert not hasattr(BiasedCalculator(EMT(), Bias()), "get_hessian")
    assert biased.device == "toaster"
    biased.device = "cpu"
    assert calc.device == "cpu"
    assert biased.parameters is calc.parameters
    assert biased.implemented_properties == calc.implemented_properties
    assert biased.set(colour="blue") == {"colour": "blue"}
    assert calc.parameters["colour"] == "blue"
    described = json.loads(json.dumps(biased.todict()))
    assert described["colour"] == "blue"
    assert described["energy_zero"]["method"] == "least-squares"
    assert biased.name == "biased-coloured"
    biased.reset()
    assert calc.results == {}
    for again in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert again.calc.calc is not calc
        assert np.array_equal(again.get_forces(), forces)
        assert again.calc.parameters["colour"] == "blue"
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy())


def test_it_relaxes_and_is_written_as_other_calculators(tmp_path):
    atoms = copper()
    atoms.calc = BiasedCalculator(EMT(), zero_of([atoms]))
    plain = copper()
    plain.calc = EMT()
    for each in (atoms, plain):
        BFGS(each, logfile=None, trajectory=None).run(fmax=0.01, steps=20)
    assert np.array_equal(atoms.positions, plain.positions)
    energy = atoms.get_potential_energy()
    assert energy - plain.get_potential_energy() == pytest.approx(4 * SHIFT[29], abs=0.1)
    with Trajectory(str(tmp_path / "x.traj"), "w", atoms) as trajectory:
        trajectory.write()
    atoms.write(tmp_path / "x.extxyz")
    for file in ("x.traj", "x.extxyz"):
        assert read(tmp_path / file).get_potential_energy() == pytest.approx(energy, abs=1e-6)
    with connect(tmp_path / "x.db") as database:
        database.write(atoms)
    assert connect(tmp_path / "x.db").get(1).energy == energy
    exported = atoms.calc.calculate_properties(atoms, ["energy", "forces"])
    assert exported["energy"] == pytest.approx(energy, abs=1e-9)


def test_an_energy_whose_zero_is_not_known_is_told_once_or_refused():
    bias = zero_of(molecules())
    atoms = copper()
    atoms.calc = BiasedCalculator(EMT(), bias)
    with pytest.warns(EnergyZeroWarning, match="fitted to other compositions.*Cu4"):
        atoms.get_potential_energy()
    atoms.rattle(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EnergyZeroWarning)
        atoms.get_potential_energy()
    assert np.isnan(atoms.calc.results["energy_reference_std"])
    atoms.calc = BiasedCalculator(EMT(), bias, strict=True)
    with pytest.raises(InputError, match="energy zero is not known"):
        atoms.get_potential_energy()
    with pytest.raises(InputError, match="energy zero is not known"):
        atoms.get_potential_energies()
    assert np.abs(atoms.get_forces()).max() > 0.1  # forces need no zero
    assert "energy" not in atoms.calc.results
    assert "forces" in atoms.calc.results
    bound = BiasedCalculator(LennardJones(), bias, strict=True)
    with pytest.raises(InputError, match="not known"):
        bound.get_potential_energy(bulk("Ar"))


def test_a_bias_of_another_calculator_is_noticed():
    bias = zero_of(molecules())
    bias.fit_report["calculator"] = {"class": "ase.calculators.lj.LennardJones"}
    BiasedCalculator(Coloured(), bias, strict=True)  # derived from it
    with pytest.warns(
        EnergyZeroWarning, match=r"fitted to energies of ase\.calculators\.lj\.LennardJones"
    ):
        BiasedCalculator(EMT(), bias)
    with pytest.raises(CalculatorSetupError, match=r"this calculator is .*EMT"):
        BiasedCalculator(EMT(), bias, strict=True)


def test_what_is_no_calculator_or_no_bias_is_refused(tmp_path):
    with pytest.raises(CalculatorSetupError, match="has no get_property"):
        BiasedCalculator("emt", Bias())
    with pytest.raises(FileNotFoundError, match=r"zero\.json: no such bias"):
        BiasedCalculator(EMT(), tmp_path / "zero.json")
    with pytest.raises(CalculatorSetupError, match="42 is neither the path"):
        BiasedCalculator(EMT(), 42)
    atoms = ethanol()
    atoms.calc = BiasedCalculator(LennardJones(), zero_of(molecules()))
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
