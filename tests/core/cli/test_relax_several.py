"""`biasgrad relax` of several structures: one table, one output, every failure named."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from conftest import copper, ethanol, small_potential
from helpers import biasgrad

from ase_biasgrad.calculators import BiasGradCalculator
from ase_biasgrad.checkpoint import save_checkpoint

COMMON = ("-c", "p.safetensors", "--fmax", 0.05, "--steps", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Structures of several sizes and formats, one with an element that is not known."""
    folder = tmp_path_factory.mktemp("relax")
    save_checkpoint(folder / "p.safetensors", small_potential())
    held = ethanol()
    held.set_constraint(FixAtoms([0, 1]))
    write(folder / "held.traj", held)
    write(folder / "cell.cif", copper())
    write(folder / "frames.xyz", [ethanol(seed) for seed in range(4)])
    write(folder / "carbon.xyz", Atoms("C"))
    uranium = molecule("H2O")
    uranium.numbers[0] = 92
    write(folder / "uranium.xyz", uranium)
    return folder


def rows(said: str) -> dict[str, str]:
    """Rows of the table, one for each structure."""
    lines = said[said.index("structure ") :].splitlines()[1:-1]
    return {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in lines}


def test_several_files_and_one_that_fails(folder):
    files = ("held.traj", "uranium.xyz", "cell.cif", "carbon.xyz", "CH3OH")
    said = biasgrad(folder, "relax", *files, *COMMON, "-o", "out.xyz", code=1)
    table = rows(said)
    assert list(table) == list(files)
    assert "FAILED" in table["uranium.xyz"]
    assert "the potential does not know ['U']" in table["uranium.xyz"]
    assert "1 of 5 converged, 1 failed; 4 written to out.xyz" in said
    results = read(folder / "out.xyz", ":")
    assert [r.info["relaxed_from"] for r in results] == [f for f in files if "uranium" not in f]
    assert [bool(r.info["relaxed_converged"]) for r in results] == [False, False, True, False]
    start = read(folder / "held.traj")
    np.testing.assert_allclose(results[0].positions[:2], start.positions[:2], atol=1e-7)
    assert np.abs(results[0].positions - start.positions).max() > 0.01
    calc = BiasGradCalculator(folder / "p.safetensors", dtype="float64", device="cpu")
    for result in results:
        assert f"{result.get_potential_energy():.5f}" in table[result.info["relaxed_from"]]
        calc.calculate(result, ["forces"])  # extxyz rounds positions to 1e-8 Å
        assert calc.results["energy"] == pytest.approx(result.get_potential_energy(), abs=1e-5)


def test_several_together_are_as_one_by_one(folder):
    together = biasgrad(
        folder, "relax", "frames.xyz", "--frames", "1:", *COMMON, "-o", "together.traj", code=1
    )
    assert list(rows(together)) == [f"frames.xyz: frame {k}" for k in (1, 2, 3)]
    for k, result in zip((1, 2, 3), read(folder / "together.traj", ":"), strict=True):
        write(folder / "one.xyz", read(folder / "frames.xyz", k))
        biasgrad(folder, "relax", "one.xyz", *COMMON, "-o", "relaxed.traj", "--overwrite", code=1)
        single = read(folder / "relaxed.traj")
        np.testing.assert_allclose(result.positions, single.positions, atol=1e-7)
        np.testing.assert_allclose(result.get_forces(), single.get_forces(), atol=1e-6)


def test_cells_and_trajectories(folder):
    said = biasgrad(
        folder, "relax", "cell.cif", "frames.xyz", "--cell", *COMMON, "-o", "cells.traj",
        "--trajectory", "paths", code=1,
    )  # fmt: skip
    assert "FAILED" in rows(said)["frames.xyz"]  # a molecule has no stress
    (result,) = read(folder / "cells.traj", ":")
    assert np.abs(result.cell.array - copper().cell.array).max() > 1e-3
    path = read(folder / "paths" / "cell.traj", ":")
    assert len(path) == 4
    np.testing.assert_allclose(path[-1].cell.array, result.cell.array)
    assert {"energy", "forces", "stress"} <= set(path[0].calc.results)
    again = ("relax", "cell.cif", "frames.xyz", *COMMON, "-o", "more.traj", "--trajectory", "paths")
    before = (folder / "paths" / "cell.traj").read_bytes()
    assert "cell.traj: exists; say --overwrite" in biasgrad(folder, *again, code=1)
    assert (folder / "paths" / "cell.traj").read_bytes() == before
    assert not (folder / "more.traj").exists()
    biasgrad(folder, *again, "--overwrite", code=1)
    assert len(read(folder / "paths" / "cell.traj", ":")) == 4


def test_nothing_is_left_where_all_fail(folder):
    said = biasgrad(
        folder, "relax", "uranium.xyz", "uranium.xyz", *COMMON, "-o", "none.xyz", code=1
    )
    assert "0 of 2 converged, 2 failed; nothing is written" in said
    assert not (folder / "none.xyz").exists()


def test_all_converged_is_a_success(folder):
    said = biasgrad(folder, "relax", "carbon.xyz", "carbon.xyz", *COMMON, "-o", "good.xyz")
    assert "2 of 2 converged, 0 failed; 2 written to good.xyz" in said


@pytest.mark.parametrize(
    ("line", "said", "code"),
    [
        ("carbon.xyz CH4 -o one.vasp", "one.vasp: this format holds one structure", 2),
        ("carbon.xyz CH4 -o a.xyz --optimizer fire", "several structures relax by lbfgs", 2),
        ("carbon.xyz nothing.xyz -o a.xyz", "'nothing.xyz' is no file and no molecule", 1),
        ("carbon.xyz -o a.xyz --frames 7", "--frames '7' is no slice", 2),
        ("carbon.xyz -o a.xyz --frames 3:", "leaves none of its 1 frames", 1),
        ("CH4 -o a.xyz --frames :", "CH4: is no file, of which", 1),
        ("carbon.xyz CH4 -o carbon.xyz --overwrite", "carbon.xyz: is what is read", 1),
        ("carbon.xyz CH4 -o a.xyz --trajectory p.safetensors", "p.safetensors: is a file", 2),
        ("carbon.xyz CH4 -o a.xyz --trajectory no/where", "the folder no does not exist", 1),
        ("carbon.xyz ./carbon.xyz -o a.xyz --trajectory paths", "paths/carbon.traj: would be", 2),
    ],
)
def test_mistakes_are_told_before_the_work(folder, line, said, code):
    assert said in biasgrad(folder, "relax", *line.split(), *COMMON, code=code)
    assert not (folder / "a.xyz").exists()
