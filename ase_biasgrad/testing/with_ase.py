"""Checks 17: optimizers, dynamics, files and drivers of ASE, used as people use them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import all_changes
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import MTKNPT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from ase.phonons import Phonons
from ase.vibrations import Vibrations

from ase_biasgrad.testing.failures import NotApplicable, expect, expect_small
from ase_biasgrad.testing.structures import primitive
from ase_biasgrad.testing.subject import Subject

SHORT_STEP = 0.01  # Å


def bfgs_goes_downhill(subject: Subject) -> None:
    """BFGS lowers the energy."""
    _downhill(subject, BFGS)


def lbfgs_goes_downhill(subject: Subject) -> None:
    """LBFGS lowers the energy."""
    _downhill(subject, LBFGS)


def fire_goes_downhill(subject: Subject) -> None:
    """FIRE lowers the energy."""
    _downhill(subject, FIRE)


def _downhill(subject: Subject, optimizer: Callable[..., Any]) -> None:
    """Some step must be lower: where the energy curves much, later ones may climb."""
    subject.needs("forces")
    atoms = subject.calculated(subject.structure)
    before = atoms.get_potential_energy()
    search = optimizer(atoms, logfile=None, maxstep=SHORT_STEP)
    changes = [atoms.get_potential_energy() - before for _ in search.irun(fmax=1e-3, steps=5)]
    lowest = min(changes)
    expect(lowest < 0, f"in 5 steps the energy changes by {lowest:+.3g} eV", "a lower energy")


def cells_relax(subject: Subject) -> None:
    """FrechetCellFilter with BFGS lowers the energy of a crystal."""
    subject.needs("stress")
    atoms = subject.calculated(subject.crystal)
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=SHORT_STEP).run(fmax=1e-3, steps=4)
    rise = atoms.get_potential_energy() - before
    expect(rise < 0, f"after 4 steps the energy has changed by {rise:+.3g} eV", "a lower energy")


def equation_of_state_is_smooth(subject: Subject) -> None:
    """Energies of five volumes lie on a smooth curve, that of ASE's fit where it has a minimum."""
    start = subject.crystal
    calc, volumes, energies = subject.make(), [], []
    for scale in np.linspace(0.99, 1.01, 5):
        atoms = start.copy()
        atoms.set_cell(start.cell.array * scale, scale_atoms=True)
        atoms.calc = calc
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    span = float(np.ptp(energies))
    cubic = np.polyval(np.polyfit(np.linspace(-1, 1, 5), energies, 3), np.linspace(-1, 1, 5))
    rough = float(np.abs(cubic - energies).max())
    expect_small(rough, 0.02 * span + 10 * subject.noise, "energies leave a cubic by", "eV")
    try:
        EquationOfState(volumes, energies).fit(warn=False)
    except ValueError as error:  # a compressed or stretched crystal has no minimum among these
        raise NotApplicable(f"{start.symbols} has no equilibrium volume near: {error}") from error


def total_energy_is_conserved(subject: Subject) -> None:
    """VelocityVerlet keeps the total energy while kinetic and potential energy change."""
    subject.needs("forces")
    atoms = subject.calculated(subject.structure)
    thermalize_momenta(atoms, 100, rng=np.random.default_rng(0))
    potential, total = [], []
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    for _ in range(20):
        dynamics.run(1)
        potential.append(atoms.get_potential_energy())
        total.append(atoms.get_total_energy())
    limit = 0.03 * float(np.ptp(potential)) + 10 * subject.noise
    expect_small(float(np.ptp(total)), limit, "in 20 steps of 0.1 fs it changes by", "eV")


def langevin_dynamics_run(subject: Subject) -> None:
    """Langevin dynamics runs and stays finite."""
    subject.needs("forces")
    random = np.random.default_rng(0)
    atoms = subject.calculated(subject.structure)
    Langevin(atoms, 0.1 * units.fs, temperature_K=50, friction=0.01, fixcm=False, rng=random).run(3)
    expect(np.isfinite(atoms.positions).all(), "positions are not finite", "finite positions")


def constant_pressure_dynamics_run(subject: Subject) -> None:
    """MTKNPT moves the cell by the stress."""
    subject.needs("stress")
    random = np.random.default_rng(0)
    atoms = subject.calculated(subject.crystal)
    thermalize_momenta(atoms, 50, rng=random)
    volume = atoms.get_volume()
    MTKNPT(atoms, 0.1 * units.fs, temperature_K=50, pressure_au=0.1, tdamp=50, pdamp=500).run(3)
    now = atoms.get_volume()
    expect(
        np.isfinite(now) and now != volume, f"the volume goes from {volume} to {now}", "a change"
    )


def vibrations_run(subject: Subject) -> None:
    """Vibrations of three atoms have nine energies."""
    subject.needs("forces")
    atoms = subject.calculated(subject.structure)
    which = list(range(min(3, len(atoms))))
    with tempfile.TemporaryDirectory() as folder:
        vibrations = Vibrations(atoms, indices=which, name=str(Path(folder) / "vib"))
        vibrations.run()
        found = len(vibrations.get_energies())
    expect(found == 3 * len(which), f"{len(which)} atoms have {found} modes", f"{3 * len(which)}")


def phonons_run(subject: Subject) -> None:
    """Phonons have three acoustic branches that vanish at Γ."""
    subject.needs("forces")
    crystal = primitive(subject.crystal) or subject.crystal
    copies = (2, 2, 2) if len(crystal) < 3 else (1, 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        name = str(Path(folder) / "phonons")
        phonons = Phonons(crystal, subject.make(), supercell=copies, name=name)
        phonons.run()
        phonons.read(acoustic=True)
        gamma = np.sort(np.abs(phonons.band_structure([[0, 0, 0]])[0]))
    expect_small(float(gamma[:3].max()), 1e-2, "the acoustic branches at Γ have", "eV")


def neb_shares_one_calculator(subject: Subject) -> None:
    """Images of a NEB share one calculator and have the forces of new ones."""
    subject.needs("forces")
    calc, first, last = subject.make(), subject.structure, subject.structure
    last.positions[0] += [0.2, 0.1, 0.0]
    images = [first, first.copy(), first.copy(), last]
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate()
    for image in images:
        image.calc = calc
    expect(np.isfinite(band.get_forces()).all(), "forces of the band are not finite", "finite ones")
    for k, image in enumerate(images):
        wanted = subject.forces(image)
        subject.expect_same_forces(image.get_forces(), wanted, f"of image {k}")


def trajectories_and_extxyz_keep_results(subject: Subject) -> None:
    """Energies and forces come back from *.traj and extxyz."""
    atoms = _with_results(subject)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.traj"
        with Trajectory(str(path), "w", atoms) as trajectory:
            trajectory.write()
        atoms.write(Path(folder) / "x.extxyz")
        for name in ("x.traj", "x.extxyz"):
            again = read(Path(folder) / name)
            difference = abs(again.get_potential_energy() - atoms.get_potential_energy())
            expect_small(difference, 1e-6, f"in {name} the energy is off by", "eV")
            worst = float(np.abs(again.get_forces() - atoms.get_forces()).max())
            expect_small(worst, 1e-6, f"in {name} a force is off by", "eV/Å")


def databases_keep_results(subject: Subject) -> None:
    """Energy and name come back from an ASE database."""
    atoms = _with_results(subject)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        with connect(path) as database:
            database.write(atoms)
        row = connect(path).get(1)
        difference = abs(row.energy - atoms.get_potential_energy())
        expect_small(difference, 0, "in the database the energy is off by", "eV")
        expect(row.calculator == atoms.calc.name, f"its name is {row.calculator!r}", "calc.name")


def _with_results(subject: Subject) -> Atoms:
    atoms = subject.calculated(subject.structure)
    atoms.set_constraint(FixAtoms([0]))
    atoms.get_forces()
    atoms.get_potential_energy()
    if atoms.cell.rank == 3 and "stress" in subject.implemented:
        atoms.get_stress()
    return atoms


def drivers_ask_for_properties(subject: Subject) -> None:
    """calculate_properties, by which i-PI's driver asks, gives what getters give."""
    names = [n for n in ("energy", "forces", "stress") if n in subject.implemented]
    atoms = subject.structure
    if "stress" in names and atoms.cell.rank < 3:
        names.remove("stress")
    found = subject.make().calculate_properties(atoms, names)
    subject.expect_same_forces(found["forces"], subject.forces(atoms), "calculate_properties")


def calls_one_after_another(subject: Subject) -> None:
    """calculate() for the energy, then for forces without changes, leaves the forces (PLUMED)."""
    atoms, calc = subject.structure, subject.make()
    calc.calculate(atoms, ["energy"], all_changes)
    calc.calculate(atoms, ["forces"], [])
    expect("forces" in calc.results, f"results hold {sorted(calc.results)}", "forces among them")
    forces = np.asarray(calc.results["forces"])
    subject.expect_same_forces(forces, subject.forces(atoms), "after calculate(…, [])")


def socket_clients_run(subject: Subject) -> None:
    """SocketClient with it serves SocketIOCalculator, as i-PI and others would ask."""
    subject.needs("forces")
    atoms = subject.structure
    wanted = subject.forces(atoms)
    if not atoms.cell.any():  # the protocol has no molecule without a cell
        atoms.center(8.0)
    own = subject.calculated(atoms)
    name = f"biasgrad_{threading.get_ident()}"
    failures: list[Exception] = []

    def serve() -> None:
        try:
            SocketClient(unixsocket=name).run(own, use_stress=False)
        except Exception as error:
            failures.append(error)

    with SocketIOCalculator(unixsocket=name, timeout=60) as server:
        atoms.calc = server
        client = threading.Thread(target=serve, daemon=True)
        client.start()
        try:
            forces = atoms.get_forces()
        except Exception as error:
            client.join(5)
            raise (failures[0] if failures else error) from error
    client.join(5)
    subject.expect_same_forces(forces, wanted, "through a socket")
