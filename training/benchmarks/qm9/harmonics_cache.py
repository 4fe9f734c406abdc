"""Spherical harmonics of graphs that do not change, kept in a file between runs.

Kept are the harmonics, `(highest_order + 1)²` numbers per edge (49 up to J = 6), and not the
contracted kernels (1092 between degrees 0 to 3): the constant couplings are applied on the fly.
A file's name is the digest of the order and of all edge vectors, sample by sample, so that it is
used for just those; HDF5's checksums refuse what was damaged since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.data.hdf5 import CHECKED, new_file
from ase_biasgrad.files import whole_file
from ase_biasgrad.progress import progress_bar
from ase_biasgrad.se3_transformer.bases import spherical_harmonics

EDGES_AT_ONCE = 100_000
CHUNK = 512  # edges with a checksum of their own


class CacheError(ValueError):
    """A damaged cache; the message names it."""


class HarmonicsCache:
    """Harmonics of samples with `edges` each, read from a file; `open_cache` makes one."""

    def __init__(self, path: Path, edges: Sequence[int]) -> None:
        self.path, self._start = path, np.concatenate([[0], np.cumsum(edges)]).astype(int)
        try:
            self._harmonics = h5py.File(path)["harmonics"]
            if self._harmonics.shape[:1] != (self._start[-1],):
                raise ValueError(f"it has {self._harmonics.shape[:1]} edges")
        except Exception as error:  # whatever h5py makes of a damaged file
            raise self._damaged(error) from error

    def read(self, samples: Sequence[int] | np.ndarray) -> Tensor:
        """Harmonics of the edges of `samples`, one after another, `(edges, orders)` float32.

        Raises
        ------
        CacheError
            If the file was damaged.
        """
        try:
            parts = [self._harmonics[self._start[k] : self._start[k + 1]] for k in samples]
        except Exception as error:
            raise self._damaged(error) from error
        return torch.from_numpy(np.concatenate(parts))

    def _damaged(self, error: Exception) -> CacheError:
        return CacheError(f"{self.path}: is damaged, delete it to have it made anew ({error})")


def digest(vectors: Sequence[np.ndarray], highest_order: int) -> str:
    """SHA-256 of the edge vectors `(e, 3)` of samples in order, as float32, and of the order."""
    whole = hashlib.sha256(f"{highest_order} {[len(edges) for edges in vectors]}".encode())
    for edges in vectors:
        whole.update((np.ascontiguousarray(edges, np.float32) + np.float32(0)).tobytes())  # no −0
    return whole.hexdigest()


def open_cache(
    folder: str | Path, vectors: Sequence[np.ndarray], highest_order: int, progress: bool = False
) -> HarmonicsCache:
    """The cache in `folder` of samples with edge `vectors` `(e, 3)`; made if it is not there."""
    path = Path(folder) / f"harmonics-{digest(vectors, highest_order)[:16]}.h5"
    edges = [len(sample) for sample in vectors]
    if not path.exists():
        _write(path, np.concatenate([np.zeros((0, 3)), *vectors]), highest_order, progress)
    return HarmonicsCache(path, edges)


def _write(path: Path, vectors: np.ndarray, highest_order: int, progress: bool) -> None:
    shape = (len(vectors), (highest_order + 1) ** 2)
    with whole_file(path) as temporary, new_file(temporary) as file:
        chunks = (CHUNK, shape[1])
        stored = file.create_dataset(
            "harmonics", shape, np.float32, chunks=chunks, maxshape=(None, None), **CHECKED
        )
        starts = range(0, len(vectors), EDGES_AT_ONCE)
        for start in progress_bar(starts, "harmonics", progress):
            block = torch.from_numpy(vectors[start : start + EDGES_AT_ONCE])
            harmonics = spherical_harmonics(block, highest_order)
            stored[start : start + len(block)] = harmonics.numpy()
