"""Questions to a driver and their answers: files in a folder, and a process for each question.

    python -P protocol.py train|predict|start|md DRIVER FOLDER

`FOLDER` holds `job.json`, `train.npz` and `validation.npz`; `train` fills `FOLDER/model` and writes
`train.json`. Each other question makes the driver's ASE calculator from `FOLDER/model`: `predict`
reads structures without labels from `test.npz` and writes `predictions.npz`, `start` and `md` write
`start.json` and `md.json`. Energies in eV, their zero the mean of the training frames; forces in
eV/Å, positions in Å.

All times are those of the processor, of all threads together: wall times of one core on a machine
that does nothing else, and what a busy machine disturbs least.

This file runs in the environments of peers: it knows the standard library, NumPy and ASE.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms

PARTS = ("train", "validation")  # what a driver gets with labels
TEMPERATURE = 300.0  # K
TIMESTEP = 0.5  # fs
FEWEST_STEPS = 50  # in a run that is timed: several searches of neighbours, where there are any


@dataclass(frozen=True)
class Frames:
    """Structures of one molecule, `m` frames of `n` atoms; without labels for `predict`."""

    numbers: np.ndarray  # (n,)
    positions: np.ndarray  # (m, n, 3) Å
    energy: np.ndarray | None = None  # (m,) eV
    forces: np.ndarray | None = None  # (m, n, 3) eV/Å

    def __len__(self) -> int:
        return len(self.positions)

    def save(self, path: Path) -> None:
        """Write an npz file."""
        import numpy as np

        arrays: dict[str, Any] = {k: v for k, v in vars(self).items() if v is not None}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Frames:
        """Read an npz file."""
        import numpy as np

        with np.load(path) as stored:
            return cls(**stored)

    def atoms(self) -> list[Atoms]:
        """ASE structures, not periodic, with labels where there are any."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator

        every = [Atoms(self.numbers, positions) for positions in self.positions]
        if self.energy is not None and self.forces is not None:
            for atoms, energy, forces in zip(every, self.energy, self.forces, strict=True):
                atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces)
        return every


@dataclass(frozen=True)
class Job:
    """A training: labelled frames, and the seconds that it may take.

    `least_epochs` is the number of passes over the training frames below which a smaller network is
    taken.
    """

    folder: Path
    train: Frames
    validation: Frames
    seconds: float  # of `used_seconds()`: imports count, too
    limit: float  # `used_seconds()` at which the process is ended
    seed: int
    least_epochs: int
    md_seconds: float  # of molecular dynamics that is timed

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job in a folder."""
        options = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        train, validation = (Frames.load(folder / f"{part}.npz") for part in PARTS)
        return cls(folder, train, validation, **options)

    @property
    def model(self) -> Path:
        """Folder for the potential."""
        return self.folder / "model"

    def left(self) -> float:
        """Seconds until the time is over."""
        return self.seconds - used_seconds()

    def tool(self, name: str) -> Any:
        """A module beside this file that drivers share, such as `descent`."""
        return module_at(Path(__file__).with_name(f"{name}.py"))


def used_seconds() -> float:
    """Processor time of this process and of those that it started and that have ended."""
    of = os.times()  # in ticks of 10 ms
    return time.process_time() + of.children_user + of.children_system


def module_at(path: Path) -> Any:
    """Import a file by its place, whatever packages have its name."""
    name = f"peer_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def train(driver: Any, folder: Path) -> None:
    """Train, and write what the training says, its processor time and its largest memory."""
    job = Job.read(folder)
    _end_after(job.limit)
    job.model.mkdir(exist_ok=True)
    told = driver.train(job)
    _write(folder / "train.json", {**told, **_usage()})


def predict(driver: Any, folder: Path) -> None:
    """Write energies `(m,)` and forces `(m, n, 3)` of the structures in `test.npz`."""
    import numpy as np

    calculator = driver.calculator(folder / "model")
    energy, forces = [], []
    for atoms in Frames.load(folder / "test.npz").atoms():
        atoms.calc = calculator
        forces.append(atoms.get_forces())
        energy.append(float(np.squeeze(atoms.get_potential_energy())))  # of sgdml (1,)
    np.savez(folder / "predictions.npz", energy=np.array(energy), forces=np.array(forces))


def start(driver: Any, folder: Path) -> None:
    """Write the seconds from the start of Python to the first forces, and the largest memory."""
    atoms = _first(folder)
    atoms.calc = driver.calculator(folder / "model")
    atoms.get_forces()
    _write(folder / "start.json", _usage())


def md(driver: Any, folder: Path) -> None:
    """Write the time of a whole VelocityVerlet step: the fastest of several runs."""
    import numpy as np
    from ase import units
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms = _first(folder)
    atoms.calc = driver.calculator(folder / "model")
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    dynamics.run(FEWEST_STEPS // 2)  # whatever compiles or adapts itself in the first steps
    times: list[float] = []
    end = used_seconds() + Job.read(folder).md_seconds
    while len(times) < 2 or used_seconds() < end:
        begin = used_seconds()
        dynamics.run(FEWEST_STEPS)
        times.append((used_seconds() - begin) / FEWEST_STEPS)
    if not np.isfinite(atoms.positions).all():
        raise RuntimeError("molecular dynamics at 300 K exploded")
    _write(folder / "md.json", {"md_step_seconds": min(times), **_usage()})


def _first(folder: Path) -> Atoms:
    """The first validation frame, without its labels."""
    found = Frames.load(folder / "validation.npz")
    return Frames(found.numbers, found.positions[:1]).atoms()[0]


def _usage() -> dict[str, Any]:
    """Time used until now, in s, and largest memory in MB, None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return {"seconds": used_seconds(), "memory": None}
    every = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    memory = max(used.ru_maxrss for used in every) * unit / 1e6
    return {"seconds": used_seconds(), "memory": memory}


def _end_after(seconds: float) -> None:
    """Let the system end this process when it has used so much, where it can."""
    try:
        import resource
    except ImportError:
        return

    def late(*_: Any) -> None:
        sys.exit(f"was not done after {seconds:.0f} s of the processor, and ended")

    signal.signal(signal.SIGXCPU, late)
    hard = int(seconds) + 30  # where compiled code never comes back to Python
    resource.setrlimit(resource.RLIMIT_CPU, (max(1, int(seconds)), hard))


def _write(path: Path, values: dict[str, Any]) -> None:
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(values), encoding="utf-8")
    os.replace(aside, path)


QUESTIONS = {"train": train, "predict": predict, "start": start, "md": md}

if __name__ == "__main__":
    question, file, where = sys.argv[1:]
    QUESTIONS[question](module_at(Path(file)), Path(where))
