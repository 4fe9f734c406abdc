"""Files that appear whole and replace nothing unasked, and their digests."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_existing(
    output: str | Path, overwrite: bool, inputs: Iterable[str | Path | None] = ()
) -> None:
    """Refuse a file that exists unless `overwrite`, and one of `inputs` in any case.

    Raises `FileExistsError` if the file exists (the message says how to go on), and
    `FileNotFoundError` if its folder does not exist, and `IsADirectoryError` if it is a folder,
    which is never replaced, and `ValueError` if it is an input, under whatever name.
    """
    refuse_own_input(output, inputs)
    if os.path.lexists(output) and not overwrite:
        raise FileExistsError(f"{output}: exists; say --overwrite to replace it, or name another")
    if os.path.isdir(output):
        raise IsADirectoryError(f"{output}: is a folder; name a file")
    _require_folder(Path(output))


def refuse_own_input(output: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output that is an input, also by a link, or an existing file in a folder of input.

    Raises `ValueError` naming both.
    """
    if not os.path.exists(output):
        return
    resolved = Path(output).resolve()
    for source in inputs:
        if source is None or not os.path.exists(source):
            continue
        in_folder = os.path.isdir(source) and resolved.is_relative_to(Path(source).resolve())
        if in_folder or os.path.samefile(output, source):
            raise ValueError(f"{output}: is what is read ({source}); write to another file")


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; make it first")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it to `path` only if the block succeeds.

    On any exception the temporary file is removed and an existing `path` is left as it was. Raises
    `FileNotFoundError` if the folder of `path` does not exist.
    """
    path = Path(path)
    _require_folder(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    """The process's umask (which can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
