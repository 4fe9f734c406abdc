"""Our dataset files as a format of `ase.io`; loading it also makes ASE know our calculator.

`ase.io.read("data.h5", index=":10")` gives `Atoms` with their labels: the file is known by its
first bytes, whatever its name. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ase.utils.plugins import ExternalIOFormat

from ase_biasgrad.calculators.registration import register

if TYPE_CHECKING:
    from ase import Atoms

register()

dataset_format = ExternalIOFormat(
    desc="ase-biasgrad dataset",
    code="+S",
    module="ase_biasgrad.io",
    glob="*.biasgrad.h5",
    magic=b"ase-biasgrad dataset",
)


def read_biasgrad(filename: str, index: int | slice = -1) -> Iterator[Atoms]:
    """Frames of a dataset in the order of writing.

    Raises
    ------
    ase_biasgrad.dataset.DataError
        If the file is no dataset of ours.
    """
    from ase_biasgrad.dataset import Dataset

    with Dataset(filename) as dataset:
        chosen = range(len(dataset))[index]
        for frame in [chosen] if isinstance(chosen, int) else chosen:
            yield dataset[frame].atoms()
