"""Second derivatives: exact Hessians, vibrations and elastic constants from them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, InputError
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.vibrations import Vibrations, VibrationsData
from conftest import BACKBONES, copper, ethanol, mixed, small_potential
from test_shipped_potential import POTENTIAL

from ase_biasgrad import BiasedCalculator, BiasGradCalculator
from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.calculators import elastic_constants
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import Potential

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)
SEVERAL = [(name, {}, "reference") for name in BACKBONES]
SEVERAL += [("graph_convolution", {"weights": "voronoi"}, "reference")]
SEVERAL += [(name, {}, "cpu") for name in ("schnet", "painn", "tensornet")]


def calculator(potential: Potential, **arguments) -> BiasGradCalculator:
    return BiasGradCalculator(potential, **{"device": "cpu", "dtype": "float64", **arguments})


def central_differences(atoms: Atoms, step: float) -> np.ndarray:
    """Differences of forces `(3n, 3n)`, of order step⁴."""
    weights = {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}
    rows = np.zeros((len(atoms), 3, 3 * len(atoms)))
    for atom, k in np.ndindex(len(atoms), 3):
        for shift, weight in weights.items():
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[atom, k] += shift * step
            rows[atom, k] -= weight / step * moved.get_forces().ravel()
    return rows.reshape(3 * len(atoms), -1)


@pytest.mark.parametrize("structure", [ethanol, copper, mixed])
@pytest.mark.parametrize(("name", "arguments", "engine"), SEVERAL)
def test_hessians_are_the_derivatives_of_forces(name, arguments, engine, structure):
    atoms, potential = structure(), small_potential(name, **arguments)
    atoms.calc = calculator(potential, engine=engine)
    hessian = atoms.calc.get_hessian(atoms)
    largest = np.abs(hessian).max()
    assert largest > 1e-3
    numerical = central_differences(atoms, 1e-4)
    np.testing.assert_allclose(hessian, numerical, rtol=0, atol=1e-6 * largest)
    assert np.array_equal(hessian, hessian.T)
    sums = hessian.reshape(-1, len(atoms), 3).sum(axis=1)  # a translation changes no force
    np.testing.assert_allclose(sums, 0, atol=1e-11 * largest)
    exact = potential.hessian(graph_from_atoms(atoms, potential.cutoff))
    limit = 1e-13 if engine == "reference" else 1e-4  # second derivatives of splines
    np.testing.assert_allclose(exact, hessian, rtol=0, atol=limit * largest)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_batch_has_the_hessians_of_its_structures_as_blocks(name):
    potential = small_potential(name)
    graphs = [graph_from_atoms(atoms, potential.cutoff) for atoms in (ethanol(), copper())]
    together = potential.hessian(collate(graphs))
    alone = torch.block_diag(*(potential.hessian(graph) for graph in graphs))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_strains_against_forces_and_stress(name, engine):
    """Rows of the strains are differences of strain gradients and forces."""
    atoms = copper()
    atoms.calc = calculator(small_potential(name), engine=engine)
    second, step = atoms.calc.get_hessian(atoms, strain=True), 1e-4
    largest = np.abs(second).max()
    of_positions = atoms.calc.get_hessian(atoms)
    np.testing.assert_allclose(second[:12, :12], of_positions, rtol=0, atol=1e-14 * largest)
    for k, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        gradients = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            gradients.append(-moved.get_forces() @ (np.eye(3) + strain))
        numerical = (gradients[0] - gradients[1]).ravel() / (2 * step)
        np.testing.assert_allclose(second[12 + k, :12], numerical, atol=1e-6 * largest)
    energies = []
    for sign in (1, 0, -1):
        moved = atoms.copy()
        moved.calc = atoms.calc
        strain = np.array([[0.3, 0.2, -0.4], [0.2, -0.5, 0.6], [-0.4, 0.6, 0.1]]) * sign * 2e-3
        moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        energies.append(moved.get_potential_energy())
    voigt = np.array([0.3, -0.5, 0.1, 1.2, -0.8, 0.4])
    numerical = (energies[0] - 2 * energies[1] + energies[2]) / 4e-6
    assert voigt @ second[12:, 12:] @ voigt == pytest.approx(numerical, abs=1e-4 * largest)


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_float32_calculators_have_the_float64_hessian(engine):
    potential, atoms = small_potential("tensornet"), ethanol()
    single = calculator(potential, dtype="float32", engine=engine)
    forces = single.get_property("forces", atoms).copy()
    hessian = single.get_hessian(atoms)
    assert np.array_equal(hessian, calculator(potential, engine=engine).get_hessian(atoms))
    assert hessian.dtype == np.float64
    assert np.array_equal(single.get_property("forces", atoms), forces)


def test_the_state_of_the_calculator_does_not_change():
    atoms, other = ethanol(), copper()
    calc = calculator(small_potential("schnet"))
    atoms.calc = calc
    forces, searches = atoms.get_forces(), calc._engine.list.list.list.searches
    results, kept = dict(calc.results), calc.atoms.copy()
    free = calc.get_hessian(other)
    other.set_constraint(FixAtoms([0]))
    with torch.inference_mode():
        assert np.array_equal(calc.get_hessian(other), free)
    assert calc.results.keys() == results.keys()
    assert all(calc.results[name] is results[name] for name in results)
    assert calc.atoms == kept
    assert calc.check_state(atoms) == []
    assert np.array_equal(atoms.get_forces(), forces)
    assert calc._engine.list.list.list.searches == searches
    for again in (pickle.loads(pickle.dumps(calc)), calc.copy(), copy.deepcopy(calc)):
        assert np.array_equal(again.get_hessian(other), free)


def test_a_committee_has_the_mean_and_a_bias_changes_nothing():
    potentials = [small_potential("schnet"), small_potential("painn", cutoff=3.0)]
    atoms = copper()
    singles = [calculator(potential).get_hessian(atoms) for potential in potentials]
    committee = calculator(potentials).get_hessian(atoms)
    np.testing.assert_allclose(committee, np.mean(singles, axis=0), atol=1e-12)
    counts = np.bincount(atoms.numbers, minlength=119)[None]
    potentials[0].bias.fit(np.array([-7.0e4]), counts, "mean")
    assert np.array_equal(calculator(potentials[0]).get_hessian(atoms), singles[0])
    biased = BiasedCalculator(calculator(potentials[1]), potentials[0].bias)
    assert np.array_equal(biased.get_hessian(atoms), singles[1])


def test_atoms_without_neighbours_and_no_atoms():
    for name in BACKBONES:
        calc = calculator(small_potential(name))
        assert np.array_equal(calc.get_hessian(Atoms("O")), np.zeros((3, 3)))
        assert calc.get_hessian(Atoms()).shape == (0, 0)
        far = Atoms("OC", [[0, 0, 0], [0, 0, 50.0]], cell=[99.0] * 3, pbc=True)
        assert np.array_equal(calc.get_hessian(far, strain=True), np.zeros((12, 12)))


def test_input_is_checked():
    calc = calculator(small_potential("schnet"))
    with pytest.raises(InputError, match=r"does not know \['Si'\]"):
        calc.get_hessian(bulk("Si"))
    atoms = ethanol()
    atoms.positions[3, 1] = np.nan
    with pytest.raises(InputError, match="position of atom 3 is not finite"):
        calc.get_hessian(atoms)
    atoms = copper()
    atoms.cell[0] = atoms.cell[1]
    with pytest.raises(InputError, match="independent"):
        calc.get_hessian(atoms)
    atoms = copper()
    atoms.info["charge"] = 1
    with pytest.raises(InputError, match="charge"):
        calc.get_hessian(atoms)


class Twisted(Backbone):
    """Forces that no energy has: the second derivatives are not symmetric."""

    name, cutoff, arguments = "twisted", 4.0, {}

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sum(dim=1)

        @staticmethod
        def backward(ctx, adjoint):
            return adjoint[:, None] * ctx.saved_tensors[0].roll(1, dims=1)

    def forward(self, graph):
        return self.Function.apply(graph.positions)


def test_hessians_that_are_not_symmetric_are_refused():
    potential = Potential(Twisted(), elements=[29])
    with pytest.raises(ArithmeticError, match=r"of twisted are not symmetric: off by 1\.0e\+00"):
        potential.hessian(graph_from_atoms(copper(), 4.0))
    with pytest.raises(CalculationFailed, match="not symmetric"):
        calculator(potential).get_hessian(copper())


def test_frequencies_of_the_shipped_potential(tmp_path):
    atoms = molecule("CH3CH2OH")
    atoms.calc = BiasGradCalculator(POTENTIAL, device="cpu", dtype="float64")
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    exact = VibrationsData.from_2d(atoms, atoms.calc.get_hessian(atoms)).get_frequencies()
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.005, nfree=4)
    vibrations.run()
    numerical = vibrations.get_frequencies()
    assert (exact[6:].imag == 0).all()  # three translations and three rotations come first
    assert (exact[6:].real > 150).all()
    np.testing.assert_allclose(exact[6:], numerical[6:], rtol=0, atol=1.0)  # cm⁻¹
    assert (np.abs(exact[:6]) < 30).all()
    assert exact[-1].real == pytest.approx(3750, abs=150)  # O–H


def crystal(name: str, seed: int, structure: Atoms, **arguments) -> Atoms:
    """A crystal of low symmetry, relaxed."""
    potential = small_potential(name, seed, **arguments)
    potential.elements = (14, 29)
    atoms = structure.copy()
    atoms.rattle(0.03, seed=1)
    shear = np.random.default_rng(0).normal(0, 0.02, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + shear), scale_atoms=True)
    atoms.calc = calculator(potential, engine="reference")
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-6, steps=300)
    return atoms


def relaxed_stress(atoms: Atoms, strain: np.ndarray) -> np.ndarray:
    """Stress `(6,)` of the strained crystal with its ions at rest."""
    moved = atoms.copy()
    moved.calc = atoms.calc
    moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    for _ in range(4):  # Newton's steps; translations are left out
        inverse = np.linalg.pinv(moved.calc.get_hessian(moved), rcond=1e-7, hermitian=True)
        moved.positions += (inverse @ moved.get_forces().ravel()).reshape(-1, 3)
    assert np.abs(moved.get_forces()).max() < 1e-8
    return moved.get_stress()


@pytest.mark.parametrize(
    ("name", "seed", "structure", "arguments"),
    [
        ("schnet", 1, bulk("Cu", cubic=True), {}),
        ("schnet", 1, bulk("Si"), {}),
        ("painn", 2, bulk("Si"), {"scale": 1.0}),
    ],
)
def test_elastic_constants_against_finite_strains(name, seed, structure, arguments):
    atoms, step = crystal(name, seed, structure, **arguments), 2e-5
    constants = elastic_constants(atoms)
    numerical = np.zeros((6, 6))
    for k, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5 * step
        strain[b, a] += 0.5 * step
        plus, minus = (relaxed_stress(atoms, sign * strain) for sign in (1, -1))
        numerical[:, k] = (plus - minus) / (2 * step)
    largest = np.abs(constants).max()
    np.testing.assert_allclose(constants, numerical, rtol=0, atol=1e-5 * largest)
    assert np.array_equal(constants, constants.T)
    if len(atoms) == 2:  # ions that follow make a crystal softer
        clamped = atoms.calc.get_hessian(atoms, strain=True)[6:, 6:] / atoms.get_volume()
        assert np.linalg.eigvalsh(clamped - constants)[-1] > 0.05 * largest
        doubled = atoms * (2, 1, 1)
        doubled.calc = BiasedCalculator(atoms.calc, small_potential().bias)
        np.testing.assert_allclose(elastic_constants(doubled), constants, atol=1e-7 * largest)


def test_elastic_constants_of_what_has_none():
    with pytest.raises(InputError, match=r"not relaxed: largest force .* eV/Å"):
        atoms = copper()
        atoms.calc = calculator(small_potential("schnet"))
        elastic_constants(atoms)
    with pytest.raises(InputError, match=r"pbc=\[True, False, True\]"):
        atoms = mixed()
        atoms.calc = calculator(small_potential("schnet"))
        elastic_constants(atoms)
    with pytest.raises(InputError, match="not stable"):  # atoms too far apart to hold each other
        atoms = Atoms("Cu2", [[0, 0, 0], [5.0, 5, 5]], cell=[10.0] * 3, pbc=True)
        atoms.calc = calculator(small_potential("schnet"))
        elastic_constants(atoms)
    with pytest.raises(CalculatorSetupError, match="need a BiasGradCalculator"):
        atoms.calc = EMT()
        elastic_constants(atoms)
