"""Spherical harmonics of graphs that do not change, kept in a file between runs.

Kept are the harmonics, `(highest_order + 1)²` numbers per edge (49 up to J = 6), and not the
contracted kernels (1092 between degrees 0 to 3): the constant couplings are applied on the fly.
Each sample is known by a digest of its edge vectors in order, so that a cache of other positions,
another order of atoms, edges or samples, or for other degrees is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ase_biasgrad.files import whole_file
from ase_biasgrad.se3_transformer.bases import spherical_harmonics

FORMAT, VERSION = "ase-biasgrad spherical harmonics", 1
EDGES_AT_ONCE = 100_000


class CacheError(ValueError):
    """A cache that does not belong to the data at hand; the message says in what it differs."""


class HarmonicsCache:
    """Harmonics of `m` samples, read from a file; use `open_cache` to get one.

    Attributes
    ----------
    path
        The file.
    highest_order
        Of the harmonics.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CacheError(f"{self.path}: is damaged or no HDF5 file: {error}") from error
        if self._file.attrs.get("format") != FORMAT or self._file.attrs["version"] != VERSION:
            self.close()
            raise CacheError(f"{self.path}: is no cache of harmonics of this version")
        self.highest_order = int(self._file.attrs["highest_order"])
        self._harmonics = self._file["harmonics"]
        self._start = self._file["start"][()]  # (m + 1,)
        self._digests = self._file["digests"][()]  # (m, 32)

    def __len__(self) -> int:
        return len(self._digests)

    def __enter__(self) -> HarmonicsCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def bytes_per_edge(self) -> float:
        """What the harmonics of an edge take in the file."""
        return self._harmonics.id.get_storage_size() / max(1, self._start[-1])

    def check(self, vectors: Sequence[np.ndarray], highest_order: int) -> None:
        """Raise `CacheError` unless this is the cache of samples with edge `vectors` `(e, 3)`."""
        if self.highest_order != highest_order:
            raise CacheError(
                f"{self.path}: holds harmonics up to order {self.highest_order}, and "
                f"{highest_order} is needed; {_REMEDY}"
            )
        if len(self) != len(vectors):
            raise CacheError(
                f"{self.path}: holds {len(self)} samples, and the data has {len(vectors)}; "
                f"{_REMEDY}"
            )
        for sample, edges in enumerate(vectors):
            if self._digests[sample].tobytes() != digest(edges):
                raise CacheError(
                    f"{self.path}: sample {sample} has other positions, or another order of atoms "
                    f"or edges, than in the data; {_REMEDY}"
                )

    def read(self, samples: Sequence[int] | np.ndarray) -> Tensor:
        """Harmonics of the edges of `samples`, one after another, `(edges, orders)` float32."""
        parts = [self._harmonics[self._start[k] : self._start[k + 1]] for k in samples]
        return torch.from_numpy(np.concatenate(parts))


_REMEDY = "name another file, or delete this one to have it made anew"


def digest(vectors: np.ndarray) -> bytes:
    """SHA-256 of edge vectors `(e, 3)` in order, as float32."""
    values = np.ascontiguousarray(vectors, np.float32) + np.float32(0)  # −0 becomes 0
    return hashlib.sha256(values.tobytes()).digest()


def open_cache(
    path: str | Path, vectors: Sequence[np.ndarray], highest_order: int, progress: bool = False
) -> HarmonicsCache:
    """The cache at `path` of samples with edge `vectors` `(e, 3)`; made first if it is not there.

    Raises
    ------
    CacheError
        If the file there belongs to other data.
    """
    path = Path(path)
    if not path.exists():
        _write(path, vectors, highest_order, progress)
    cache = HarmonicsCache(path)
    try:
        cache.check(vectors, highest_order)
    except CacheError:
        cache.close()
        raise
    return cache


def _write(path: Path, vectors: Sequence[np.ndarray], highest_order: int, progress: bool) -> None:
    start = np.concatenate([[0], np.cumsum([len(edges) for edges in vectors])]).astype(np.int64)
    orders = (highest_order + 1) ** 2
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["highest_order"] = highest_order
        file["start"] = start
        digests = b"".join(digest(edges) for edges in vectors)
        file["digests"] = np.frombuffer(digests, np.uint8).reshape(len(vectors), 32)
        stored = file.create_dataset("harmonics", (int(start[-1]), orders), np.float32)
        first = 0
        with tqdm(total=len(vectors), desc="harmonics", disable=not progress, leave=False) as bar:
            while first < len(vectors):
                # as many whole samples as fit, one at least
                last = int(np.searchsorted(start, start[first] + EDGES_AT_ONCE, "right")) - 1
                last = max(last, first + 1)
                block = np.concatenate(vectors[first:last]).astype(np.float64)
                harmonics = spherical_harmonics(torch.from_numpy(block), highest_order)
                stored[start[first] : start[last]] = harmonics.numpy()
                bar.update(last - first)
                first = last
