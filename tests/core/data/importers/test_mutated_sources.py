"""Sources with every kind of fault: an error that names the file, or the right values."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.io import write
from mutations import mutants, outcomes

from ase_biasgrad.data.dataset import DataError, Dataset, Frame
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.units import UnitError

OPTIONS = ImportOptions(energy_unit="eV", length_unit="Angstrom", accept=True)


def crystals() -> list:
    """Rattled cells of argon and neon with energy, forces and stress."""
    frames = []
    for k in range(4):
        atoms = bulk("Ar", cubic=True)
        atoms.numbers[k % 2] = 10
        atoms.rattle(0.1, seed=k)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.01)
        atoms.get_stress()
        frames.append(atoms)
    return frames


def write_npz(path: Path, save=np.savez) -> None:
    frames = [atoms for atoms in crystals() if atoms.numbers[0] == 10]
    with path.open("wb") as file:
        save(
            file,
            z=frames[0].numbers,
            R=np.array([atoms.positions for atoms in frames]),
            E=np.array([atoms.get_potential_energy() for atoms in frames]),
            F=np.array([atoms.get_forces() for atoms in frames]),
            cell=frames[0].cell.array,
            pbc=np.ones(3, bool),
        )


def write_db(path: Path) -> None:
    with ase.db.connect(path) as database:
        for atoms in crystals():
            database.write(atoms, data={"note": [1.0, 2.0]})


SOURCES = {
    "x.npz": write_npz,
    "packed.npz": lambda path: write_npz(path, np.savez_compressed),
    "x.extxyz": lambda path: write(path, crystals()),
    "x.db": write_db,
    "x.json": write_db,
    "x.traj": lambda path: write(path, crystals()),
}


def imported(source: Path) -> list[Frame]:
    """Frames of the dataset that an import makes, which is removed again."""
    output = source.with_suffix(".h5")
    try:
        import_files([source], output, OPTIONS, progress=False)
        return list(Dataset(output, in_memory=True))
    finally:
        output.unlink(missing_ok=True)


def compared(found: list[Frame], right: list[Frame]) -> str:
    """Difference of frames from those that were written; labels may be missing."""
    if len(found) != len(right):
        return "other frames"
    missing = False
    for one, two in zip(found, right, strict=True):
        for name in ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress"):
            value, known = getattr(one, name), getattr(two, name)
            missing |= value is None and known is not None
            if value is not None and not np.array_equal(value, known):
                return f"other {name}"
    return "labels missing" if missing else "right"


@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOURCES)
def test_mutated_sources_are_refused_or_give_a_dataset(tmp_path, name, count):
    SOURCES[name](tmp_path / name)
    right = imported(tmp_path / name)
    assert compared(right, right) == "right"
    cases = mutants((tmp_path / name).read_bytes(), count, seed=len(name))
    said = outcomes(cases, tmp_path / name, lambda path: compared(imported(path), right))
    print(said)
    assert said["refused"] > 0.1 * count
    if name.endswith(".npz"):  # has checksums; the others can only be wrong
        assert not [word for word in said if word.startswith("other")]


# flips of what is no number: names of keys, quotes, brackets, spaces and ends of lines
@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["x.extxyz", "x.json"])
def test_flips_outside_of_numbers_change_no_number(tmp_path, name, count):
    SOURCES[name](tmp_path / name)
    right, content = imported(tmp_path / name), (tmp_path / name).read_bytes()
    numbers = re.finditer(rb"[-+]?\d[-+.\deE]*", content)
    places = sorted(set(range(len(content))) - {k for n in numbers for k in range(*n.span())})
    cases = mutants(content, count, 0, places, ["flip"])
    said = outcomes(cases, tmp_path / name, lambda path: compared(imported(path), right))
    print(said)
    assert said["refused"] > 0.1 * count
    # in ASE's JSON a row without its key `pbc` is a molecule
    allowed = {"refused", "right", "labels missing", "other numbers"}
    assert set(said) <= allowed | ({"other pbc"} if name == "x.json" else set())


@pytest.mark.parametrize(
    ("old", "new"), [('"ids"', '"idr"'), ('"3": {', '"c": {'), ('"3": {', '"7": {')]
)
def test_a_json_database_whose_list_misses_a_row_is_refused(tmp_path, old, new):
    """Without the list ASE reads the first row alone."""
    path = tmp_path / "x.json"
    write_db(path)
    content = path.read_text()
    assert content.count(old) == 1
    path.write_text(content.replace(old, new))
    with pytest.raises(DataError, match=r"x\.json: the file has \d rows, but its list"):
        imported(path)


def npz_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members.items():
            archive.writestr(name.strip(), content)
    return file.getvalue()


def npy_of(values) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def npy_with(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + bytes(64)


R = np.arange(18.0).reshape(2, 3, 3) + np.arange(3)[:, None]
GOOD = {"z.npy": npy_of([8, 1, 1]), "R.npy": npy_of(R), "F.npy": npy_of(R), "E.npy": npy_of([1, 2])}
HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }"
FRAME = "3\nProperties=species:S:1:pos:R:3 energy=1\nO 0 0 0\nH 0 0 1\nH 0 1 0\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npz", npz_of({**GOOD, " R.npy": npy_of(R + 1)}), "R: stands in it twice"),
        ("x.npz", npz_of({**GOOD, "E.npy": npy_of([Path(), Path()])}), "[Oo]bject arrays"),
        ("x.npz", npz_of({**GOOD, "E.npy": npy_with("[" * 9999)}), "no npz file, or a trunc"),
        ("x.npz", npz_of({**GOOD, "E.npy": npy_with(HUGE % "10**15,")}), "no npz file, or a trunc"),
        ("x.npz", npz_of({**GOOD, "E.npy": npy_with(HUGE % f"{10**15},")}), "no npz file, or a"),
        ("x.npz", npz_of({**GOOD, "E.npy": npy_with(HUGE % "-1,")}), "no npz file, or a trunc"),
        ("x.npz", npz_of({**GOOD, "E.npy": npy_with("9" * 9999)}), "no npz file, or a truncated"),
        ("x.npz", npy_of(np.zeros(3)), "no npz file"),
        ("x.npz", b"", "no npz file|cannot be read"),
        (
            "x.xyz",
            FRAME.replace("3", f"{10**9}", 1).encode(),
            "says 1000000000 atoms, and 3 follow",
        ),
        ("x.xyz", FRAME.replace("3", "-3", 1).encode(), r"x\.xyz: "),
        ("x.xyz", (FRAME + "2" + FRAME[1:]).encode(), "line 10: .* is no number of atoms"),
        ("x.xyz", (FRAME + "\n" + FRAME).encode(), "line 7: stands below an empty line"),
        ("x.xyz", FRAME.replace("0 0 1", "0 0 0 1").encode(), "line 4: has 5 columns, .* name 4"),
        ("x.xyz", FRAME.replace("0 0 1", "0 1").encode(), "line 4: has 3 columns"),
        ("x.xyz", FRAME.replace("energy", "x=_JSON" + "[" * 10**5 + " energy").encode(), "x.xyz: "),
        ("x.xyz", FRAME.replace("energy", "energy=2 energy").encode(), "energy stands twice"),
        (
            "x.xyz",
            FRAME.replace("R:3", "R:" + "9" * 5000).encode(),
            "ASE cannot read it: ValueError",
        ),
        ("x.xyz", FRAME.replace("energy=1", "energy=1e999").encode(), "NaN or infinity"),
        ("x.xyz", FRAME.replace("energy=1", "energy=" + "9" * 5000).encode(), "NaN or infinity"),
        ("x.json", b"[" * 10**5, r"x\.json: "),
        (
            "x.json",
            b'{"1": {"numbers": [8], "positions": [[0,0,0]], "1": ' + b"9" * 5000 + b"}}",
            "x",
        ),
        ("x.db", b"SQLite format 3\0" + bytes(200), r"x\.db: "),
        ("x.traj", b"- of UlmASE-Trajectory  " + b"\xff" * 200, r"x\.traj: "),
    ],
)
def test_sources_that_lie_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    def judge(path: Path) -> str:
        with pytest.raises((DataError, UnitError), match=message) as error:
            imported(path)
        raise error.value

    assert outcomes([(message, content)], tmp_path / name, judge) == {"refused": 1}


def test_headers_of_many_keys_are_read_in_time(tmp_path):
    keys = " ".join(f"energy_{k}={k}" for k in range(30_000))
    content = FRAME.replace("energy", keys + " energy").encode()
    judge = lambda path: f"{len(imported(path))} frames"  # noqa: E731
    assert outcomes([("keys", content)], tmp_path / "x.xyz", judge) == {"1 frames": 1}


def test_arrays_that_the_directory_hides_are_missed(tmp_path):
    """A comment that an entry pretends to have makes `zipfile` pass over the entry after it."""
    write_npz(tmp_path / "x.npz")
    content = bytearray((tmp_path / "x.npz").read_bytes())
    last = content.rindex(b"PK\1\2")
    before = content.rindex(b"PK\1\2", 0, last)
    content[before + 33] = 1  # 256 bytes of comment, which reach beyond the directory
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match="arrays are found"):
        imported(tmp_path / "x.npz")
