"""Environments of peers: one folder each, made by pip, used again by later runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from ase_biasgrad.files import write_whole

MARK = "installed.json"  # of an environment that is whole, with the versions in it


class NotInstalled(RuntimeError):
    """A peer that cannot be installed here; the message says why."""


def environment(
    folder: Path, name: str, requirements: Sequence[str], report: Callable[[str], None]
) -> tuple[Path, dict[str, str]]:
    """Python of the environment that has `requirements`, made if it is not there, and its versions.

    pip's own settings hold, also those in variables: `PIP_CONSTRAINT` names a file that pins
    torch to a build for CPUs. Without requirements it is the environment that this runs in.

    Raises
    ------
    NotInstalled
        With the first error of pip; all that it said is in `pip.log` in the environment.
    """
    if not requirements:
        return Path(sys.executable), _versions(Path(sys.executable))
    place = folder.resolve() / f"{name}-{_digest(requirements)}"
    python, mark = place / "bin" / "python", place / MARK
    if sys.platform == "win32":
        python = place / "Scripts" / "python.exe"
    if mark.is_file():
        return python, json.loads(mark.read_text(encoding="utf-8"))
    if place.exists():  # of an installation that did not end
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    report(f"{name}: installing {', '.join(requirements)} into {place}")
    _run([sys.executable, "-m", "venv", str(place)], place)
    _run([str(python), "-m", "pip", "install", "--no-input", *requirements], place)
    versions = _versions(python)
    write_whole(mark, json.dumps(versions))
    return python, versions


def plain_variables() -> dict[str, str]:
    """Variables for another Python: one thread, bytecode kept, and none of this one's packages."""
    threads = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    own = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**own, **{f"{name}_NUM_THREADS": "1" for name in threads}}


def _digest(requirements: Sequence[str]) -> str:
    """Digest of the requirements and of what an environment cannot be moved between."""
    identity = json.dumps([list(requirements), sys.version_info[:2], sys.platform])
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _run(command: list[str], place: Path) -> None:
    done = subprocess.run(command, env=plain_variables(), capture_output=True, text=True)
    if done.returncode:
        place.mkdir(exist_ok=True)
        log = place / "pip.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        raise NotInstalled(f"is not installed: {_reason(done.stderr)} (all of it: {log})")


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return textwrap.shorten((errors or lines or ["pip said nothing"])[0], 200, placeholder=" …")


def _versions(python: Path) -> dict[str, str]:
    """Versions of all packages in an environment, by name."""
    code = (
        "import json, importlib.metadata as m\n"
        "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
    )
    # -P: what lies in the working folder is no package of the environment
    command = [str(python), "-P", "-c", code]
    done = subprocess.run(
        command, env=plain_variables(), capture_output=True, text=True, check=True
    )
    versions: dict[str, str] = json.loads(done.stdout)
    return versions
