"""Importers on real files and on bad ones."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write
from ase.units import GPa, Hartree, kcal, mol
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.data.importers.options import DEFAULTS
from ase_biasgrad.data.sets.md17 import import_md17
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


def labelled(energy: float = 1.0, distance: float = 1.0) -> Atoms:
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, distance]])
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.ones((2, 3)))
    return atoms


def test_ref_keys_come_first_and_named_ones_before_them(tmp_path):
    atoms = labelled(1.0)
    atoms.info |= {"REF_energy": 2.0, "dft": -3.0}
    atoms.arrays["REF_forces"] = np.full((2, 3), 0.02)
    write(tmp_path / "x.extxyz", atoms)
    import_files([tmp_path / "x.extxyz"], tmp_path / "a.h5", progress=False)
    assert Dataset(tmp_path / "a.h5")[0].energy == 2.0
    assert (Dataset(tmp_path / "a.h5")[0].forces == 0.02).all()
    options = ImportOptions(keys={"energy": "dft"}, energy_unit="Hartree", length_unit="Bohr")
    import_files([tmp_path / "x.extxyz"], tmp_path / "b.h5", options, progress=False)
    frame = Dataset(tmp_path / "b.h5")[0]
    assert frame.energy == pytest.approx(-3 * energy_unit("Ha"))
    assert frame.positions[1, 2] == pytest.approx(length_unit("bohr"))
    assert frame.forces[0, 0] == pytest.approx(0.02 * energy_unit("Ha") / length_unit("bohr"))


def test_ase_databases(tmp_path):
    with connect(tmp_path / "x.db") as database:
        database.write(labelled(1.5))
        database.write(labelled(2.5, 1.1))
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
    assert "forces in kcal/mol/Bohr" in report.conversions[0]
    options = ImportOptions(keys={"energy": "U0"})
    with pytest.raises(DataError, match=r"without the property 'U0'.*'energy'"):
        import_files([tmp_path / "x.db"], tmp_path / "y.h5", options, progress=False)


def test_forces_of_schnetpack_databases_have_units_of_their_own(tmp_path):
    from schnetpack.data import ASEAtomsData

    database = ASEAtomsData.create(
        str(tmp_path / "x.db"),
        distance_unit="Ang",
        property_unit_dict={"energy": "Hartree", "forces": "eV/Ang", "stress": "GPa"},
    )
    labels = {"energy": np.array([-3.0]), "forces": np.ones((2, 3)), "stress": np.eye(3)[None]}
    crystal = Atoms("OH", [[0, 0, 0], [0, 0, 2]], cell=np.eye(3) * 9, pbc=True)
    database.add_systems([labels], [crystal])
    import_files([tmp_path / "x.db"], tmp_path / "x.h5", progress=False)
    frame = Dataset(tmp_path / "x.h5")[0]
    assert frame.energy == pytest.approx(-3 * Hartree)
    assert (frame.forces == 1).all()
    np.testing.assert_allclose(frame.stress, GPa * np.array([1, 1, 1, 0, 0, 0]))


GOOD = {
    "nuclear_charges": np.array([8, 1]),
    "coords": np.array([[[0, 0, 0], [0, 0, z]] for z in (1.0, 1.1, 1.2)]),
    "energies": np.zeros(3),
    "forces": np.zeros((3, 2, 3)),
}


def imported(source, tmp_path, options=DEFAULTS):
    return import_files([source], tmp_path / "x.h5", options, progress=False)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, DEFAULTS, "--energy-unit and --length-unit"),
        ({}, ImportOptions(energy_unit="cal", length_unit="Å"), "'cal' is no energy unit"),
        ({"e_unit": "eV"}, KCAL, "its energy unit is eV, and you say kcal/mol"),
        ({"forces": None}, KCAL, "has no forces or F; its keys are"),
        ({"energies": np.zeros(2)}, KCAL, r"energies: has shape \(2,\), expected \(3,\)"),
        ({"coords": np.zeros(3)}, KCAL, r"coords: has shape \(3,\)"),
        (
            {"coords": np.zeros((0, 2, 3)), "energies": [], "forces": np.zeros((0, 2, 3))},
            KCAL,
            "coords: has no frames",
        ),
        ({"energies": np.array([0, np.inf, 0])}, KCAL, "energy of frame 1: holds NaN or infinity"),
        ({"energies": np.zeros(3, complex)}, KCAL, "energies: holds complex128"),
        ({"nuclear_charges": np.array(["O", "H"])}, KCAL, "nuclear_charges: holds <U1"),
        ({"nuclear_charges": np.tile([8, 1], (3, 1))}, KCAL, "all frames .* same atoms"),
        ({"nuclear_charges": np.array([8.5, 1])}, KCAL, "are not integers"),
        ({"coords": np.zeros((3, 2, 3))}, KCAL, "frame 0: atoms 0 and 1 lie on top"),
        ({"lattice": np.triu(np.ones((3, 3)))}, KCAL, "lattice: .* in rows or in columns"),
        ({}, ImportOptions("original", "eV", "Å"), "has no old_energies"),
        ({}, ImportOptions("best", "eV", "Å"), "labels 'best' are unknown"),
        ({}, replace(KCAL, keys={"dipole": "D"}), "has no D"),
    ],
)
def test_bad_npz_files_are_named_and_leave_no_file(tmp_path, change, options, message):
    arrays = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises((DataError, UnitError), match=message):
        imported(tmp_path / "bad.npz", tmp_path, options)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npz"]


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    if how == "cut":
        return content[: middle + 20]  # within a frame of the text files
    if how == "foreign":
        return b"hello\nworld\n"
    return content[:middle] + bytes(50) + content[middle + 50 :]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in ("x.npz", "x.extxyz", "x.traj", "x.db", "x.unknown")
        for how in ("cut", "foreign", "overwritten")
        if (name, how) != ("x.traj", "overwritten")  # its numbers have no checksum
    ],
)
def test_damaged_and_foreign_files_are_named_and_leave_no_file(tmp_path, name, how):
    source = tmp_path / name
    if name == "x.npz":
        random = np.random.default_rng(0)
        arrays = {k: np.concatenate([v] * 500) for k, v in GOOD.items() if k != "nuclear_charges"}
        arrays["forces"] = random.normal(size=arrays["forces"].shape)
        np.savez_compressed(source, nuclear_charges=[8, 1], **arrays)
    else:
        write(source, [labelled()] * 50, format="extxyz" if name == "x.unknown" else None)
    source.write_bytes(damaged(source.read_bytes(), how))
    if (name, how) == ("x.db", "overwritten"):
        source.write_bytes(bytes(100) + source.read_bytes()[100:])
    with pytest.raises(DataError, match=r"x\.\w+"):
        imported(source, tmp_path, KCAL if name == "x.npz" else DEFAULTS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_array_in_an_npz_name_is_no_npz(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"x\.npz: no npz file"):
        imported(tmp_path / "x.npz", tmp_path, KCAL)
    with pytest.raises(DataError, match="a folder"):
        imported(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"calc": None}, DEFAULTS, "its frame 1.: has no labels under REF_energy"),
        ({"REF_energy": "low"}, DEFAULTS, "its frame 1.: REF_energy: holds <U3"),
        ({}, ImportOptions(keys={"energy": "forces"}), r"forces: has shape \(2, 3\), .*energy"),
        (
            {},
            ImportOptions(keys={"energy": "dft"}),
            "has no dft .for energy.; its keys are energy, forces",
        ),
        ({"REF_stress": np.arange(9.0)}, DEFAULTS, "REF_stress: is not symmetric"),
        ({"REF_stress": np.arange(5.0)}, DEFAULTS, r"REF_stress: has shape \(5,\)"),
    ],
)
def test_bad_frames_of_ase_files_are_named(tmp_path, change, options, message):
    frame = labelled(distance=1.1)
    frame.set_cell(np.eye(3) * 9)
    frame.pbc = True
    if "calc" in change:
        frame.calc = None
    frame.info |= {key: value for key, value in change.items() if key != "calc"}
    write(tmp_path / "x.extxyz", [labelled(), frame])
    with pytest.raises(DataError, match=message):
        imported(tmp_path / "x.extxyz", tmp_path, options)
    assert not (tmp_path / "x.h5").exists()


def test_labels_can_be_left_out_and_others_brought_in(tmp_path):
    frame = labelled(2.0, 1.1)
    frame.calc = SinglePointCalculator(frame, energy=2.0)
    for k, atoms in enumerate(frames := [labelled(), frame]):
        atoms.info["dipole"] = np.full(3, float(k))
    write(tmp_path / "x.extxyz", frames)
    options = ImportOptions(without=("forces",), keys={"mu": "dipole"})
    report = imported(tmp_path / "x.extxyz", tmp_path, options)
    dataset = Dataset(tmp_path / "x.h5")
    assert [frame.energy for frame in dataset] == [1.0, 2.0]
    assert not dataset.has("forces")
    assert dataset[1].labels["mu"].tolist() == [1.0] * 3
    assert "mu: in 2 of 2 frames, from dipole" in report.conversions[0]


def test_sgdml_crystals_and_files_of_forces_alone(tmp_path):
    arrays = {k: v for k, v in GOOD.items() if k != "energies"}
    np.savez(tmp_path / "x.npz", **arrays, lattice=np.eye(3) * 5, e_unit=b"Ha", r_unit="a0")
    report = imported(tmp_path / "x.npz", tmp_path)
    frame = Dataset(tmp_path / "x.h5")[2]
    assert frame.energy is None
    assert frame.pbc.all()
    np.testing.assert_allclose(frame.cell, np.eye(3) * 5 * length_unit("Bohr"))
    assert "energy: in 0 of 3 frames; no energies" in report.conversions[0]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["H2O", "OHH", "CO", "Si2"]), min_size=1, max_size=6),
    st.integers(0, 10**6),
    st.sampled_from(["extxyz", "traj", "db"]),
)
def test_ase_files_come_back_as_they_were(tmp_path_factory, kinds, seed, suffix):
    random, frames = np.random.default_rng(seed), []
    folder = tmp_path_factory.mktemp("import")
    for kind in kinds:
        atoms = Atoms(kind)
        atoms.positions = 2.0 * np.arange(len(atoms))[:, None] + random.normal(0, 0.3, (1, 3))
        labels = {"energy": -1e3 * random.random(), "forces": random.normal(size=(len(atoms), 3))}
        if kind == "Si2":
            atoms.set_cell(np.diag(random.uniform(5, 9, 3)) + random.normal(0, 0.1, (3, 3)))
            atoms.pbc = True
            labels["stress"] = random.normal(0, 0.1, 6)
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    write(folder / f"x.{suffix}", frames)
    imported(folder / f"x.{suffix}", folder, ImportOptions(accept=True))  # of random labels
    # extxyz has 8 digits behind the point; the others are exact
    close = {"rtol": 1e-15, "atol": 1e-8 if suffix == "extxyz" else 1e-15}
    for atoms, frame in zip(frames, Dataset(folder / "x.h5"), strict=True):
        assert frame.numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(frame.positions, atoms.positions, **close)
        np.testing.assert_allclose(frame.cell, atoms.cell.array, **close)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), **close)
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        if atoms.pbc.any():
            np.testing.assert_allclose(frame.stress, atoms.get_stress(), **close)
        else:
            assert frame.stress is None


def test_several_files_make_one_dataset_which_ase_reads(tmp_path):
    for k in range(3):
        write(
            tmp_path / f"{k}.extxyz",
            [labelled(10.0 * k, 1 + 0.1 * k), labelled(10.0 * k + 1, 1.05 + 0.1 * k)],
        )
    sources = [tmp_path / f"{k}.extxyz" for k in (2, 0, 1)]
    import_files(sources, tmp_path / "all.h5", progress=False)
    energies = [20, 21, 0, 1, 10, 11]
    for index in (":", "1:4", "::2", "-2:", "::-1"):
        chosen = slice(*(int(part) if part else None for part in index.split(":")))
        found = [atoms.get_potential_energy() for atoms in read(tmp_path / "all.h5", index)]
        assert found == energies[chosen]
    assert read(tmp_path / "all.h5").get_potential_energy() == 11
    assert read(tmp_path / "all.h5", 2).get_potential_energy() == 0
    imported(tmp_path / "all.h5", tmp_path)  # what ASE reads can be imported: ours too
    assert Dataset(tmp_path / "x.h5").hash() == Dataset(tmp_path / "all.h5").hash()


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
