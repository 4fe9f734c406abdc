"""Importers on real files and on bad ones."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write
from ase.units import kcal, mol

from ase_biasgrad.dataset import DataError, Dataset
from ase_biasgrad.importers import ImportOptions, import_files
from ase_biasgrad.md17 import import_md17
from ase_biasgrad.units import UnitError, energy_unit, length_unit

KCAL = ImportOptions(energy_unit="kcal/mol", length_unit="Angstrom")


@pytest.mark.parametrize(("labels", "key"), [("revised", "energies"), ("original", "old_energies")])
def test_rmd17_label_sets(tmp_path, shared_data, labels, key):
    source = shared_data / "rmd17" / "rmd17_ethanol_train_01.npz"
    import_md17("ethanol", tmp_path / "x.h5", True, source, labels, progress=False)
    dataset, raw = Dataset(tmp_path / "x.h5"), np.load(source)
    assert len(dataset) == 1000
    frame = dataset[123]
    # energies near −97 000 kcal/mol: float64 end to end
    assert frame.energy == pytest.approx(float(raw[key].ravel()[123]) * kcal / mol, rel=1e-15)
    forces = raw["forces" if labels == "revised" else "old_forces"][123] * (kcal / mol)
    np.testing.assert_allclose(frame.forces, forces, rtol=1e-12)
    np.testing.assert_array_equal(frame.positions, raw["coords"][123])


def test_periodic_extxyz_keeps_stress_and_cells(tmp_path, shared_data):
    source = shared_data / "periodic" / "si_test.extxyz"
    import_files([source], tmp_path / "x.h5", progress=False)
    dataset = Dataset(tmp_path / "x.h5")
    for atoms, frame in zip(read(source, ":"), dataset, strict=True):
        np.testing.assert_allclose(frame.stress, atoms.get_stress(), rtol=1e-12)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), rtol=1e-12)
        np.testing.assert_allclose(frame.cell, atoms.cell.array)
        np.testing.assert_allclose(
            frame.atoms().get_potential_energy(), atoms.get_potential_energy()
        )


def labelled(energy: float = 1.0) -> Atoms:
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.ones((2, 3)))
    return atoms


def test_ref_keys_come_first_and_named_ones_before_them(tmp_path):
    atoms = labelled(1.0)
    atoms.info |= {"REF_energy": 2.0, "dft": 3.0}
    atoms.arrays["REF_forces"] = np.full((2, 3), 2.0)
    write(tmp_path / "x.extxyz", atoms)
    import_files([tmp_path / "x.extxyz"], tmp_path / "a.h5", progress=False)
    assert Dataset(tmp_path / "a.h5")[0].energy == 2.0
    assert (Dataset(tmp_path / "a.h5")[0].forces == 2.0).all()
    options = ImportOptions(keys={"energy": "dft"}, energy_unit="Hartree", length_unit="Bohr")
    import_files([tmp_path / "x.extxyz"], tmp_path / "b.h5", options, progress=False)
    frame = Dataset(tmp_path / "b.h5")[0]
    assert frame.energy == pytest.approx(3 * energy_unit("Ha"))
    assert frame.positions[1, 2] == pytest.approx(length_unit("bohr"))
    assert frame.forces[0, 0] == pytest.approx(2 * energy_unit("Ha") / length_unit("bohr"))


def test_ase_databases(tmp_path):
    with connect(tmp_path / "x.db") as database:
        database.write(labelled(1.5))
        database.write(labelled(2.5))
    import_files([tmp_path / "x.db"], tmp_path / "x.h5", progress=False)
    assert [frame.energy for frame in Dataset(tmp_path / "x.h5")] == [1.5, 2.5]


def test_schnetpack_databases_carry_their_units(tmp_path):
    from schnetpack.data import ASEAtomsData

    database = ASEAtomsData.create(
        str(tmp_path / "x.db"),
        distance_unit="Bohr",
        property_unit_dict={"energy": "kcal/mol", "forces": "kcal/mol/Bohr"},
    )
    labels = {"energy": np.array([3.0]), "forces": np.ones((2, 3))}
    database.add_systems([labels], [Atoms("OH", [[0, 0, 0], [0, 0, 2]])])
    report = import_files([tmp_path / "x.db"], tmp_path / "x.h5", progress=False)
    frame = Dataset(tmp_path / "x.h5")[0]
    assert frame.energy == pytest.approx(3 * kcal / mol)
    assert frame.positions[1, 2] == pytest.approx(2 * length_unit("Bohr"))
    assert frame.forces[0, 0] == pytest.approx(kcal / mol / length_unit("Bohr"))
    assert "kcal/mol → eV" in report.conversions[0]
    options = ImportOptions(keys={"energy": "U0"})
    with pytest.raises(DataError, match=r"without the property 'U0'.*'energy'"):
        import_files([tmp_path / "x.db"], tmp_path / "y.h5", options, progress=False)


def test_bad_sources_are_named_and_leave_no_file(tmp_path):
    good = {
        "nuclear_charges": np.array([8, 1]),
        "coords": np.array([[[0, 0, 0], [0, 0, 1.0]]] * 3),
        "energies": np.zeros(3),
        "forces": np.zeros((3, 2, 3)),
    }
    bad = {
        "units": (good, ImportOptions(), "--energy-unit and --length-unit"),
        "unit": (
            good,
            ImportOptions(energy_unit="cal", length_unit="Å"),
            "'cal' is no energy unit",
        ),
        "missing": ({k: v for k, v in good.items() if k != "forces"}, KCAL, "no forces or F"),
        "shape": ({**good, "energies": np.zeros(2)}, KCAL, r"energies: has shape \(2,\)"),
        "nan": ({**good, "energies": np.array([0, np.nan, 0])}, KCAL, "energy of frame 1"),
        "labels": (good, ImportOptions("original", "eV", "Å"), "no old_energies"),
    }
    for name, (arrays, options, message) in bad.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises((DataError, UnitError), match=message):
            import_files([tmp_path / f"{name}.npz"], tmp_path / "x.h5", options, progress=False)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "nan.npz").read_bytes()[:200])
    with pytest.raises(DataError, match=r"cut\.npz: no npz file, or a truncated one"):
        import_files([tmp_path / "cut.npz"], tmp_path / "x.h5", KCAL, progress=False)
    (tmp_path / "no.extxyz").write_text("garbage")
    with pytest.raises(DataError, match=r"no\.extxyz: ASE cannot read it"):
        import_files([tmp_path / "no.extxyz"], tmp_path / "x.h5", progress=False)
    write(tmp_path / "bare.extxyz", Atoms("OH", [[0, 0, 0], [0, 0, 1]]))
    with pytest.raises(DataError, match="frame 0: has no labels"):
        import_files([tmp_path / "bare.extxyz"], tmp_path / "x.h5", progress=False)
    assert not (tmp_path / "x.h5").exists()


def test_sgdml_files_say_their_units_and_unlabelled_frames_can_be_left_out(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        z=np.array([8, 1]),
        R=np.array([[[0, 0, 0], [0, 0, 1.0]]]),
        E=np.array([1.0]),
        F=np.zeros((1, 2, 3)),
        e_unit="kcal/mol",
        r_unit="Ang",
    )
    import_files([tmp_path / "x.npz"], tmp_path / "x.h5", progress=False)
    assert Dataset(tmp_path / "x.h5")[0].energy == pytest.approx(kcal / mol)
    write(tmp_path / "y.extxyz", [labelled(), Atoms("OH", [[0, 0, 0], [0, 0, 1]])])
    options = ImportOptions(skip_unlabelled=True)
    report = import_files([tmp_path / "y.extxyz"], tmp_path / "y.h5", options, progress=False)
    assert (report.frames, report.skipped) == (1, 1)
