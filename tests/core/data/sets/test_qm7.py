"""QM7 as published, files laid out like it, and folders of xyz files."""

import hashlib

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write
from ase.units import Bohr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.sets import qm7
from ase_biasgrad.data.sets.qm7 import folds_of, import_qm7, stratified_folds
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.units import ENERGY

KCAL = ENERGY["kcal/mol"]
NAMES = ("CH4", "C2H6", "CH3OH", "H2O", "NH3", "HCN", "CH3SH", "C2H4", "C2H2", "H2CO")
ENERGIES = -np.array([417.0, 711.1, 504.7, 232.6, 298.5, 312.0, 472.8, 563.1, 403.7, 374.9])
FOLDS = np.array([[3, 7], [0, 9], [1, 4], [2, 8], [5, 6]])


def published_arrays():
    """The layout of qm7.mat: float32, padded with zeros, T a row, a fold in each row of P."""
    charges = np.zeros((10, 23), np.float32)
    positions = np.zeros((10, 23, 3), np.float32)
    for k, name in enumerate(NAMES):
        atoms = molecule(name)
        charges[k, : len(atoms)] = atoms.numbers
        positions[k, : len(atoms)] = atoms.positions / Bohr
    return {
        "X": np.zeros((10, 23, 23), np.float32),
        "T": ENERGIES[None].astype(np.float32),
        "P": FOLDS,
        "Z": charges,
        "R": positions,
    }


@pytest.fixture
def mat(tmp_path, monkeypatch):
    """A file that counts as the published one."""
    path = tmp_path / "qm7.mat"
    savemat(path, published_arrays())
    monkeypatch.setattr(qm7, "SIZE", path.stat().st_size)
    monkeypatch.setattr(qm7, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def check(dataset: Dataset, folds) -> None:
    for k, frame in enumerate(dataset):
        atoms = molecule(NAMES[k])
        np.testing.assert_array_equal(frame.numbers, atoms.numbers)
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-6)
        assert frame.energy == pytest.approx(ENERGIES[k] * KCAL, abs=2e-6)  # float32
    np.testing.assert_array_equal(folds_of(dataset), folds)


def test_the_published_file_needs_no_units(tmp_path, mat):
    report = import_qm7(tmp_path / "x.h5", mat)
    assert report.frames == 10
    assert "energies kcal/mol → eV, lengths Bohr → Å (as published)" in report.conversions[0]
    assert report.conversions[1] == "5 folds: of the source"
    expected = [np.flatnonzero((k == FOLDS).any(axis=1))[0] for k in range(10)]
    check(Dataset(tmp_path / "x.h5"), expected)
    with pytest.raises(DataError, match=r"unit is kcal/mol, and you say eV"):
        import_qm7(tmp_path / "y.h5", mat, energy_unit="eV")


def test_another_file_is_no_qm7_until_its_units_are_said(tmp_path):
    path = tmp_path / "qm7.mat"
    savemat(path, published_arrays())
    with pytest.raises(DataError, match=r"not the published qm7.mat.*--energy-unit"):
        import_qm7(tmp_path / "x.h5", path)
    assert not (tmp_path / "x.h5").exists()
    report = import_qm7(tmp_path / "x.h5", path, "kcal/mol", "Bohr")
    assert "as you say" in report.conversions[0]
    whole = path.read_bytes()
    for damaged in (whole[:1000], whole[: len(whole) // 2], whole[:-100], b"<html>sorry</html>"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"qm7\.mat: .*(damaged|broke off)"):
            import_qm7(tmp_path / "y.h5", path, "kcal/mol", "Bohr")


def test_arrays_without_folds_get_stratified_ones(tmp_path):
    arrays = published_arrays()
    np.savez(tmp_path / "x.npz", Z=arrays["Z"], R=arrays["R"] * Bohr, T=ENERGIES)
    report = import_qm7(tmp_path / "x.h5", tmp_path / "x.npz", "kcal/mol", "Angstrom")
    assert report.conversions[1] == "5 folds: sorted by energy, index modulo 5"
    check(Dataset(tmp_path / "x.h5"), stratified_folds(ENERGIES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T": None}, "has no array T"),
        ({"T": ENERGIES[None, :9]}, r"R \(10, 23, 3\) and T \(1, 9\) do not fit"),
        ({"P": FOLDS * 0}, r"P \(5, 2\) does not hold each of the 10 molecules once"),
        ({"Z": np.full((10, 23), 6.5)}, "molecule 0.*not integers"),
        ({"R": np.full((10, 23, 3), np.nan)}, "molecule 0.*NaN"),
        ({"R": np.zeros((10, 23, 3))}, "molecule 0.*on top of each other"),
        ({"Z": np.array([["C"]])}, "Z"),
    ],
)
def test_damaged_arrays_are_named(tmp_path, change, message):
    arrays = {k: v for k, v in {**published_arrays(), **change}.items() if v is not None}
    savemat(tmp_path / "x.mat", arrays)
    with pytest.raises(DataError, match=message):
        import_qm7(tmp_path / "x.h5", tmp_path / "x.mat", "kcal/mol", "Bohr")
    assert not (tmp_path / "x.h5").exists()


def folder_of(tmp_path, comment):
    folder = tmp_path / "xyz"
    folder.mkdir()
    for k, name in enumerate(NAMES):
        write(folder / f"{k + 1}.xyz", molecule(name), comment=comment(k), format="xyz")
    return folder


@pytest.mark.parametrize("comment", [lambda k: f"energy={ENERGIES[k]}", lambda k: str(ENERGIES[k])])
def test_a_folder_of_xyz_files(tmp_path, comment):
    folder = folder_of(tmp_path, comment)
    with pytest.raises(DataError, match="--energy-unit"):
        import_qm7(tmp_path / "x.h5", folder)
    import_qm7(tmp_path / "x.h5", folder, "kcal/mol")
    check(Dataset(tmp_path / "x.h5"), stratified_folds(ENERGIES))  # 10.xyz is the last


def test_a_folder_with_a_table_of_energies(tmp_path):
    folder = folder_of(tmp_path, lambda k: "a molecule")
    with pytest.raises(DataError, match=r"1\.xyz: frame 0: has no energy in its comment line"):
        import_qm7(tmp_path / "x.h5", folder, "kcal/mol")
    lines = [f"{k + 1}.xyz,{energy}" for k, energy in enumerate(ENERGIES)]
    table = folder / "energies.csv"
    table.write_text("\n".join(["file,energy", *lines]))
    import_qm7(tmp_path / "x.h5", folder, "kcal/mol")
    check(Dataset(tmp_path / "x.h5"), stratified_folds(ENERGIES))
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"10\.xyz: frame 0: has no energy in its energies table"):
        import_qm7(tmp_path / "y.h5", folder, "kcal/mol")
    table.write_text("\n".join([*lines, "11.xyz minus five"]))
    with pytest.raises(DataError, match=r"line 11: '11.xyz minus five'"):
        import_qm7(tmp_path / "y.h5", folder, "kcal/mol")
    table.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(DataError, match=r"line 11: 1.xyz has an energy already"):
        import_qm7(tmp_path / "y.h5", folder, "kcal/mol")


def test_no_such_source_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        import_qm7(tmp_path / "x.h5", tmp_path / "missing.mat", "eV", "Bohr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \*\.xyz"):
        import_qm7(tmp_path / "x.h5", tmp_path / "empty", "eV")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.xyz").write_text("3\nenergy=1\nC 0 0 0\n")
    with pytest.raises(DataError, match=r"a\.xyz: cannot be read as xyz"):
        import_qm7(tmp_path / "x.h5", broken, "eV")


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("pooch.retrieve", broken)
    with pytest.raises(DataError, match=r"no route.*--from"):
        import_qm7(tmp_path / "x.h5")


def test_any_dataset_with_energies_has_folds(tmp_path):
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for energy in (3.0, 1.0, 2.0, 5.0, 4.0, 0.0):
            writer.append(np.array([8]), np.zeros((1, 3)), energy=energy)
    np.testing.assert_array_equal(folds_of(Dataset(tmp_path / "x.h5")), [3, 1, 2, 0, 4, 0])
    with DatasetWriter(tmp_path / "y.h5") as writer:
        writer.append(np.array([8]), np.zeros((1, 3)), energy=1.0, labels={"fold": 3})
    with pytest.raises(DataError, match="without gaps"):
        folds_of(Dataset(tmp_path / "y.h5"))
    with DatasetWriter(tmp_path / "z.h5") as writer:
        writer.append(np.array([8]), np.zeros((1, 3)))
    with pytest.raises(DataError, match="has no energies"):
        folds_of(Dataset(tmp_path / "z.h5"))


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=60), st.integers(2, 7))
@settings(deadline=None)
def test_folds_are_stratified(energies, folds):
    energies = np.array(energies)
    fold = stratified_folds(energies, folds)
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    # of any `folds` neighbours in energy each fold has one
    in_order = fold[np.argsort(energies, kind="stable")]
    np.testing.assert_array_equal(in_order, np.arange(len(energies)) % folds)


def test_the_shared_extract(tmp_path, shared_data):
    with np.load(shared_data / "qm7" / "qm7_7101.npz") as extract:
        np.savez(tmp_path / "x.npz", **{name: extract[name][::20] for name in ("Z", "R", "T")})
    report = import_qm7(tmp_path / "x.h5", tmp_path / "x.npz", "kcal/mol", "Angstrom")
    dataset = Dataset(tmp_path / "x.h5")
    assert report.frames == len(dataset) == 356
    methane = dataset[0]
    assert methane.energy / KCAL == pytest.approx(-417.031)
    assert methane.numbers.tolist() == [6, 1, 1, 1, 1]
    assert np.bincount(folds_of(dataset)).tolist() == [72, 71, 71, 71, 71]
