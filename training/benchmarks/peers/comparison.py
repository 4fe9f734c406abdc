"""All peers on one task: rows as they are measured, kept in the store of results.

A peer that cannot be installed or fails is a row that says why. It is no result: the same command
tries it again, and measures only what is missing.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ase_biasgrad.machine import hardware
from ase_biasgrad.training.benchmarks.peers import drivers
from ase_biasgrad.training.benchmarks.peers.environments import NotInstalled, environment
from ase_biasgrad.training.benchmarks.peers.measurement import Failed, Limits, Task, measure
from ase_biasgrad.training.benchmarks.results import Result, Store

VERSION = 1  # of the way in which peers are measured
OURS = "biasgrad"
LIMITS = Limits()
TOLD = ("ase", "numpy", "torch", "jax")  # versions beside those of what was asked for

COLUMNS = (
    *("potential", "size", "force MAE, meV/Å", "energy MAE, meV", "EFwT", "training, min"),
    *("epochs", "MD step, ms", "start, s", "memory, MB", "on disk, MB"),
)


@dataclass(frozen=True)
class Row:
    """A peer's figures, or the reason why it has none."""

    title: str
    figures: dict[str, Any] | None
    reason: str = ""

    def cells(self) -> list[str | None]:
        """The row in `COLUMNS`."""
        if self.figures is None:
            reason = " ".join(self.reason.replace("|", "/").split())
            return [self.title, reason, *[None] * (len(COLUMNS) - 2)]
        of, training = self.figures, self.figures["training"]
        epochs, memory = training.get("epochs"), of["md_memory"]
        return [
            self.title,
            training["size"],
            f"{1000 * of['force_mae']:.2f}",
            f"{1000 * of['energy_mae']:.2f}",
            f"{of['efwt']:.3f}",
            f"{of['training_seconds'] / 60:.1f}",
            None if epochs is None else f"{epochs:.0f}",
            f"{1000 * of['md_step_seconds']:.2f}",
            f"{of['start_seconds']:.1f}",
            None if memory is None else f"{memory:.0f}",
            f"{of['bytes_on_disk'] / 1e6:.2f}",
        ]


def all_peers() -> list[str]:
    """Names of all drivers, ours first."""
    names = [module.name for module in pkgutil.iter_modules(drivers.__path__)]
    return sorted(names, key=lambda name: (name != OURS, name))


def driver_of(name: str) -> ModuleType:
    """The driver of a peer.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if name not in all_peers():
        raise ValueError(f"there is no peer {name!r}; choose of {', '.join(all_peers())}")
    return importlib.import_module(f"{drivers.__name__}.{name}")


def compare(
    task: Task,
    peers: Sequence[ModuleType],
    output: Path,
    environments: Path,
    report: Callable[[str], None],
    limits: Limits = LIMITS,
) -> Iterator[Row]:
    """Rows of the peers, one after the other.

    Parameters
    ----------
    output
        Takes the results, and a folder of work for each peer, in which its potential stays.
    environments
        Takes an environment for each peer.
    """
    store, data = Store(output, "peers"), digest(task)
    machine = hardware("cpu", 1)
    for peer in peers:
        options = identity(peer, task, machine)
        found = store.find(data, options)
        if found is not None:
            report(f"{store.path(data, options)}: is there already")
        try:
            found = found or _measured(
                peer, task, store, data, options, environments, report, limits
            )
        except (NotInstalled, Failed) as error:
            yield Row(peer.TITLE, None, str(error))
        else:
            yield Row(peer.TITLE, found.figures)


def identity(peer: ModuleType, task: Task, machine: str) -> dict[str, Any]:
    """All that a result depends on, beside the data."""
    return {
        "version": VERSION,
        "peer": peer.__name__.rpartition(".")[2],
        "requirements": list(peer.REQUIREMENTS),
        "source": peer.SOURCE,
        "settings": peer.settings(),
        "minutes": task.minutes,
        "seed": task.seed,
        "least_epochs": task.least_epochs,
        "hardware": machine,
    }


def digest(task: Task) -> str:
    """Digest of all frames of a task, part by part."""
    found = hashlib.sha256()
    for part in (task.train, task.validation, task.test):
        for name, values in asdict(part).items():
            array = np.ascontiguousarray(values)
            found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def _measured(
    peer: ModuleType,
    task: Task,
    store: Store,
    data: str,
    options: dict[str, Any],
    environments: Path,
    report: Callable[[str], None],
    limits: Limits,
) -> Result:
    name = options["peer"]
    python, versions = environment(environments, name, peer.REQUIREMENTS, report)
    key = store.path(data, options, "").name.removeprefix("peers-")
    folder = store.folder.resolve() / "work" / f"{name}-{key}"
    if folder.exists() and not (folder / "train.json").is_file():
        shutil.rmtree(folder)  # of a training that did not end
    report(f"{name}: {task.minutes:g} minutes of training, then measurements, in {folder}")
    assert peer.__file__ is not None
    figures = measure(Path(peer.__file__), python, task, folder, limits)
    asked = [requirement.partition("=")[0] for requirement in peer.REQUIREMENTS]
    known = {package: versions[package] for package in (*asked, *TOLD) if package in versions}
    return store.keep(data, options, {**figures, "versions": known})
