"""Labels of all kinds on the way in: taken, converted, missing, or named as left out."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.units import UnitError, energy_unit

ROWS = "O 0 0 0 0.3 0 -0.1\nH 0 0 {z} -0.3 0 0.1\n"
LATTICE = 'Lattice="4 0 0 0 5 0 0 0 6" pbc="T T T" '


def frame(header: str, column: str = "forces", z: float = 1.0, lattice: str = LATTICE) -> str:
    properties = f"Properties=species:S:1:pos:R:3:{column}:R:3"
    return f"2\n{lattice}{properties} {header}\n{ROWS.format(z=z)}"


def imported(folder, *frames: str, name: str = "x.extxyz", **options):
    (folder / name).write_text("".join(frames), encoding="utf-8")
    output = folder / "out.h5"
    report = import_files([folder / name], output, ImportOptions(**options), progress=False)
    return Dataset(output), report.conversions[0]


FORCES = np.array([[0.3, 0, -0.1], [-0.3, 0, 0.1]])


@pytest.mark.parametrize(
    ("header", "column", "has", "said"),
    [
        ("ENERGY=-2.5", "Forces", "energy forces", "energy: in 1 of 1 frames, from ENERGY"),
        ("Energy=-2.5", "force", "energy forces", "forces: in 1 of 1 frames, from force"),
        ("energy=-2.5", "REF_force", "energy forces", "from REF_force"),
        ("REF_energy=-2.5 energy=7", "forces", "energy forces", "left out: energy (energy) in 1"),
        ("free_energy=-2.5", "forces", "forces", "--key energy=free_energy"),
        ("U0=-2.5", "forces", "forces", "left out: U0 (energy) in 1 frames"),
        ("energy=-2.5", "pbe_forces", "energy", "take it with --key forces=pbe_forces"),
        ("energy=-2.5", "gradient", "energy", "--key forces=gradient, which changes the sign"),
        ("energy=-2.5 total_spin=2", "forces", "energy forces", "left out: total_spin (charge or"),
        ("energy=-2.5 energy_weight=3", "forces", "energy forces", "left out: energy_weight (weig"),
        ('energy=-2.5 mu_dipole="1 2 3"', "forces", "energy forces", "--key mu_dipole=mu_dipole"),
        ("energy=-2.5 unit=Ry", "forces", "energy forces", "left out: unit (unit) in 1 frames"),
        ("energy=-2.5 box_volume=3", "forces", "energy forces", "left out: box_volume (cell)"),
        ("energy=-2.5 step=4", "forces", "energy forces", "not used: step"),
    ],
)
def test_every_key_that_looks_like_a_label_is_taken_or_named(tmp_path, header, column, has, said):
    dataset, account = imported(tmp_path, frame(header, column))
    assert said in account
    assert ("energy" in has.split()) == (dataset[0].energy == -2.5)
    assert (dataset[0].forces is not None) == ("forces" in has.split())
    if dataset[0].forces is not None:
        np.testing.assert_array_equal(dataset[0].forces, FORCES)


def test_gradients_that_are_named_change_their_sign(tmp_path):
    dataset, said = imported(tmp_path, frame("energy=1", "dft_grad"), keys={"forces": "dft_grad"})
    np.testing.assert_array_equal(dataset[0].forces, -FORCES)
    assert "from dft_grad with its sign changed" in said


NINE, SIX = "1.2 0.4 0.5 0.4 1.3 0.6 0.5 0.6 1.4", "1.2 1.3 1.4 0.6 0.5 0.4"
VOIGT = np.array([1.2, 1.3, 1.4, 0.6, 0.5, 0.4])


@pytest.mark.parametrize("key", ["virial", "Virials", "REF_virial", "stress", "REF_stress"])
@pytest.mark.parametrize("numbers", [NINE, SIX])
def test_virials_become_stresses_and_six_numbers_are_one(tmp_path, key, numbers):
    dataset, said = imported(tmp_path, frame(f'energy=1 {key}="{numbers}"'))
    expected = -VOIGT / 120 if "irial" in key else VOIGT
    np.testing.assert_allclose(dataset[0].stress, expected, rtol=1e-14)
    assert f"from {key}" in said
    assert ("by −virial/volume" in said) == ("irial" in key)


def test_texts_become_labels_that_are_kept_on_the_way_through_extxyz(tmp_path):
    text = "".join(
        frame(f"energy={k} source={name}") for k, name in enumerate(("pbe", "r2", "pbe"))
    )
    dataset, said = imported(tmp_path, text, keys={"source": "source"}, accept=True)
    assert "source: in 3 of 3 frames, from source" in said
    assert dataset.texts("source") == ["pbe", "r2"]
    assert dataset.groups()[0].read("source").tolist() == [0, 1, 0]
    write(tmp_path / "again.extxyz", [one.atoms() for one in dataset])
    import_files(
        [tmp_path / "again.extxyz"],
        tmp_path / "b.h5",
        ImportOptions(keys={"source": "source"}, accept=True),
        progress=False,
    )
    assert [str(one.labels["source"]) for one in Dataset(tmp_path / "b.h5")] == ["pbe", "r2", "pbe"]
    with pytest.raises(DataError, match=r"source of frame 1: is text in some frames, and numbers"):
        imported(
            tmp_path,
            frame("energy=1 source=pbe") + frame("energy=2 source=7"),
            keys={"source": "source"},
            accept=True,
        )


def test_virials_in_other_units(tmp_path):
    options = {"energy_unit": "Hartree", "length_unit": "Bohr", "accept": True}
    options["keys"] = {"stress": "my_virial"}
    text = frame(f'energy=-60 my_virial="{SIX}"', z=2)
    dataset, _ = imported(tmp_path, text, **options)
    volume = 120 * 0.529177210903**3
    expected = -VOIGT * energy_unit("Hartree") / volume
    np.testing.assert_allclose(dataset[0].stress, expected, rtol=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(*[st.sampled_from(["there", "nan", "gone"])] * 3), min_size=1, max_size=9)
)
def test_labels_missing_in_any_frame_are_missing_there_alone(tmp_path_factory, kinds):
    folder, text = tmp_path_factory.mktemp("partial"), []
    for k, (energy, forces, stress) in enumerate(kinds):
        rows = ROWS.format(z=1 + 0.01 * k)
        if forces == "nan":
            rows = f"O 0 0 0 nan nan nan\nH 0 0 {1 + 0.01 * k} nan nan nan\n"
        words = {"there": f"energy={-k - 1}", "nan": "energy=nan", "gone": ""}[energy]
        words += {"there": f' stress="{NINE}"', "nan": f' stress="{"nan " * 9}"', "gone": ""}[
            stress
        ]
        text.append(frame(words, "forces" if forces != "gone" else "vel").split("\n", 2))
        text[-1] = f"2\n{text[-1][1]}\n{rows}"
    some = [set(kind) & {"there"} for kind in kinds]
    if not all(some):
        with pytest.raises(DataError, match="has no labels under"):
            imported(folder, *text)
    if not any(some):
        return
    dataset, said = imported(folder, *text, skip_unlabelled=True)
    kept = [(k, kind) for k, kind in enumerate(kinds) if some[k]]
    assert len(dataset) == len(kept)
    for name, place in (("energy", 0), ("forces", 1), ("stress", 2)):
        present = [k for k, kind in kept if kind[place] == "there"]
        assert dataset.count(name) == len(present)
        assert f"{name}: in {len(present)} of {len(kept)} frames" in said or not present
        for row, (k, kind) in enumerate(kept):
            value = getattr(dataset[row], name)
            assert (value is None) == (kind[place] != "there")
            assert name != "energy" or value is None or value == -k - 1


def test_a_stress_without_periodicity_is_left_out_and_said(tmp_path):
    molecule_ = frame(f'energy=1 stress="{" ".join(["0"] * 9)}"', lattice='pbc="F F F" ')
    crystal = frame(f'energy=1 stress="{NINE}"', z=1.1)
    dataset, said = imported(tmp_path, molecule_, crystal)
    assert [f.stress is None for f in dataset] == [True, False]
    assert "stress: left out in 1 frames that are not periodic" in said


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("energy=1", "energy=9 charge=1", r"HO: neutral, closed shell .* beside charge \+1 "),
        ("energy=1 charge=0", "energy=9 total_charge=-2", "beside charge -2"),
        ("energy=1 spin=1", "energy=9 spin=3", "beside spin or multiplicity 3"),
        ("energy=1 magmom=0.01", "energy=9 magmom=1.98", "beside spin-polarised"),
    ],
)
def test_charges_and_spins_beside_others_are_refused(tmp_path, first, second, message):
    frames = frame(first), frame(second, z=1.1)
    with pytest.raises(DataError, match=message):
        imported(tmp_path, *frames)
    assert len(imported(tmp_path, *frames, accept=True)[0]) == 2


def test_charges_alike_in_all_frames_and_rounded_ones_are_named_alone(tmp_path):
    words = "energy=1 charge=0.004 spin=1", "energy=1", "energy=1 charge=0 multiplicity=1"
    frames = [frame(header, z=1 + 0.1 * k) for k, header in enumerate(words)]
    dataset, said = imported(tmp_path, *frames)
    assert len(dataset) == 3
    assert "left out: charge (charge or spin) in 2 frames" in said
    anions = [frame("energy=1 charge=-1", z=z) for z in (1.0, 1.1)]
    assert "left out: charge" in imported(tmp_path, *anions)[1]


@pytest.mark.parametrize(
    ("encode", "name"),
    [
        (lambda text: b"\xef\xbb\xbf" + text.encode(), "bom.extxyz"),
        (lambda text: text.replace("\n", "\r\n").encode(), "windows.xyz"),
        (lambda text: text.encode("latin-1"), "latin.extxyz"),
        (lambda text: text.encode("utf-16"), "shell.extxyz"),
        (lambda text: text.encode(), "frames.txt"),
        (lambda text: text.encode(), "Si@SiO2@1.dat"),
        (lambda text: text.encode(), "noending"),
    ],
)
def test_files_as_they_come(tmp_path, encode, name):
    text = frame('energy=-2.5 comment="Ångström, naïve"')
    (tmp_path / name).write_bytes(encode(text + frame("energy=-3.5", z=1.2)))
    write(tmp_path / "Si", Atoms("Si"), format="extxyz")  # which must not be read
    write(tmp_path / "Si@SiO2", Atoms("Si"), format="extxyz")
    import_files([tmp_path / name], tmp_path / "out.h5", progress=False)
    assert [f.energy for f in Dataset(tmp_path / "out.h5")] == [-2.5, -3.5]


def test_a_format_can_be_named(tmp_path):
    atoms = bulk("Ar", cubic=True)
    atoms.calc = LennardJones()
    atoms.get_stress()
    write(tmp_path / "frames.log", atoms, format="traj")
    options = ImportOptions(format="traj")
    import_files([tmp_path / "frames.log"], tmp_path / "out.h5", options, progress=False)
    found = Dataset(tmp_path / "out.h5")[0]
    assert found.energy == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(found.stress, atoms.get_stress())


def test_a_label_that_stands_twice_in_a_header_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.extxyz: energy stands twice"):
        imported(tmp_path, frame("energy=1 energy=2"))
    imported(tmp_path, frame('energy=1 note="energy=2"'))


def test_units_that_a_frame_names_are_believed_and_shown(tmp_path):
    header = "energy=-1500 energy_unit=kcal/mol forces_unit=eV/Ang"
    dataset, said = imported(tmp_path, frame(header))
    assert dataset[0].energy == pytest.approx(-1500 * energy_unit("kcal/mol"))
    np.testing.assert_array_equal(dataset[0].forces, FORCES)
    assert "energies kcal/mol → eV (as it says), lengths in Å (ASE's convention)" in said
    assert "forces in eV/Ang (as it says)" in said
    assert "left out" not in said
    with pytest.raises(UnitError, match=r"x\.extxyz: 'furlong' is no length unit"):
        imported(tmp_path, frame("energy=-1 length_unit=furlong"))
    with pytest.raises(DataError, match="its energy unit is kcal/mol, and you say eV"):
        imported(tmp_path, frame(header), energy_unit="eV")
    with pytest.raises(DataError, match=r"frame 1\): names other units than the first"):
        imported(tmp_path, frame(header), frame("energy=-60", z=1.1))


def database(path, units=None, length="Ang", **pairs):
    with connect(path) as rows:
        for k in range(2):
            atoms = molecule("H2O")
            atoms.positions[0, 2] += 0.1 * k
            data = {"energy": np.array([-4.0 - k]), "forces": np.full((3, 3), 0.5)} if units else {}
            rows.write(atoms, data=data, **{key: value[k] for key, value in pairs.items()})
    if units:
        rows.metadata = {"_property_unit_dict": units, "_distance_unit": length}


def test_energies_among_the_pairs_of_a_database(tmp_path):
    database(tmp_path / "x.db", pbe_energy=[-3.0, -4.0], band_gap=[1.0, 2.0])
    options = ImportOptions(keys={"energy": "pbe_energy", "gap": "band_gap"})
    import_files([tmp_path / "x.db"], tmp_path / "x.h5", options, progress=False)
    dataset = Dataset(tmp_path / "x.h5")
    assert [f.energy for f in dataset] == [-3.0, -4.0]
    assert [float(f.labels["gap"]) for f in dataset] == [1.0, 2.0]
    with pytest.raises(DataError, match="it has pbe_energy: name them with --key"):
        import_files([tmp_path / "x.db"], tmp_path / "y.h5", progress=False)


def test_units_of_databases_as_numbers_and_left_empty(tmp_path):
    database(tmp_path / "n.db", {"energy": 0.5, "forces": 0.25}, 1.0)
    report = import_files([tmp_path / "n.db"], tmp_path / "n.h5", progress=False)
    frames = list(Dataset(tmp_path / "n.h5"))
    assert [f.energy for f in frames] == [-2.0, -2.5]
    np.testing.assert_allclose(frames[0].forces, np.full((3, 3), 0.125))
    assert "energies 0.5 eV → eV, lengths in Å (as its metadata say)" in report.conversions[0]
    database(tmp_path / "e.db", {"energy": "", "forces": "eV/Ang"})
    with pytest.raises(DataError, match="leave the energy unit empty; say it with --energy-unit"):
        import_files([tmp_path / "e.db"], tmp_path / "e.h5", progress=False)
    database(tmp_path / "f.db", {"energy": "eV", "forces": ""})
    with pytest.raises(DataError, match="forces unit empty; say it with --energy-unit and --len"):
        import_files([tmp_path / "f.db"], tmp_path / "f.h5", progress=False)
    said = import_files(
        [tmp_path / "e.db"], tmp_path / "e.h5", ImportOptions(energy_unit="meV"), progress=False
    ).conversions[0]
    assert Dataset(tmp_path / "e.h5")[0].energy == pytest.approx(-0.004)
    assert "energies meV → eV (as you say), lengths in Å (as its metadata say)" in said


def arrays(m: int = 3) -> dict:
    positions = np.array([[[0, 0, 0], [0, 0, 1 + 0.1 * k]] for k in range(m)])
    return {"z": [8, 1], "R": positions, "E": -np.arange(m) - 1.0, "F": np.tile(FORCES, (m, 1, 1))}


KCAL = ImportOptions(energy_unit="kcal/mol", length_unit="Å")
EV = ImportOptions(energy_unit="eV", length_unit="Å")


def npz(folder, options=EV, **change):
    np.savez(folder / "x.npz", **{**arrays(), **change})
    report = import_files([folder / "x.npz"], folder / "out.h5", options, progress=False)
    return Dataset(folder / "out.h5"), report.conversions[0]


@pytest.mark.parametrize("each", [False, True])
def test_npz_with_cell_and_pbc(tmp_path, each):
    cell = np.array([[4, 0, 0], [1, 5, 0], [0, 0, 6.0]])
    cells = np.array([cell * (1 + 0.1 * k) for k in range(3)]) if each else cell
    pbc = np.array([[True, True, False]] * 3) if each else np.array([True, True, False])
    dataset, said = npz(tmp_path, cell=cells, pbc=pbc, virials=np.tile(VOIGT, (3, 1)))
    for k, found in enumerate(dataset):
        np.testing.assert_array_equal(found.cell, cells[k] if each else cell)
        assert found.pbc.tolist() == [True, True, False]
        np.testing.assert_allclose(found.stress, -VOIGT / abs(np.linalg.det(found.cell)))
    assert "cell and pbc as they are" in said
    said = npz(tmp_path, cell=cell)[1]
    assert "cell without pbc, taken as periodic" in said
    with pytest.raises(DataError, match="pbc says periodic, and there is no cell"):
        npz(tmp_path, pbc=[True] * 3)


def test_npz_arrays_that_are_not_taken_are_named_and_nan_is_missing(tmp_path):
    energies = np.array([-1.0, np.nan, -3.0])
    change = {"E": energies, "charge": -1, "mp2_energy": energies, "theory": "PBE", "steps": 3}
    dataset, said = npz(tmp_path, **change)
    assert [f.energy for f in dataset] == [-1.0, None, -3.0]
    assert all((f.forces == FORCES).all() for f in dataset)
    assert "energy: in 2 of 3 frames, 1 times NaN, from E" in said
    assert "left out: charge (charge or spin)" in said
    assert "take it with --key energy=mp2_energy" in said
    assert "not used: steps" in said
    assert "theory" not in said


def test_labels_of_several_kinds_come_back_from_a_calculator(tmp_path):
    frames = []
    for k in range(3):
        atoms = bulk("Ar", "fcc", 5.2 + 0.1 * k, cubic=True)
        atoms.rattle(0.1, seed=k)
        atoms.pbc = k > 0
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.01)
        atoms.get_potential_energies()
        if k:
            atoms.get_stresses()
        results = atoms.calc.results
        atoms.calc = SinglePointCalculator(atoms, **{n: v for n, v in results.items()})
        frames.append(atoms)
    write(tmp_path / "own.extxyz", frames)
    report = import_files([tmp_path / "own.extxyz"], tmp_path / "own.h5", progress=False)
    for atoms, found in zip(frames, Dataset(tmp_path / "own.h5"), strict=True):
        assert found.energy == pytest.approx(atoms.get_potential_energy())
        np.testing.assert_allclose(found.forces, atoms.get_forces(), atol=1e-7)
    assert "left out: energies (values of each atom) in 3 frames" in report.conversions[0]
    assert Dataset(tmp_path / "own.h5").provenance["imported"] == report.conversions


WORDS = st.sampled_from(
    [
        "energy",
        "Energy",
        "virial",
        "stress",
        "charge",
        "spin",
        "magmom",
        "energy_unit",
        "note",
        "pbc",
    ]
)
WHOLE = ["1", "-2.5", "nan", "inf", "T", "eV", '"1 2 3"', f'"{SIX}"', f'"{NINE}"', "_JSON [[1], 2]"]
WHOLE += ["_JSON {}", "''", "1e400", "é", "0x1"]
VALUES = st.sampled_from([*WHOLE, '"', "=", "[1 2"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(WORDS, VALUES), max_size=5))
def test_any_header_is_read_rightly_or_refused_by_name(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("header")
    header = " ".join(f"{key}={value}" for key, value in pairs)
    try:
        dataset, said = imported(folder, frame(header))
    except (DataError, UnitError) as error:
        said = str(error)
        assert "x.extxyz" in said
        assert not (folder / "out.h5").exists()
        return
    np.testing.assert_array_equal(dataset[0].numbers, [8, 1])
    energies = [float(v) for k, v in pairs if k.lower() == "energy" and v in ("1", "-2.5")]
    assert dataset[0].energy is None or dataset[0].energy in energies
    if all(value in WHOLE for _, value in pairs):
        silent = {"pbc", "energy_unit"}
        if any(value == "''" for _, value in pairs):
            silent.add("note")  # ASE takes it for a part of the empty text before it
        assert all(key in said or key in silent for key, _ in pairs)
