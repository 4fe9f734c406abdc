"""The reader of QM9: its own files, extracts, units, and what is left out."""

import io
import tarfile

import numpy as np
import pytest
from ase.data import chemical_symbols
from hypothesis import given
from hypothesis import strategies as st

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.sets.qm9 import ELECTRONVOLTS, UNITS, import_qm9, parse_molecule

METHANE = (
    "5\n"
    "gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t"
    "0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t\n"
    "C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689\n"
    "H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921\n"
    "H\t 1.0117308433\t 1.4637511618\t 2.7657*^-4\t 0.133922\n"
    "H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923\n"
    "H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923\n"
    "1341.307\t1341.3284\t1341.365\t1562.6731\nC\tC\t\nInChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
)


def test_methane():
    molecule = parse_molecule(METHANE, "methane")
    assert molecule.id == 1
    assert molecule.numbers.tolist() == [6, 1, 1, 1, 1]
    assert molecule.positions[2, 2] == 2.7657e-4
    assert molecule.energy == pytest.approx(-40.47893 * 27.211386, rel=1e-7)
    assert molecule.properties == pytest.approx(
        {
            "mu": 0.0,
            "alpha": 13.21,
            "homo": -0.3877 * 27211.386,
            "lumo": 0.1171 * 27211.386,
            "gap": 0.5048 * 27211.386,
            "Cv": 6.469,
        },
        rel=1e-7,
    )
    assert set(molecule.properties) == set(UNITS)


numbers = st.lists(st.sampled_from([1, 6, 7, 8, 9]), min_size=1, max_size=5)
values = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 8))


@given(numbers, st.lists(values, min_size=15, max_size=15), st.data())
def test_files_come_back(atoms, properties, data):
    positions = [[data.draw(values) for _ in range(3)] for _ in atoms]

    def written(x: float) -> str:
        return f"{x!r}".replace("e", "*^")

    lines = [str(len(atoms)), "\t".join(["gdb 7", *map(written, properties)])]
    for z, r in zip(atoms, positions, strict=True):
        lines.append("\t".join([chemical_symbols[z], *map(written, r), "0.1"]))
    molecule = parse_molecule("\n".join([*lines, "100.0", "C\tC"]), "x")
    assert molecule.numbers.tolist() == atoms
    assert molecule.positions.tolist() == positions
    assert molecule.properties["alpha"] == properties[4]
    assert molecule.energy == properties[10] * ELECTRONVOLTS


@given(st.text())
def test_no_text_makes_it_fail_otherwise(text):
    with pytest.raises(DataError, match="not as QM9's files are"):
        parse_molecule(text, "x")
    with pytest.raises(DataError, match="not as QM9's files are"):
        parse_molecule(METHANE.replace("13.21", text.split()[0] + "x" if text.split() else ""), "x")


def archive(folder, molecules: dict[int, str]):
    path = folder / "qm9.tar.bz2"
    with tarfile.open(path, "w:bz2") as file:
        for number, text in molecules.items():
            member = tarfile.TarInfo(f"dsgdb9nsd_{number:06d}.xyz")
            member.size = len(text)
            file.addfile(member, io.BytesIO(text.encode()))
    return path


def test_the_archive_without_what_did_not_converge(tmp_path):
    texts = {k: METHANE.replace("gdb 1\t", f"gdb {k}\t") for k in (1, 2, 3, 4)}
    path = archive(tmp_path, texts)
    listed = tmp_path / "uncharacterized.txt"
    listed.write_text("Some words\n=====\n  Index  SMILES\n     3  C  CC\n    99  C\n")
    report = import_qm9(tmp_path / "q.h5", path, listed, progress=False)
    assert report.frames == 3
    assert "left out 1 molecules" in report.conversions[1]
    with Dataset(tmp_path / "q.h5") as dataset:
        assert [int(dataset[k].labels["id"]) for k in range(3)] == [1, 2, 4]
        assert dataset[0].labels["gap"] == pytest.approx(0.5048 * 27211.386, rel=1e-7)
        assert dataset[0].energy == pytest.approx(-1101.4878, abs=1e-3)
        assert dataset.provenance["energy"] == "U0"
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.xyz").write_text(METHANE)
    assert import_qm9(tmp_path / "f.h5", folder, listed, progress=False).frames == 1


def test_sources_that_cannot_be_read(tmp_path):
    (tmp_path / "x.tar.bz2").write_text("nothing")
    listed = tmp_path / "list.txt"
    listed.write_text("no numbers")
    with pytest.raises(DataError, match="no list of molecules"):
        import_qm9(tmp_path / "q.h5", tmp_path / "x.tar.bz2", listed, progress=False)
    listed.write_text("21 C\n")
    with pytest.raises(DataError, match="no readable archive"):
        import_qm9(tmp_path / "q.h5", tmp_path / "x.tar.bz2", listed, progress=False)
    with pytest.raises(DataError, match="no such file"):
        import_qm9(tmp_path / "q.h5", tmp_path / "none", listed, progress=False)
    np.savez(tmp_path / "x.npz", id=[1])
    with pytest.raises(DataError, match="which an extract of QM9 needs"):
        import_qm9(tmp_path / "q.h5", tmp_path / "x.npz", progress=False)
    assert not (tmp_path / "q.h5").exists()


def test_extracts(tmp_path):
    arrays = {
        "id": [4, 9, 11],
        "n_atoms": [2, 3, 2],
        "Z": [1, 1, 8, 1, 1, 7, 7],
        "R_micro": 1_000_000 * np.arange(21).reshape(7, 3),
        "E_elec_hartree": [-1.0, np.nan, -109.0],
        "mu_debye": [0.0, np.nan, 0.1],
    }
    np.savez(tmp_path / "x.npz", **{name: np.array(value) for name, value in arrays.items()})
    report = import_qm9(tmp_path / "q.h5", tmp_path / "x.npz", progress=False)
    assert report.frames == 2
    assert "1 molecules without labels" in report.conversions[1]
    with Dataset(tmp_path / "q.h5") as dataset:
        assert dataset[1].numbers.tolist() == [7, 7]
        assert dataset[1].positions.tolist() == [[15, 16, 17], [18, 19, 20]]
        assert dataset[1].labels["mu"] == pytest.approx(0.1)
        assert dataset[1].energy == pytest.approx(-109 * 27.211386, rel=1e-7)
    arrays["Z"] = [1]
    np.savez(tmp_path / "y.npz", **{name: np.array(value) for name, value in arrays.items()})
    with pytest.raises(DataError, match="not as many atoms"):
        import_qm9(tmp_path / "r.h5", tmp_path / "y.npz", progress=False)


def test_the_reference_extract(shared_data):
    from ase_biasgrad.data.sets.qm9 import _extract

    found = _extract(shared_data / "qm9" / "qm9_128744.npz")
    methane, _, water = (next(found) for _ in range(3))
    assert methane.numbers.tolist() == [6, 1, 1, 1, 1]
    bond = np.linalg.norm(methane.positions[1] - methane.positions[0])
    assert bond == pytest.approx(1.092, abs=1e-3)
    assert water.properties["mu"] == pytest.approx(1.8511)
