"""`biasgrad data …` as a user types it."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from typer.testing import CliRunner

from ase_biasgrad.cli.data import app
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.writer import DatasetWriter


def data(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_import_says_what_it_converted_and_left_out(tmp_path):
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    bare = atoms.copy()
    atoms.info["dft"] = -2.0
    atoms.calc = SinglePointCalculator(atoms, forces=np.full((2, 3), 0.01))
    moved = atoms.copy()
    moved.positions[1, 2] = 1.1
    moved.calc = SinglePointCalculator(moved, forces=np.full((2, 3), 0.02))
    write(tmp_path / "x.extxyz", [atoms, bare, moved])
    said = data(
        "import", tmp_path / "x.extxyz", "-o", tmp_path / "x.h5", "--key", "energy=dft",
        "--energy-unit", "Ha", "--length-unit", "Bohr", "--skip-unlabelled",
    )  # fmt: skip
    assert "energies Ha → eV, lengths Bohr → Å (as you say)" in said
    assert "left out 1 frames without labels" in said
    assert [frame.energy for frame in Dataset(tmp_path / "x.h5")] == pytest.approx([-54.422772] * 2)
    data("import", tmp_path / "x.extxyz", "-o", tmp_path / "y.h5", "--key", "energy", code=2)
    data("import", tmp_path / "x.extxyz", "-o", tmp_path / "y.h5", "--without", "mass", code=2)
    assert not (tmp_path / "y.h5").exists()


def test_md17_from_a_file_at_hand(tmp_path, shared_data):
    source = shared_data / "rmd17" / "rmd17_benzene_test_01.npz"
    said = data("md17", "benzene", "--revised", "--from", source, "-o", tmp_path / "x.h5")
    assert "energies kcal/mol → eV" in said
    assert "x.h5: 1000 frames" in said
    with pytest.raises(DataError, match="is C6H6, and toluene is C7H8"):
        data("md17", "toluene", "--revised", "--from", source, "-o", tmp_path / "y.h5")
    said = data("info", tmp_path / "x.h5")
    assert "1000 frames; labels: energy, forces" in said
    assert "C6H6: 1000 frames, 12 atoms each" in said
    assert Dataset(tmp_path / "x.h5").hash() in said


def test_info_reads_in_pieces_and_is_exact_far_from_zero(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_biasgrad.data.dataset._block_length", lambda _: 7)
    random = np.random.default_rng(0)
    energies = -4e5 + random.normal(0, 1e-3, 100)
    with DatasetWriter(tmp_path / "x.h5", {"note": "Å"}) as writer:
        for k, energy in enumerate(energies):
            numbers, solid = ([1, 8], {}) if k % 3 else ([14, 14], {"stress": np.ones(6)})
            cell = {"cell": np.eye(3) * 9, "pbc": [True] * 3} if solid else {}
            positions = [[0, 0, 0], [0, 0, 1.0]]
            writer.append(numbers, positions, energy=energy, labels={"gap": k}, **solid, **cell)
    said = data("info", tmp_path / "x.h5")
    assert "100 frames; labels: energy, stress, gap" in said
    assert f"mean {energies.mean():.10g}, standard deviation {energies.std():.6g}" in said
    assert f"from {energies.min():.10g} to {energies.max():.10g} eV" in said
    assert "stress: in 34 frames, mean 1, standard deviation 0" in said
    assert "gap: mean 49.5" in said
    assert 'provenance: {"note": "Å"}' in said


def written(folder, name, *distances):
    frames = []
    for distance in distances:
        atoms = Atoms("OH", [[0, 0, 0], [0, 0, distance]])
        atoms.calc = SinglePointCalculator(atoms, energy=-distance, forces=np.full((2, 3), 0.1))
        frames.append(atoms)
    write(folder / name, frames)
    return folder / name


def test_an_existing_file_is_replaced_when_asked_and_the_source_never(tmp_path):
    source, output = written(tmp_path, "a.extxyz", 1.0, 1.1), tmp_path / "a.h5"
    data("import", source, "-o", output)
    other = written(tmp_path, "b.extxyz", 0.9)
    with pytest.raises(FileExistsError, match=r"a\.h5: exists; say --overwrite"):
        data("import", other, "-o", output)
    assert len(Dataset(output)) == 2
    data("import", other, "-o", output, "--overwrite")
    assert len(Dataset(output)) == 1
    (tmp_path / "link.extxyz").symlink_to(source)
    content = source.read_bytes()
    for target in (source, tmp_path / "link.extxyz"):
        with pytest.raises(ValueError, match="is what is read"):
            data("import", other, source, "-o", target, "--overwrite")
    assert source.read_bytes() == content


@pytest.mark.parametrize(
    "command",
    [
        ("md17", "ethanol"),
        ("qm7",),
        ("qm9",),
        ("nbody",),
        ("sample", "H2O", "--calculator", "emt"),
    ],
)
def test_no_command_replaces_a_file_unasked(tmp_path, command):
    (tmp_path / "x.h5").write_text("precious")
    with pytest.raises(FileExistsError, match="--overwrite"):
        data(*command, "-o", tmp_path / "x.h5")
    assert (tmp_path / "x.h5").read_text() == "precious"


def test_sampling_does_not_replace_its_structure(tmp_path):
    structure = written(tmp_path, "x@2.extxyz", 1.0)
    with pytest.raises(ValueError, match="is what is read"):
        data("sample", structure, "-o", structure, "--overwrite")
    said = data(
        "sample", structure, "-o", tmp_path / "s.h5", "--calculator", "emt", "--frames", "2",
        "--equilibration", "1", "--temperature", "50",
    )  # fmt: skip
    assert "2 frames by emt" in said
    assert Dataset(tmp_path / "s.h5")[0].numbers.tolist() == [8, 1]


def test_implausible_numbers_are_said_and_go_on_with_accept(tmp_path):
    source = written(tmp_path, "x.extxyz", 1.0, 1.0)
    with pytest.raises(DataError, match=r"the same structure as .*\n.*go on with --accept"):
        data("import", source, "-o", tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()
    said = data("import", source, "-o", tmp_path / "x.h5", "--accept")
    assert "accepted: " in said
    assert "the same structure as" in said
    assert "energy: in 2 of 2 frames, from energy" in said


def test_a_format_can_be_named(tmp_path):
    source = written(tmp_path, "x.traj", 1.0, 1.1).rename(tmp_path / "frames.extxyz")
    with pytest.raises(DataError, match=r"frames\.extxyz"):
        data("import", source, "-o", tmp_path / "x.h5", "--format", "extxyz")
    assert "2 frames" in data("import", source, "-o", tmp_path / "x.h5", "--format", "traj")


def test_info_counts_the_frames_of_each_label(tmp_path):
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for k in range(3):
            labels = {"energy": -1.0} if k else {"forces": np.ones((2, 3))}
            writer.append([8, 1], [[0, 0, 0], [0, 0, 1 + 0.1 * k]], **labels)
    said = data("info", tmp_path / "x.h5")
    assert "energy: in 2 frames, mean -1" in said
    assert "forces: in 1 frames, mean 1" in said
