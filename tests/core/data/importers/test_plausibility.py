"""Questions about numbers that are hardly meant, and none about real data."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.units import GPa, Hartree, kcal, kJ, mol

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.data.importers.plausibility import all_electron_energy


def argon(frames: int = 4, **factors: float) -> list[Atoms]:
    """Crystals under pressure; labels times `factors`."""
    made = []
    for k in range(frames):
        atoms = bulk("Ar", "fcc", 4.7, cubic=True)
        atoms.rattle(0.1, seed=k)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104)
        labels = {
            name: factors.get(name, 1.0) * value
            for name, value in (
                ("energy", atoms.get_potential_energy()),
                ("forces", atoms.get_forces()),
                ("stress", atoms.get_stress()),
            )
        }
        atoms.calc = SinglePointCalculator(atoms, **labels)
        made.append(atoms)
    return made


def questions(folder, frames) -> str:
    """Refused with these words, or taken with the same."""
    write(folder / "x.traj", frames)
    report = import_files(
        [folder / "x.traj"], folder / "x.h5", ImportOptions(accept=True), progress=False
    )
    assert len(Dataset(folder / "x.h5")) == len(frames)
    if report.accepted:
        with pytest.raises(DataError, match="hardly meant") as error:
            import_files([folder / "x.traj"], folder / "y.h5", progress=False)
        assert all(question in str(error.value) for question in report.accepted)
        assert not (folder / "y.h5").exists()
        assert Dataset(folder / "x.h5").provenance["accepted"] == report.accepted
    return "\n".join(report.accepted)


def test_atoms_with_all_their_electrons():
    # Hartree-Fock limits (C. F. Bunge et al., At. Data Nucl. Data Tables 53, 113 (1993))
    for number, hartree in (
        (1, -0.5),
        (2, -2.86168),
        (6, -37.68862),
        (8, -74.80940),
        (18, -526.8175),
    ):
        assert all_electron_energy(number) / Hartree == pytest.approx(hartree, rel=0.02)


def test_plausible_numbers_are_not_questioned(tmp_path):
    assert questions(tmp_path, argon()) == ""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("ethanol", -154.9 * Hartree),  # all electrons
        ("ethanol", -48.0),  # bound from pseudo-atoms
        ("ethanol", -310.0),  # GFN2-xTB
        ("water", -17.2 * Hartree),
        ("gold", -4.0 * 2),
    ],
)
def test_energies_of_all_methods_pass(tmp_path, kind, expected):
    made = {"ethanol": "C2H6O", "water": "H2O", "gold": "Au2"}[kind]
    atoms = Atoms(made, positions=1.5 * np.arange(len(Atoms(made)))[:, None] * [1, 0.3, 0])
    atoms.calc = SinglePointCalculator(atoms, energy=expected)
    assert questions(tmp_path, [atoms]) == ""


@pytest.mark.parametrize(
    ("energy", "unit"),
    [
        (-76.42 * Hartree / (kcal / mol), "kcal/mol taken for eV"),
        (-76.42 * Hartree / (kJ / mol), "kJ/mol taken for eV"),
        (-76.42, "Hartree taken for eV"),
        (-20000.0, "isolated atoms with all their electrons have -20"),
        (400.0, "133.333 eV per atom"),
    ],
)
def test_energies_in_other_units_are_recognised(tmp_path, energy, unit):
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    water.calc = SinglePointCalculator(water, energy=energy)
    assert unit in questions(tmp_path, [water])


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"stress": 1602.18}, "frame 0): a stress of"),  # kbar
        ({"stress": 1 / GPa}, "is it in kbar"),
        ({"forces": 1e3}, "half of the forces are above"),
    ],
)
def test_stresses_and_forces_in_other_units_are_recognised(tmp_path, factors, said):
    assert said in questions(tmp_path, argon(**factors))


def test_forces_of_ethanol_in_kcal_per_mol(tmp_path, shared_data):
    arrays = np.load(shared_data / "rmd17" / "rmd17_ethanol_train_01.npz")
    frames = []
    for k in range(5):
        atoms = Atoms(arrays["nuclear_charges"], arrays["coords"][k])
        atoms.calc = SinglePointCalculator(
            atoms, energy=arrays["energies"][k], forces=arrays["forces"][k]
        )
        frames.append(atoms)
    said = questions(tmp_path, frames)
    assert "kcal/mol taken for eV? (say --energy-unit) (and 4 more frames like this)" in said
    assert "half of the forces are above" in said


def test_frames_that_stand_out_are_named_with_frame_atom_and_value(tmp_path):
    frames = argon(6)
    frames[4].calc.results["forces"][2] = [0, 3000.0, 0]
    said = questions(tmp_path, frames)
    assert "(its frame 4): a force of 3000 eV/Å on atom 2" in said
    frames = argon(3)
    frames.append(frames[1].copy())
    frames[-1].calc = SinglePointCalculator(frames[-1], energy=1.0)
    said = questions(tmp_path, frames)
    assert "x.traj (its frame 3): the same structure as" in said
    assert "x.traj (its frame 1)" in said
    close = argon(1)
    close[0].positions[1] = close[0].positions[0] + [0, 0, 0.2]
    close[0].calc = SinglePointCalculator(close[0], energy=1.0)
    assert "atoms 0 and 1 are closer than 0.3 Å" in questions(tmp_path, close)


def test_real_data_are_not_questioned(tmp_path, shared_data):
    sources = [*(shared_data / "periodic").glob("*.extxyz"), *(shared_data / "multi").glob("*.xyz")]
    for source in sources:
        report = import_files([source], tmp_path / "x.h5", progress=False)
        assert report.frames == len(read(source, ":"))
