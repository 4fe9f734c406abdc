"""Downloads into pooch's cache that go on where they were interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.files import file_hash, write_whole
from ase_biasgrad.progress import progress_bar

TIMEOUT = 30  # s without a byte
PIECE = 2**16


def fetch(url: str, name: str, known_hash: str | None = None) -> Path:
    """The file `name` of the cache; downloaded where it is not there, or has another hash.

    What an interrupted download has brought stays beside it, and the next call goes on from there.
    A file without a published hash has that of its download noted beside it. Raises `DataError` if
    the server does not answer, or not with the whole file, or that has another hash than
    `known_hash` or than before.
    """
    import pooch

    folder = Path(pooch.os_cache("ase-biasgrad"))
    note = folder / f"{name}.sha256"
    if known_hash is None and note.exists() and (folder / name).exists():
        known_hash = f"sha256:{note.read_text()}"
    try:
        path = Path(pooch.retrieve(url, known_hash, name, folder, downloader=resuming))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: the download failed ({error}); fetch it by hand and name it with --from"
        ) from error
    if known_hash is None:
        write_whole(note, file_hash(path))
    return path


def resuming(url: str, output_file: str, pooch: Any = None) -> None:
    """A downloader for `pooch.retrieve`; writes `output_file` when all bytes are there."""
    output = Path(output_file)
    partial = output.with_name(hashlib.sha256(url.encode()).hexdigest()[:16] + ".part")
    total = _continue(url, partial)
    if total is not None and partial.stat().st_size != total:
        had = partial.stat().st_size
        if had > total:
            partial.unlink()
        raise OSError(f"{url}: {had} of {total} bytes came; run the command again to go on")
    partial.replace(output)


def _continue(url: str, partial: Path) -> int | None:
    """Append what is missing to `partial`; the size of the whole file where the server tells."""
    import requests

    had = partial.stat().st_size if partial.exists() else 0
    # compressed transfers have no ranges that add up
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={had}-"} if had else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # nothing lies behind what we have
            size = answer.headers.get("Content-Range", "").rpartition("/")[2]
            return int(size) if size.isdigit() else had
        answer.raise_for_status()
        if answer.status_code not in (200, 206):
            raise OSError(f"{url}: answers {answer.status_code} {answer.reason}")
        if answer.status_code == 200:
            had = 0  # a server without ranges sends the whole file
        length = answer.headers.get("Content-Length")
        total = None if length is None else had + int(length)
        with (
            partial.open("ab" if had else "wb") as file,
            progress_bar(None, url, total=total, initial=had, unit="B", unit_scale=True) as bar,
        ):
            for piece in answer.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))
    return total
