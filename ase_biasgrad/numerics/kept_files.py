"""Files that spare work at the next start: compiled code, and programs of networks.

Each name has the digest of the sources in it that the content was made by, so that no content
outlives them, and each file begins with a digest of its content.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from functools import cache
from pathlib import Path

from ase_biasgrad.files import whole_file

NUMERICS = Path(__file__).parent
DIGEST = 32  # bytes


@cache
def source_digest(folder: Path) -> str:
    """Digest of the Python files in a folder and in `numerics`, when first asked for."""
    files = [*sorted(folder.glob("*.py")), *sorted(NUMERICS.glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


@cache
def folder_for(sources: Path) -> Path | None:
    """Folder for files made by the sources in a folder; None if no place can be written.

    In `NUMBA_CACHE_DIR`, if it is set; else beside the sources, or in the user's cache.
    """
    own = hashlib.sha256(str(sources).encode()).hexdigest()[:16]
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        places = [Path(chosen) / own]
    else:
        places = [sources / "__pycache__", _user_cache() / "ase-biasgrad" / own]
    return next(filter(_can_be_written, places), None)


def _user_cache() -> Path:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def read_kept(sources: Path, name: str) -> bytes | None:
    """Content of a file that `keep` wrote, or None if there is none, or it is damaged."""
    folder = folder_for(sources)
    if folder is None:
        return None
    try:
        stored = (folder / f"{name}.{source_digest(sources)}").read_bytes()
    except OSError:
        return None
    content = stored[DIGEST:]
    return content if hashlib.sha256(content).digest() == stored[:DIGEST] else None


def keep(sources: Path, name: str, content: bytes, most: int | None = None) -> None:
    """Write a file for `read_kept`, and remove those of its kind that other sources made.

    The kind is what the name ends with after a dot. Of more than `most` files of it, the oldest
    go, too. Without a place to write, nothing happens but a warning.
    """
    folder, kind, stamp = folder_for(sources), name.rpartition(".")[2], source_digest(sources)
    try:
        if folder is None:
            raise OSError("no folder can be written")
        with whole_file(folder / f"{name}.{stamp}") as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        ours = sorted(folder.glob(f"*.{kind}.*"), key=_age)
        current = [path for path in ours if path.name.endswith(f".{stamp}")]
        for path in {*ours} - {*current[:most]}:
            path.unlink(missing_ok=True)
    except OSError as error:
        warn_once(str(error))


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:  # removed by another process
        return 0.0


@cache
def warn_once(problem: str) -> None:
    """Warn that nothing can be kept."""
    message = (
        f"numba's cache cannot be used ({problem}): kernels are compiled anew in every process, "
        "which takes up to a minute; set NUMBA_CACHE_DIR to a folder of yours to keep them"
    )
    warnings.warn_explicit(message, UserWarning, "ase_biasgrad", 0)  # one line, without source
