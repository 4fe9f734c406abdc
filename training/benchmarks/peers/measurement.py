"""One peer, trained and measured: a process for each question of `protocol.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.metrics import efwt, error_norms
from ase_biasgrad.training.benchmarks.peers import protocol
from ase_biasgrad.training.benchmarks.peers.environments import plain_variables
from ase_biasgrad.training.benchmarks.peers.protocol import Frames

STARTS = 3  # of which the fastest counts


class Failed(RuntimeError):
    """A peer that did not do what it was asked; the message says what it said last."""


@dataclass(frozen=True)
class Limits:
    """When a process is ended.

    Parameters
    ----------
    late
        Processor time beyond what a training was given, as a share of it and in s.
    slow
        Wall time of any process: a multiple of the time given, for a busy machine, and in s.
    """

    late: tuple[float, float] = (0.2, 60.0)
    slow: tuple[float, float] = (20.0, 1800.0)

    def processor(self, seconds: float) -> float:
        """Processor seconds for a training that was given `seconds`."""
        return seconds * (1 + self.late[0]) + self.late[1]

    def wall(self, seconds: float) -> float:
        """Wall seconds for a process of a job of `seconds`."""
        return seconds * self.slow[0] + self.slow[1]


@dataclass(frozen=True)
class Task:
    """Frames, minutes and a seed, the same for every peer; test labels stay with the benchmark."""

    train: Frames
    validation: Frames
    test: Frames
    minutes: float
    seed: int = 0
    least_epochs: int = 10
    md_seconds: float = 6.0


def measure(driver: Path, python: Path, task: Task, folder: Path, limits: Limits) -> dict[str, Any]:
    """Train and measure in `folder`; a training that is there already is not repeated.

    Energies are given and taken less the mean of the training frames, which is added in float64, so
    that a network in float32 is not measured by how it rounds a large number.

    Raises
    ------
    Failed
        If a process fails or is ended for its time, or if a prediction is not finite.
    """
    ask = partial(_ask, driver, python, folder, limits.wall(60 * task.minutes))
    if not (folder / "train.json").is_file():
        _write_job(task, folder, limits)
        ask("train")
    trained = _read(folder / "train.json")
    # made after the training, and without labels: nothing can be chosen by them
    Frames(task.test.numbers, task.test.positions).save(folder / "test.npz")
    ask("predict")
    starts = []
    for _ in range(STARTS):
        ask("start")
        starts.append(_read(folder / "start.json")["seconds"])
    ask("md")
    md = _read(folder / "md.json")
    model = (folder / "model").rglob("*")
    return {
        **errors(task, folder / "predictions.npz"),
        "training_seconds": trained.pop("seconds"),
        "training_memory": trained.pop("memory"),
        "md_step_seconds": md["md_step_seconds"],
        "md_memory": md["memory"],
        "start_seconds": min(starts),
        "bytes_on_disk": sum(file.stat().st_size for file in model if file.is_file()),
        "training": trained,
    }


def errors(task: Task, path: Path) -> dict[str, float]:
    """MAE of forces (eV/Å) and energies (eV), and EFwT, of predictions for the test frames."""
    assert task.test.energy is not None
    assert task.test.forces is not None
    with np.load(path) as found:
        energy, forces = found["energy"], found["forces"]
    for name, values, reference in (
        ("energies", energy, task.test.energy),
        ("forces", forces, task.test.forces),
    ):
        if values.shape != reference.shape:
            raise Failed(f"predicted {name} of shape {values.shape}, not {reference.shape}")
        if not np.isfinite(values).all():
            raise Failed(f"predicted {name} that are not finite")
    of_energy = energy + _zero(task) - task.test.energy
    of_forces = forces - task.test.forces
    within = efwt(of_energy, np.abs(of_forces).max(axis=(1, 2)))
    return {
        "force_mae": error_norms(of_forces).mae,
        "energy_mae": error_norms(of_energy).mae,
        "efwt": within.both,
    }


def _zero(task: Task) -> float:
    assert task.train.energy is not None
    return float(np.mean(task.train.energy))


def _write_job(task: Task, folder: Path, limits: Limits) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation"):
        frames: Frames = getattr(task, part)
        assert frames.energy is not None
        centred = frames.energy - _zero(task)
        own = Frames(frames.numbers, frames.positions, centred, frames.forces)
        own.save(folder / f"{part}.npz")
    seconds = 60 * task.minutes
    options = {
        "seconds": seconds,
        "limit": limits.processor(seconds),
        "seed": task.seed,
        "least_epochs": task.least_epochs,
        "md_seconds": task.md_seconds,
    }
    (folder / "job.json").write_text(json.dumps(options), encoding="utf-8")


def _ask(driver: Path, python: Path, folder: Path, wall: float, question: str) -> None:
    """Run a process to its end; all that it says goes to `<question>.log`."""
    # -P: the folder of the script stays out of the path, since a driver may be named as its package
    script = [str(python), "-P", str(Path(protocol.__file__).resolve())]
    log = folder / f"{question}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*script, question, str(driver), str(folder)],
            env=plain_variables(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(wall)
        except subprocess.TimeoutExpired:
            raise Failed(f"{question}: was not done after {wall:.0f} s, and ended") from None
        finally:
            _end(process)
    if code:
        raise Failed(f"{question}: {_last_line(log)} (exit status {code}; all of it: {log})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
