"""Our dataset files as a format of `ase.io`.

`ase.io.read("data.h5", index=":10")` gives `Atoms` with their labels: the file is known by its
first bytes, whatever its name. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


def read_biasgrad(filename: str, index: int | slice = -1) -> Iterator[Atoms]:
    """Frames of a dataset in the order of writing.

    Raises `DataError` if the file is no dataset of ours.
    """
    from ase_biasgrad.data.dataset import Dataset

    with Dataset(filename) as dataset:
        chosen = range(len(dataset))[index]
        for frame in [chosen] if isinstance(chosen, int) else chosen:
            yield dataset[frame].atoms()
