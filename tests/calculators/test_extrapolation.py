"""Structures outside of the training range: warned of, refused, and held apart."""

import pickle
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.fd import (
    calculate_numerical_forces,
    calculate_numerical_stress,
)
from ase.data import atomic_numbers, covalent_radii
from ase.neighborlist import neighbor_list
from conftest import copper, ethanol, small_potential, structure_of

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calculators import ExtrapolationError, ExtrapolationWarning
from ase_biasgrad.calculators.extrapolation import RangeCheck
from ase_biasgrad.checkpoint import CheckpointError, save_checkpoint
from ase_biasgrad.training_range import Coordination, TrainingRange

CLOSEST = {(1, 1): 1.4, (1, 6): 1.0, (1, 8): 0.9, (6, 6): 1.4, (6, 8): 1.3, (29, 29): 2.4}
SEEN = TrainingRange(CLOSEST, 1e3)


def checkpoint(folder, seen: TrainingRange | None = SEEN, name: str = "schnet", seed: int = 0):
    path = folder / f"{name}{seed}.safetensors"
    save_checkpoint(path, small_potential(name, seed), {"range": seen.record()} if seen else {})
    return path


def made(path, **arguments) -> BiasGradCalculator:
    return BiasGradCalculator(path, **{"device": "cpu", "dtype": "float64", **arguments})


def squeezed() -> Atoms:
    """Ethanol of whose hydrogens one lies 0.75 Å from its carbon."""
    atoms = ethanol()
    bond = atoms.positions[4] - atoms.positions[0]
    k = int(np.argmin(np.linalg.norm(atoms.positions[3:] - atoms.positions[0], axis=1))) + 3
    bond = atoms.positions[k] - atoms.positions[0]
    atoms.positions[k] = atoms.positions[0] + 0.75 * bond / np.linalg.norm(bond)
    return atoms


def compressed() -> Atoms:
    """Copper whose atoms touch images of each other and of themselves."""
    atoms = copper()
    atoms.set_cell(0.8 * atoms.cell.array, scale_atoms=True)
    return atoms


def inside() -> TrainingRange:
    return TrainingRange(dict.fromkeys([*CLOSEST, (8, 8)], 0.5), 1e6)


def test_inside_nothing_changes(tmp_path):
    path, plain = checkpoint(tmp_path, inside()), small_potential("schnet")
    for atoms in (ethanol(), copper()):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExtrapolationWarning)
            ours, other = made(path), made(plain)
            atoms.calc = ours
            found = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces")}
        assert found["energy"] == other.get_property("energy", atoms)
        assert found["forces"].tobytes() == other.get_property("forces", atoms).tobytes()
        assert ours.outside is None


def test_the_first_structure_outside_is_warned_of_with_atoms_and_numbers(tmp_path):
    atoms = squeezed()
    atoms.calc = made(checkpoint(tmp_path))
    with pytest.warns(
        ExtrapolationWarning, match=r"atoms 0 \(C\) and \d \(H\) are 0.750 Å"
    ) as said:
        atoms.get_forces()
    ours = [str(w.message) for w in said if w.category is ExtrapolationWarning]
    assert len(ours) == 1
    assert "the closest H-C pair in training was at 1.000 Å" in ours[0]
    assert "0.750" in atoms.calc.outside
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        atoms.rattle(0.001)
        atoms.get_forces()  # once
    assert atoms.calc.outside
    atoms.positions = molecule("CH3CH2OH").positions
    atoms.get_forces()
    assert atoms.calc.outside is None


def test_strict_refuses(tmp_path):
    atoms = squeezed()
    atoms.calc = made(checkpoint(tmp_path), strict=True)
    for _ in range(2):
        with pytest.raises(ExtrapolationError, match="outside of the training range"):
            atoms.get_forces()


def test_elements_never_seen_together_are_outside(tmp_path):
    atoms = Atoms("OO", [[0, 0, 0], [0, 0, 3.0]])
    atoms.calc = made(checkpoint(tmp_path))
    with pytest.warns(ExtrapolationWarning, match="no O-O pair was closer than the cutoff of 4 Å"):
        atoms.get_potential_energy()
    apart = Atoms("OO", [[0, 0, 0], [0, 0, 4.5]])
    apart.calc = atoms.calc
    apart.get_potential_energy()
    assert apart.calc.outside is None


def test_large_forces_are_outside(tmp_path):
    atoms = ethanol()
    forces = made(small_potential("schnet")).get_property("forces", atoms)
    largest = float(np.linalg.norm(forces, axis=1).max())
    within = TrainingRange(inside().closest, largest)
    atoms.calc = made(checkpoint(tmp_path, within))
    atoms.get_forces()
    assert atoms.calc.outside is None
    atoms.calc = made(checkpoint(tmp_path, TrainingRange(inside().closest, largest / 2)))
    with pytest.warns(ExtrapolationWarning, match=rf"is {largest:.2f} eV/Å, and the largest in"):
        atoms.get_forces()


def test_without_a_record_nothing_is_checked(tmp_path):
    atoms = squeezed()
    atoms.calc = made(checkpoint(tmp_path, None), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        atoms.get_forces()


def test_a_damaged_record_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, small_potential("schnet"), {"range": {"closest": {"H-H": -1}}})
    with pytest.raises(CheckpointError, match=r"training\.range"):
        made(path)


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.ExtrapolationWarning")
class TestRepulsion:
    @pytest.mark.parametrize("make", [squeezed, compressed])
    @pytest.mark.parametrize("engine", ["cpu", "reference"])
    def test_forces_and_stress_are_derivatives(self, tmp_path, make, engine):
        atoms = make()
        atoms.calc = made(checkpoint(tmp_path), engine=engine)
        without = made(checkpoint(tmp_path), engine=engine, repulsion=False)
        assert atoms.get_potential_energy() > without.get_property("energy", atoms) + 0.01
        numerical = calculate_numerical_forces(atoms, eps=1e-4)
        assert np.abs(numerical - atoms.get_forces()).max() < 1e-4
        assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())
        if atoms.pbc.any():
            numerical = calculate_numerical_stress(atoms, eps=1e-5)
            assert np.abs(numerical - atoms.get_stress()).max() < 1e-5

    @pytest.mark.parametrize("make", [squeezed, compressed])
    def test_the_hessian_is_a_derivative_of_the_forces(self, tmp_path, make):
        atoms, h = make(), 1e-4
        atoms.calc = made(checkpoint(tmp_path))
        hessian = atoms.calc.get_hessian(atoms)
        for k in (0, 4, 10):
            moved = []
            for step in (h, -h):
                other = atoms.copy()
                other.positions.flat[k] += step
                moved.append(atoms.calc.get_property("forces", other).ravel())
            assert np.abs((moved[1] - moved[0]) / (2 * h) - hessian[k]).max() < 1e-3

    def test_second_derivatives_in_the_strain(self, tmp_path):
        atoms, h = compressed(), 1e-4
        atoms.calc = made(checkpoint(tmp_path))
        second = atoms.calc.get_hessian(atoms, strain=True)
        without = made(checkpoint(tmp_path), repulsion=False).get_hessian(atoms, strain=True)
        check = RangeCheck(SEEN, 4.0, 1.0, [29])
        energies = np.zeros((2, 2))
        for a, x in enumerate((h, -h)):
            for b, y in enumerate((h, -h)):
                moved = structure_of(atoms)
                moved.positions[1, 0] += x  # ∂²E/∂r∂ε_yz and, below, ∂²E/∂ε∂ε
                strain = np.zeros((3, 3))
                strain[0, 1] = strain[1, 0] = y / 2
                moved.positions[:] = moved.positions @ (np.eye(3) + strain)
                moved.cell[:] = moved.cell @ (np.eye(3) + strain)
                energies[a, b] = total(check, moved)
        mixed = (energies[0, 0] - energies[0, 1] - energies[1, 0] + energies[1, 1]) / (4 * h * h)
        assert (second - without)[3, 3 * 4 + 5] == pytest.approx(mixed, abs=1e-3, rel=1e-3)
        assert np.allclose(second, second.T)

    def test_each_member_of_a_committee_is_repelled(self, tmp_path):
        paths = [checkpoint(tmp_path, seed=seed) for seed in (0, 1)]
        atoms = squeezed()
        both, without = made(paths), made(paths, repulsion=False)
        ours, other = (c.get_property("forces", atoms) for c in (both, without))
        assert np.abs(ours - other).max() > 1
        assert np.allclose(both.results["forces_std"], without.results["forces_std"])

    def test_many_structures_at_once_are_the_same(self, tmp_path):
        structures = [squeezed(), ethanol(), compressed(), Atoms("H")]
        calc = made(checkpoint(tmp_path))
        for atoms, many in zip(structures, calc.evaluate_many(structures), strict=True):
            for name in ("energy", "forces"):
                assert np.allclose(many[name], calc.get_property(name, atoms), atol=1e-9)

    @pytest.mark.parametrize("again", [lambda c: c.copy(), lambda c: pickle.loads(pickle.dumps(c))])
    def test_copies_do_the_same(self, tmp_path, again):
        atoms = squeezed()
        calc = made(checkpoint(tmp_path))
        forces = calc.get_property("forces", atoms)
        assert np.array_equal(again(calc).get_property("forces", atoms), forces)

    def test_atoms_do_not_collapse(self, tmp_path):
        """Pushed together with a hundred times the thermal energy, they bounce."""
        from ase.md.verlet import VelocityVerlet

        atoms = Atoms("HO", [[0, 0, 0], [0, 0, 1.2]])
        atoms.set_velocities([[0, 0, 0.15], [0, 0, -0.15 / 16]])
        atoms.calc = made(checkpoint(tmp_path))
        distances: list[float] = []
        dynamics = VelocityVerlet(atoms, 0.02)
        dynamics.attach(lambda: distances.append(atoms.get_distance(0, 1)))
        total_energy = atoms.get_total_energy()
        dynamics.run(600)
        assert 0.3 < min(distances) < 0.9
        assert atoms.get_total_energy() == pytest.approx(total_energy, abs=5e-2)


def total(check: RangeCheck, structure) -> float:
    """Energy of the repulsion alone, from all pairs of a search."""
    from ase_biasgrad.calculators.repulsion import repulsion

    pairs = check.outside(structure, place=None)[0]
    first, second = structure.numbers[pairs.first], structure.numbers[pairs.second]
    return repulsion(first, second, pairs.distances, check.ranges[first, second])[0].sum()


@pytest.mark.parametrize("seed", range(3))
def test_close_pairs_under_a_skin_are_those_of_a_search(seed):
    """Random walks of atoms and cell, far enough that the list is searched anew."""
    random = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True) * (2, 1, 2) if seed else ethanol()
    check = RangeCheck(SEEN, 4.0, 0.5, [1, 6, 8, 29])
    found = 0
    for _ in range(60):
        atoms.positions += random.normal(0, 0.06, atoms.positions.shape)
        if seed:
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + random.normal(0, 0.01, (3, 3))), True)
        s = structure_of(atoms)
        kept, searched = check.outside(s)[0], check.outside(s, place=None)[0]
        third = check.outside(s, place=3)[0]
        assert (kept is None) == (searched is None) == (third is None)
        if kept is not None:
            assert np.allclose(np.sort(kept.distances), np.sort(searched.distances))
            assert np.array_equal(kept.vectors, third.vectors)
            found += 1
    assert found


def test_the_pairs_of_training_are_inside():
    """A pair as close as the closest in training is not closer."""
    atoms = Atoms("OH", [[0, 0, 0], [0.3, 0.5, 0.77]])
    seen = TrainingRange({(1, 8): atoms.get_distance(0, 1)})
    check = RangeCheck(seen, 4.0, 1.0, [1, 8])
    assert check.outside(structure_of(atoms))[0] is None


def neighbours(atoms: Atoms, cutoff: float) -> np.ndarray:
    """Coordination numbers `(n, elements)` by ASE's neighbour list and the formula."""
    i, j, d = neighbor_list("ijd", atoms, 5.0)
    radii = covalent_radii[atoms.numbers]
    x = d / np.minimum(radii[i] + radii[j], cutoff / 1.7)
    t = np.clip((1.7 - x) / 0.5, 0, 1)
    counts = np.zeros((len(atoms), 120))
    np.add.at(counts, (i, atoms.numbers[j]), t**2 * (3 - 2 * t))
    return counts


def wide(elements, cutoff: float = 4.0, **limits) -> TrainingRange:
    """A range in which every number of neighbours was seen, but for some."""
    ranges = {(a, b): (0.0, 99.0) for a in elements for b in elements}
    named = {(atomic_numbers[k[0]], atomic_numbers[k[2:]]): v for k, v in limits.items()}
    return TrainingRange(inside().closest, 1e6, Coordination(cutoff, {**ranges, **named}))


@pytest.mark.parametrize("kind", ["molecule", "crystal", "one cell"])
def test_neighbours_under_a_skin_are_those_of_the_formula(kind):
    random = np.random.default_rng(0)
    atoms = {"molecule": ethanol(), "crystal": bulk("Cu", cubic=True) * 2, "one cell": bulk("Cu")}
    atoms, elements = atoms[kind], [1, 6, 8, 29]
    cutoff = 3.5 if kind == "crystal" else 4.0
    check = RangeCheck(wide(elements, cutoff), 4.0, 0.5, elements)
    for _ in range(12):
        atoms.positions += random.normal(0, 0.06, atoms.positions.shape)
        s = structure_of(atoms)
        assert check.outside(s) == (None, None)
        measure = check._lists[0].of(s)
        assert np.allclose(measure.counts, neighbours(atoms, cutoff)[:, elements], atol=1e-12)
    assert measure.counts.max() > 1.5


def test_an_atom_that_leaves_or_comes_is_told(tmp_path):
    seen = wide([1, 6, 8, 29], H_C=(0.0, 1.0), C_H=(2.0, 3.0), O_H=(1.0, 1.0))
    atoms = ethanol()
    atoms.calc = made(checkpoint(tmp_path, seen))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExtrapolationWarning)
        atoms.get_forces()
    gone = atoms.copy()
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    own = min(np.flatnonzero(atoms.numbers == 1), key=lambda k: atoms.get_distance(k, oxygen))
    gone.set_distance(oxygen, int(own), 2.5, fix=0)
    gone.calc = made(checkpoint(tmp_path, seen), strict=True)
    with pytest.raises(
        ExtrapolationError,
        match=rf"atom {oxygen} \(O\) has 0.00 H as neighbours .*, and 1.00 to 1.00 in training",
    ):
        gone.get_forces()
    gone.calc = made(checkpoint(tmp_path, seen))
    with pytest.warns(ExtrapolationWarning, match="has 0.00 H as neighbours"):
        gone.get_forces()
    assert f"atom {oxygen} (O)" in gone.calc.outside
    results = gone.calc.evaluate_many([gone])[0]
    assert results["forces"] == pytest.approx(gone.get_forces(), abs=1e-9)
