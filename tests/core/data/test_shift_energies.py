"""Shifted energies: only the numbers that are energies change."""

import numpy as np
import pytest
from ase.io import read

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.shift_energies import shift_energies
from ase_biasgrad.data.writer import DatasetWriter

TEXT = """\
3
Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3:energies:R:1 \
energy=-1.5 note="energy=7 free_energy=8" Energy=3 free_energy="-1.25" dft_energy=-2 pbc="F F F"
O   0.0 0.0 0.11926200000000001   1e-12 0 0.1  -1.0
H\t0.0  0.763239 -0.477047  0 0.30000000000000004 0 -0.25
H 0.0 -0.763239 -0.477047 0 0 0   -0.25\r
1
Properties=Z:I:1:pos:R:3 energy=4
8 0 0 0

"""


def by_atom(numbers: np.ndarray, frame: int) -> np.ndarray:
    return np.where(numbers == 8, 100.0, 0.125) + 1000.0 * frame


def test_a_text_is_copied_character_by_character_but_for_energies(tmp_path):
    (tmp_path / "a.extxyz").write_text(TEXT, newline="")
    assert shift_energies(tmp_path / "a.extxyz", tmp_path / "b.extxyz", by_atom) == 2
    expected = (
        TEXT.replace("energy=-1.5 ", "energy=98.75 ")
        .replace('free_energy="-1.25"', 'free_energy="99.0"')
        .replace("0.1  -1.0\n", "0.1  99.0\n")
        .replace("-0.25\n", "-0.125\n")
        .replace("-0.25\r", "-0.125\r")
        .replace("energy=4", "energy=1104.0")
    )
    with (tmp_path / "b.extxyz").open(newline="") as file:
        assert file.read() == expected
    one, two = read(tmp_path / "a.extxyz", 0), read(tmp_path / "b.extxyz", 0)
    assert two.get_potential_energy() == 98.75
    assert two.info["dft_energy"] == -2
    assert np.array_equal(one.get_forces(), two.get_forces())


def test_a_key_is_shifted_by_name(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nref=2.0 energy=1.0\nH 0 0 0\n")
    shift_energies(tmp_path / "a.xyz", tmp_path / "b.xyz", by_atom, ["ref"])
    assert (tmp_path / "b.xyz").read_text() == "1\nref=2.125 energy=1.0\nH 0 0 0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nE=2.0\nH 0 0 0\n", "frame 0: has none of the energies energy, free_energy; .*E"),
        ("1\nenergy=x\nH 0 0 0\n", "frame 0: energy: 'x' is no number"),
        ("1\nenergy=1\nQ 0 0 0\n", "frame 0: atom 0: 'Q' is no element"),
        ("2\nenergy=1\nH 0 0 0\n", "frame 0: ends before its 2 atoms"),
        ("1\nenergy=1\nH 0 0 0\nx\n", "frame 1: 'x' is no number of atoms"),
        ("1\nenergy=1 energy_unit=Hartree\nH 0 0 0\n", "energy_unit=Hartree; .* eV alone"),
        ("1\nenergy=1 Properties=pos:R:3\n0 0 0\n", "neither species nor Z"),
        ("1\nenergy=1 Properties=pos:R\n0 0 0\n", "not made of name:kind:columns"),
    ],
)
def test_bad_frames_are_named_and_nothing_is_left_behind(tmp_path, text, message):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(DataError, match=rf"a\.xyz: {message}|a\.xyz: .*{message}"):
        shift_energies(tmp_path / "a.xyz", tmp_path / "b.xyz", by_atom)
    assert [path.name for path in tmp_path.iterdir()] == ["a.xyz"]
    with pytest.raises(DataError, match="from extxyz to extxyz"):
        shift_energies(tmp_path / "a.xyz", tmp_path / "b.cif", by_atom)


def test_datasets_keep_all_other_labels(tmp_path):
    random = np.random.default_rng(0)
    numbers = np.array([8, 1, 1])
    with DatasetWriter(tmp_path / "a.h5") as writer:
        for k in range(4):
            writer.append(
                numbers,
                random.normal(0, 3, (3, 3)),
                energy=None if k == 2 else float(random.normal()),
                forces=random.normal(size=(3, 3)),
                labels={"dipole": random.normal(size=3)},
            )
        writer.append(
            numbers[:1], np.zeros((1, 3)), energy=1.0, cell=np.eye(3) * 4, pbc=[True] * 3,
            stress=np.arange(6.0),
        )  # fmt: skip
    assert shift_energies(tmp_path / "a.h5", tmp_path / "b.h5", by_atom) == 5
    one, two = Dataset(tmp_path / "a.h5"), Dataset(tmp_path / "b.h5")
    for k, (old, new) in enumerate(zip(one, two, strict=True)):
        for name in ("numbers", "positions", "cell", "pbc", "forces", "stress"):
            assert np.array_equal(getattr(old, name), getattr(new, name))
        assert {n: v.tolist() for n, v in old.labels.items()} == {
            n: v.tolist() for n, v in new.labels.items()
        }
        if old.energy is None:
            assert new.energy is None
        else:
            shift = by_atom(old.numbers, k).sum()
            assert new.energy == pytest.approx(old.energy + shift, rel=1e-15)
    assert two.provenance["shifted_from"]["sha256"] == one.hash()
