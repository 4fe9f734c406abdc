"""Potentials in LAMMPS against the same in ASE, on one process and on several."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import lammps_cases
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import Trajectory, read, write
from ase.io.lammpsdata import read_lammps_data
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from conftest import copper, ethanol, mixed, small_potential
from helpers import biasgrad

from ase_biasgrad import BiasGradCalculator, save_checkpoint
from ase_biasgrad.calculators.lammps import run_dynamics, run_on, write_data
from ase_biasgrad.calculators.lammps.data_file import box_of
from ase_biasgrad.calculators.lammps.script import read_script
from ase_biasgrad.calculators.spread import expected_errors
from ase_biasgrad.training_range import TrainingRange

pytestmark = [
    pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"),
    pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.ExtrapolationWarning"),
]
needs_lammps = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("lammps", "mpi4py")), reason="LAMMPS is not installed"
)
NETWORKS = ("schnet", "painn", "tensornet")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, list[str]]:
    """A potential of each network, and a committee."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {name: [small_potential(name)] for name in NETWORKS}
    made["committee"] = [small_potential("schnet", seed) for seed in range(2)]
    seen = TrainingRange({(1, 1): 1.5, (1, 6): 0.9}, largest_force=50.0)
    paths: dict[str, list[str]] = {}
    for name, potentials in made.items():
        paths[name] = []
        for k, potential in enumerate(potentials):
            potential.bias.add_per_element({1: -13.5, 6: -1000.1, 8: -2000.2, 29: -3000.3})
            training = {"range": seen.record()} if name == "tensornet" else {}
            save_checkpoint(folder / f"{name}{k}.safetensors", potential, training)
            paths[name].append(str(folder / f"{name}{k}.safetensors"))
    return paths


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    """Let the processes that tests start import what the tests do."""
    own, tests = Path(__file__).parent, Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{own}:{tests}:{os.environ.get('PYTHONPATH', '')}")


def in_ase(atoms: Atoms, paths: list[str], dtype: str = "float64") -> Atoms:
    atoms.calc = BiasGradCalculator(paths, device="cpu", dtype=dtype)
    return atoms


# --- energies, forces, virial --------------------------------------------------------------


@needs_lammps
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_processes_gives_what_ase_gives(tmp_path, checkpoints, ranks):
    arguments = {"folder": str(tmp_path), "networks": checkpoints, "cases": ["alloy"]}
    more = {**arguments, "networks": {"tensornet": checkpoints["tensornet"]}}
    more["cases"] = [case for case in lammps_cases.CASES if case != "alloy"]
    run_on(ranks, lammps_cases.evaluate_all, {"calls": [arguments, more]})
    for file in sorted(tmp_path.glob("*.npz")):
        network, case = file.stem.split(" ", 1)
        found = np.load(file)
        atoms = in_ase(lammps_cases.CASES[case](), checkpoints[network])
        assert abs(found["energy"] - atoms.get_potential_energy()) < 1e-9 * len(atoms), file.stem
        assert np.abs(found["energies"] - atoms.get_potential_energies()).max() < 1e-9, file.stem
        assert np.abs(found["forces"] - atoms.get_forces()).max() < 1e-6, file.stem
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False)
            assert np.abs(found["stress"] - stress).max() < 1e-6 * np.abs(stress).max(), file.stem
            gradient = stress * atoms.get_volume()
            error = np.abs(found["strain_gradient"] - gradient).max()
            assert error < 1e-9 * np.abs(gradient).max(), file.stem
        if network == "committee":
            spread = atoms.calc.results["forces_std"]  # of components, in another frame
            assert found["spread"][0] == pytest.approx(atoms.calc.results["energy_std"], rel=1e-9)
            assert found["spread"][1] == pytest.approx(spread.max(), rel=0.5)
    assert len(list(tmp_path.glob("*.npz"))) == len(checkpoints) + len(lammps_cases.CASES) - 1


# --- dynamics ------------------------------------------------------------------------------


def moving(atoms: Atoms, temperature: float, drift: float = 0.0) -> Atoms:
    """Atoms with momenta, all of which also drift, in Å/fs."""
    thermalize_momenta(atoms, temperature, rng=np.random.default_rng(0))
    atoms.set_velocities(atoms.get_velocities() + drift / units.fs)
    return atoms


def frames_of(folder: Path, atoms: Atoms, paths: list[str], ranks: int, **settings) -> Trajectory:
    """Frames of MD in LAMMPS."""
    start, trajectory = folder / "start.traj", folder / "md.traj"
    write(start, atoms)
    arguments = {
        "structure": str(start), "checkpoints": paths, "trajectory": str(trajectory),
        "steps": 40, "timestep": 0.5, "ensemble": "nve", "temperature": 300.0, "pressure": 0.0,
        "friction": 0.01, "interval": 20, "seed": 1, "dtype": "float64", "stop_outside": False,
        "stop_spread": None,
        "first": True, "report": str(folder / "report"),
    }  # fmt: skip
    run_on(ranks, run_dynamics, {**arguments, **settings})
    return Trajectory(str(trajectory))


@needs_lammps
@pytest.mark.parametrize("make", [ethanol, lambda: copper() * (3, 2, 2), mixed])
def test_a_trajectory_is_that_of_ase(tmp_path, checkpoints, make):
    # all atoms cross borders of processes and of the cell
    atoms, paths = moving(make(), 600.0, drift=0.04), checkpoints["tensornet"]
    frames = frames_of(tmp_path, atoms, paths, 2, steps=200, interval=40)
    dynamics = VelocityVerlet(in_ase(atoms, paths), 0.5 * units.fs)
    compared = []

    def compare() -> None:
        frame = frames[len(compared)]
        assert abs(frame.get_potential_energy() - atoms.get_potential_energy()) < 1e-9 * len(atoms)
        assert np.abs(frame.positions - atoms.positions).max() < 1e-9
        assert np.abs(frame.get_momenta() - atoms.get_momenta()).max() < 1e-9
        assert np.abs(frame.get_forces() - atoms.get_forces()).max() < 1e-9
        assert np.array_equal(frame.pbc, atoms.pbc)
        assert np.abs(frame.cell - atoms.cell).max() < 1e-12
        compared.append(frame)

    dynamics.attach(compare, interval=40)
    dynamics.run(200)
    assert len(compared) == len(frames) == 6


@needs_lammps
@pytest.mark.parametrize("ensemble", ["langevin", "npt"])
def test_frames_of_other_ensembles_hold_what_ase_finds(tmp_path, checkpoints, ensemble):
    paths = checkpoints["schnet"]
    frames = frames_of(
        tmp_path, moving(copper() * 2, 300.0), paths, 1, ensemble=ensemble, pressure=20.0
    )
    for frame in frames:
        found = frame.get_potential_energy(), frame.get_forces(), frame.get_stress()
        again = in_ase(frame.copy(), paths)
        assert abs(found[0] - again.get_potential_energy()) < 1e-9 * len(again)
        assert np.abs(found[1] - again.get_forces()).max() < 1e-9
        assert np.abs(found[2] - again.get_stress()).max() < 1e-12
    changed = np.abs(frames[-1].cell - frames[0].cell).max()
    assert (changed > 1e-6) == (ensemble == "npt")


@needs_lammps
def test_md_ends_outside_of_the_training_range(tmp_path, checkpoints):
    paths, settings = checkpoints["tensornet"], {"stop_outside": True, "interval": 3}
    frames = frames_of(tmp_path, moving(lammps_cases.close(), 300.0), paths, 2, **settings)
    assert len(frames) == 1  # outside from the beginning
    report = (tmp_path / "report").read_text()
    assert "ended after 0 of 40 steps" in report
    assert "Å apart, and no H-O pair was closer than the cutoff of 4 Å in training" in report


@needs_lammps
@pytest.mark.parametrize(("share", "steps"), [(1.01, 1), (0.99, 0)])
def test_md_ends_where_a_committee_is_uncertain(tmp_path, checkpoints, share, steps):
    atoms, paths = moving(ethanol(), 300.0), checkpoints["committee"]
    calculated = in_ase(atoms.copy(), paths)
    calculated.get_forces()
    errors = expected_errors(calculated.calc.results["forces_std"])
    worst = int(errors.argmax())
    limit = {"stop_spread": share * float(errors[worst])}
    frames = frames_of(tmp_path, atoms, paths, 2, steps=1, interval=1, timestep=1e-3, **limit)
    said = (tmp_path / "report").read_text()
    assert len(frames) == 1 + steps
    name = (
        f"atom {worst} ({atoms.symbols[worst]}) is expected to be off by {errors[worst]:.3f} eV/Å"
    )
    assert (f"ended after 0 of 1 steps: the force on {name}" in said) == (steps == 0)


@needs_lammps
def test_md_of_the_command_line(tmp_path, checkpoints):
    path = checkpoints["schnet"][0]
    line = ["md", "CH3CH2OH", "-c", path, "-o", "a.traj", "--engine", "lammps", "-n", "2"]
    said = biasgrad(tmp_path, *line, "--steps", "4", "--interval", "2", "--log", "a.log")
    assert "4 steps; last temperature" in said
    biasgrad(tmp_path, *line, "--steps", "3", "--interval", "2", "--log", "a.log", "--restart")
    assert len(read(tmp_path / "a.traj", ":")) == 4  # after 0, 2, 4, and 2 more
    assert len((tmp_path / "a.log").read_text().splitlines()) == 4  # with a header


# --- scripts -------------------------------------------------------------------------------


SCRIPT = """units metal
atom_style atomic
boundary s s s
read_data e.data
fix potential all biasgrad C O H # in order of types
thermo_style custom step pe f_potential
thermo_modify format float %.12f
fix move all nve
label loop
variable a loop 2
run 1
next a
jump SELF loop
"""


@needs_lammps
def test_a_script_runs_with_its_potential(tmp_path, checkpoints):
    write(tmp_path / "e.xyz", ethanol())
    said = biasgrad(tmp_path, "lammps-data", "e.xyz", "-o", "e.data")
    assert SCRIPT.startswith(said.strip())
    (tmp_path / "in.lammps").write_text(SCRIPT)
    paths = checkpoints["schnet"]
    line = ["lammps", "in.lammps", "-c", paths[0], "-n", "2", "--dtype", "float64"]
    biasgrad(tmp_path, *line, "--", "-screen", "none", "-log", "x.log")
    rows = [row.split() for row in (tmp_path / "x.log").read_text().splitlines()]
    energies = [float(row[1]) for row in rows if len(row) == 3 and row[0] == "0"]
    expected = in_ase(read(tmp_path / "e.xyz"), paths).get_potential_energy()
    assert energies == [pytest.approx(expected, abs=1e-8)]
    assert [row[0] for row in rows if len(row) == 3 and row[1] == row[2]] == ["0", "1", "1", "2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "0 lines that attach the potential"),
        ("fix p all biasgrad H\nfix p all biasgrad H", "2 lines that attach"),
        ("# a\n fix p water biasgrad H", "line 2: the potential is that of all atoms"),
        ("fix p all biasgrad # H", "name the element of each atom type"),
    ],
)
def test_scripts_that_attach_no_potential_are_refused(tmp_path, line, message):
    (tmp_path / "in").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_script(tmp_path / "in")


STRESSES = """compute a all stress/atom NULL
compute b all reduce sum c_a[1]
thermo 1
thermo_style custom c_b
fix 1 all nve
run 2
"""
ERRORS: list[tuple[dict, str, str]] = [
    ({"units": "real"}, "", "need `units metal`"),
    ({"elements": ["C", "O"]}, "", "3 atom types and 2 elements"),
    ({"elements": ["C", "O", "N"]}, "", "does not know ['N']"),
    ({"elements": ["C", "O", "Q"]}, "", "'Q' is not an element"),
    ({"elements": ["O", "C", "H"]}, "", "type 1 is named O and has the mass of C"),
    ({"skin": -1.0}, "", "skin is -1 Å"),
    ({}, STRESSES, "virials by atom"),
    ({}, "velocity all set 1e5 0 0\nfix 1 all nve\nthermo 0\nrun 5", "9 of 9 atoms were lost"),
    ({}, "runs 1", "Unknown command"),
]


@needs_lammps
def test_what_a_potential_cannot_do_is_an_error(tmp_path, checkpoints):
    write_data(tmp_path / "data", ethanol())
    cases = [({"elements": ["C", "O", "H"], **attached}, line) for attached, line, _ in ERRORS]
    arguments = {"cases": cases, "output": str(tmp_path / "messages")}
    more = {"checkpoints": checkpoints["schnet"], "data": str(tmp_path / "data")}
    run_on(1, lammps_cases.messages, {**arguments, **more})
    found = json.loads((tmp_path / "messages").read_text())
    for (*case, expected), message in zip(ERRORS, found, strict=True):
        assert expected in message, case


@needs_lammps
def test_an_error_of_all_processes_is_one_message(tmp_path, checkpoints):
    write_data(tmp_path / "e.data", ethanol())
    (tmp_path / "in").write_text(SCRIPT.replace("C O H", "C O N"))
    line = ["lammps", "in", "-c", checkpoints["schnet"][0], "-n", "2", "--", "-screen", "none"]
    said = biasgrad(tmp_path, *line, code=1)
    assert said.startswith("biasgrad: the potential does not know ['N']")
    assert len(said.splitlines()) == 1


# --- data files ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ethanol, copper, mixed])
def test_a_data_file_is_the_structure(tmp_path, make):
    atoms = moving(make(), 300.0)
    elements = write_data(tmp_path / "data", atoms)
    again = read_lammps_data(tmp_path / "data", units="metal", atom_style="atomic")
    prism, corner = box_of(atoms)
    assert elements == list(dict.fromkeys(atoms.get_chemical_symbols()))
    assert again.numbers.tolist() == atoms.numbers.tolist()
    assert np.abs(prism.vector_to_ase(again.positions) + corner - atoms.positions).max() < 1e-12
    assert np.abs(again.get_momenta() - prism.vector_to_lammps(atoms.get_momenta())).max() < 1e-9
    periodic = atoms.pbc
    turned = prism.vector_to_ase(again.cell.array)[periodic]
    assert np.abs(turned - atoms.cell.array[periodic]).max(initial=0.0) < 1e-12


def test_structures_that_no_data_file_can_hold_are_refused(tmp_path):
    heavy = molecule("H2O")
    heavy.set_masses([16.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="atoms of H have masses of"):
        write_data(tmp_path / "data", heavy)
    with pytest.raises(ValueError, match="no atoms"):
        write_data(tmp_path / "data", Atoms())
    with pytest.raises(ValueError, match="position of atom 1 is not finite"):
        write_data(tmp_path / "data", Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]))
    assert not list(tmp_path.iterdir())
