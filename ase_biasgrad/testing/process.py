"""A calculator in a process of its own: what importing, making and evaluating it changes there."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

FRAMEWORKS = ("torch", "jax", "tensorflow", "e3nn")
# of torch, just imported
FRESH = {
    "torch's default dtype": "torch.float32",
    "torch's gradient mode": True,
    "torch's deterministic mode": False,
}


@dataclass(frozen=True)
class InAProcess:
    """Report of a process: changed globals as name: (before, after), and its output."""

    changes: dict[str, tuple[Any, Any]]
    printed: str


def snapshot() -> dict[str, Any]:
    """Settings of this process that a calculator has no business with, as JSON values."""
    found: dict[str, Any] = {
        "the working folder": os.getcwd(),
        "numpy's random state": hash(str(np.random.get_state(legacy=False))),  # noqa: NPY002
        "python's random state": hash(random.getstate()),
        "numpy's error handling": str(np.geterr()),
        "the number of the root logger's handlers": len(logging.getLogger().handlers),
        "the root logger's level": logging.getLogger().level,
    }
    found |= {f"${name}": value for name, value in os.environ.items()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch's default dtype"] = str(torch.get_default_dtype())
        found["torch's gradient mode"] = torch.is_grad_enabled()
        found["torch's deterministic mode"] = torch.are_deterministic_algorithms_enabled()
        found["torch's threads"] = torch.get_num_threads()
        found["torch's random state"] = hash(torch.get_rng_state().numpy().tobytes())
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that changed, as (before, after); those of a torch that came between are new."""
    return {
        name: (before.get(name), value)
        for name, value in after.items()
        if value != before.get(name, value if name.startswith("torch's") else None)
    }


def _run(*arguments: str | Path) -> str:
    """Run this module, or code, in a new process, and return all that it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise RuntimeError(f"a new process ended: {last}")
    return done.stdout + done.stderr


@cache
def _ran(name: str, structure: bytes) -> InAProcess:
    with tempfile.TemporaryDirectory() as folder:
        atoms, report = Path(folder) / "atoms.json", Path(folder) / "report.json"
        atoms.write_bytes(structure)
        printed = _run("-m", "ase_biasgrad.testing.process", name, atoms, report)
        changes = {k: tuple(v) for k, v in json.loads(report.read_text()).items()}
    return InAProcess(changes, printed)  # type: ignore[arg-type]


def changes_in_a_process(name: str, atoms: Atoms) -> InAProcess:
    """Changes that the calculator of the factory `name` makes in a new process; runs once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "atoms.json"
        write(path, atoms)
        return _ran(name, path.read_bytes())


@cache
def modules_of_an_import(package: str) -> frozenset[str]:
    """Frameworks that `import package` loads in a new process."""
    code = f"import sys, {package}; print(); print(*set({FRAMEWORKS!r}) & sys.modules.keys())"
    lines = _run("-W", "ignore", "-c", code).splitlines()
    return frozenset(FRAMEWORKS) & frozenset(" ".join(lines).split())


def forces_in_a_process(pickled: bytes) -> np.ndarray:
    """Forces that a new process calculates for pickled atoms with their calculator."""
    code = (
        "import sys, pickle, numpy; atoms = pickle.load(open(sys.argv[1], 'rb'))\n"
        "getattr(atoms.calc, 'reset', dict)(); numpy.save(sys.argv[2], atoms.get_forces())"
    )
    with tempfile.TemporaryDirectory() as folder:
        atoms, forces = Path(folder) / "atoms.pickle", Path(folder) / "forces.npy"
        atoms.write_bytes(pickled)
        _run("-c", code, atoms, forces)
        return np.load(forces)


def _report(name: str, structure: str, report: str) -> None:
    """Evaluate, in the new process, and write what has changed."""
    from ase_biasgrad.testing.subject import factory

    atoms = read(structure)
    before = snapshot()
    make = factory(name)
    imported = snapshot()
    atoms.calc = make()
    atoms.get_forces()
    # an import that loads torch leaves it as it is, and may itself change the rest
    before |= {k: FRESH.get(k, v) for k, v in imported.items() if k.startswith("torch's")}
    Path(report).write_text(json.dumps(differences({**FRESH, **before}, snapshot())))


if __name__ == "__main__":
    _report(*sys.argv[1:])
