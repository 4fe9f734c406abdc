"""Numba kernels whose compiled code is kept between processes, and never outlives its sources.

Numba compiles a function again when its own file has changed, not when one has changed whose
functions are compiled into it; it writes at import, and cannot be imported where it finds no place
to write. Kernels decorated with `compiled` look for their code when they are first called.
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache

from ase_biasgrad.numerics.kept_files import source_digest, warn_once

BROKEN = (OSError, EOFError, ValueError, pickle.PickleError)  # raised by reading damaged files


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function to be compiled by Numba, without the interpreter's lock, and kept.

    A kernel may call functions of its own folder and of `numerics`: a change of any file in these
    makes its kept code stale. Without a place to write, it is compiled in every process.

    Parameters
    ----------
    **options
        Numba's (`numba.njit`).
    """

    def decorate(function: Callable[..., Any]) -> Any:
        kernel = njit(nogil=True, **options)(function)
        if kernel is not function:  # as with NUMBA_DISABLE_JIT
            kernel._cache = KernelCache(function)
        return kernel

    return decorate


class KernelCache(NullCache):
    """The compiled code of one function: one pair of files for each signature and all sources.

    Numba's own files hold all signatures of a function, and processes that write at once could
    exchange them; a name that has the signature and the sources in it belongs to one code.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Compiled code for a signature, or None."""
        files = self._files(sig, target_context.codegen())
        if files is None:
            return None
        try:
            return files.load_overload(sig, target_context)
        except BROKEN:
            Path(files._cache_file._index_path).unlink(missing_ok=True)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code, and remove what other sources left in this folder."""
        files = self._files(sig, data.codegen)
        if files is None:
            return
        try:
            files.save_overload(sig, data)
            _remove_stale(Path(files.cache_path), source_digest(self._folder))
        except OSError as error:
            warn_once(str(error))

    @property
    def _folder(self) -> Path:
        return Path(inspect.getfile(self._function)).parent

    def _files(self, sig: Any, codegen: Any) -> FunctionCache | None:
        try:
            files = FunctionCache(self._function)
        except RuntimeError:  # numba found no folder that it can write to
            warn_once("no folder can be written")
            return None
        stamp, key = source_digest(self._folder), str(files._index_key(sig, codegen))
        key = hashlib.sha256(key.encode()).hexdigest()[:16]
        name = f"{files._impl.filename_base}.{stamp}.{key}"
        files._cache_file = CheckedFiles(files.cache_path, name, stamp)
        return files


class CheckedFiles(IndexDataCacheFile):
    """Numba's files, with a digest before the compiled code: a flipped bit in it would be run."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:
        content = Path(self._data_path(name)).read_bytes()
        digest, content = content[:32], content[32:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"{name}: damaged")
        return pickle.loads(content)


@cache
def _remove_stale(folder: Path, stamp: str) -> None:
    for path in folder.glob("*.nb[ci]"):
        if f".{stamp}." not in path.name:
            path.unlink(missing_ok=True)
