"""Importer of DeePMD-kit's folders, which dpdata reads."""

import sys

import numpy as np
import pytest
from ase.build import bulk, molecule

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files

RANDOM = np.random.default_rng(0)
FRAMES = 5


@pytest.fixture
def dpdata():
    return pytest.importorskip("dpdata", reason="dpdata is not installed (the extra dpdata)")


def write_system(folder, atoms, sets=(3, 2), elements=None, **more) -> dict[str, np.ndarray]:
    """A folder as DeePMD-kit describes it: types, their names, and a set of arrays in each set."""
    n, periodic = len(atoms), bool(atoms.pbc.any())
    symbols = sorted(set(atoms.symbols))
    virial = RANDOM.normal(0, 0.5, (FRAMES, 3, 3))
    columns = {
        "coord": atoms.positions + RANDOM.normal(0, 0.02, (FRAMES, n, 3)),
        "box": np.tile(atoms.cell.array, (FRAMES, 1, 1)),
        "energy": RANDOM.normal(-4.0 * n, 0.1, FRAMES),
        "force": RANDOM.normal(0, 0.5, (FRAMES, n, 3)),
        **({"virial": virial + virial.swapaxes(1, 2)} if periodic else {}),
        **more,
    }
    folder.mkdir(parents=True)
    types = [symbols.index(symbol) for symbol in atoms.symbols]
    (folder / "type.raw").write_text("\n".join(map(str, types)) + "\n")
    (folder / "type_map.raw").write_text("\n".join(elements or symbols) + "\n")
    if not periodic:
        (folder / "nopbc").touch()
    first = 0
    for k, size in enumerate(sets):
        (folder / f"set.{k:03d}").mkdir()
        for key, values in columns.items():
            part = values[first : first + size].reshape(size, -1)
            np.save(folder / f"set.{k:03d}" / key, part.ravel() if key == "energy" else part)
        first += size
    return columns


def test_frames_and_labels_of_a_system(tmp_path, dpdata):
    copper = bulk("Cu", cubic=True)
    columns = write_system(tmp_path / "cu", copper, atom_ener=RANDOM.normal(0, 1, (FRAMES, 4)))
    (tmp_path / "cu" / "formal_charges.raw").write_text("0\n0\n0\n0\n")
    report = import_files([tmp_path / "cu"], tmp_path / "x.h5")
    (said,) = report.conversions
    assert (
        f"energies in eV, lengths in Å (DeePMD's convention); read by dpdata {dpdata.__version__}"
        in said
    )
    assert "energy: in 5 of 5 frames, from energy" in said
    assert "forces: in 5 of 5 frames, from force" in said
    assert "stress: in 5 of 5 frames, from virial by −virial/volume" in said
    assert "not used: atom_ener" in said
    assert "left out: formal_charges (charge or spin) in 5 frames" in said
    data = Dataset(tmp_path / "x.h5")
    assert [frame.energy for frame in data] == columns["energy"].tolist()
    np.testing.assert_array_equal(data[4].forces, columns["force"][4])
    np.testing.assert_array_equal(data[4].positions, columns["coord"][4])
    stress = -columns["virial"][4] / copper.get_volume()
    np.testing.assert_allclose(data[4].stress, stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])


def test_folders_of_systems_molecules_and_mixed_types(tmp_path, dpdata):
    write_system(tmp_path / "all" / "water", molecule("H2O"))
    write_system(tmp_path / "all" / "deep" / "methane", molecule("CH4"))
    report = import_files([tmp_path / "all"], tmp_path / "x.h5")
    data = Dataset(tmp_path / "x.h5")
    assert report.frames == len(data) == 2 * FRAMES
    assert not any(frame.pbc.any() for frame in data)
    systems = [
        dpdata.LabeledSystem(str(tmp_path / "all" / name), fmt="deepmd/npy")
        for name in ("water", "deep/methane")
    ]
    dpdata.MultiSystems(*systems).to("deepmd/npy/mixed", str(tmp_path / "mixed"))
    import_files([tmp_path / "mixed"], tmp_path / "y.h5")
    mixed = Dataset(tmp_path / "y.h5")

    def content(dataset):
        return sorted((tuple(np.sort(frame.numbers)), round(frame.energy, 4)) for frame in dataset)

    assert content(mixed) == content(data)


def test_raw_files_and_other_units(tmp_path, dpdata):
    columns = write_system(tmp_path / "water", molecule("H2O"))
    system = dpdata.LabeledSystem(str(tmp_path / "water"), fmt="deepmd/npy")
    system.to("deepmd/raw", str(tmp_path / "raw"))
    (tmp_path / "raw" / "nopbc").touch()
    kcal = ImportOptions(energy_unit="kcal/mol", without=("stress",))
    import_files([tmp_path / "raw"], tmp_path / "x.h5", kcal)
    frame = Dataset(tmp_path / "x.h5")[2]
    assert frame.energy == pytest.approx(columns["energy"][2] * 0.0433641, rel=1e-5)


def test_labels_may_be_missing_in_a_system_and_not_in_some_of_its_sets(tmp_path, dpdata):
    write_system(tmp_path / "water", molecule("H2O"))
    (tmp_path / "water" / "set.000" / "force.npy").unlink()
    with pytest.raises(DataError, match=r"water: force\.npy is in 1 of 2 sets"):
        import_files([tmp_path / "water"], tmp_path / "x.h5")
    (tmp_path / "water" / "set.001" / "force.npy").unlink()
    import_files([tmp_path / "water"], tmp_path / "x.h5")
    assert Dataset(tmp_path / "x.h5").count("forces") == 0


def test_damaged_systems_are_named(tmp_path, dpdata):
    write_system(tmp_path / "odd", molecule("H2O"), elements=["Type_0", "Type_1"])
    with pytest.raises(DataError, match=r"odd: Type_0, Type_1 are no elements; .*type_map\.raw"):
        import_files([tmp_path / "odd"], tmp_path / "x.h5")
    write_system(tmp_path / "cut", molecule("H2O"))
    file = tmp_path / "cut" / "set.001" / "coord.npy"
    file.write_bytes(file.read_bytes()[:150])
    with pytest.raises(DataError, match="cut: dpdata cannot read it"):
        import_files([tmp_path / "cut"], tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()


def test_without_dpdata_the_message_says_what_to_install(tmp_path, monkeypatch):
    write_system(tmp_path / "water", molecule("H2O"))
    monkeypatch.setitem(sys.modules, "dpdata", None)
    with pytest.raises(ImportError, match=r"water: .*pip install 'ase-biasgrad\[dpdata\]'"):
        import_files([tmp_path / "water"], tmp_path / "x.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: a folder"):
        import_files([tmp_path / "empty"], tmp_path / "x.h5")
