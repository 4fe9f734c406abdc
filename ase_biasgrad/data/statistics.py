"""Mean, spread and range of a label over a dataset of any size."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

from ase_biasgrad.data.dataset import Dataset


@dataclass(frozen=True)
class LabelStatistics:
    """Over all components of all frames that have the label, in the units of the dataset."""

    frames: int
    mean: float
    deviation: float  # standard deviation, ddof 0
    least: float
    largest: float


def label_statistics(dataset: Dataset, label: str) -> LabelStatistics:
    """Statistics of `label`, read in pieces.

    Pieces are merged by their means and squared deviations (Chan, Golub and LeVeque 1983), which
    stays exact for energies that are large against their spread.
    """
    frames, count, mean, squares, least, largest = 0, 0, 0.0, 0.0, inf, -inf
    for group in dataset.groups():
        frames += len(group) if group.has(label) else 0
        for block in group.blocks(label):
            if not block.size:
                continue
            here = float(block.mean())
            squares += float(((block - here) ** 2).sum())
            squares += (here - mean) ** 2 * count * block.size / (count + block.size)
            count += block.size
            mean += (here - mean) * block.size / count
            least, largest = min(least, float(block.min())), max(largest, float(block.max()))
    deviation = sqrt(squares / count) if count else 0.0
    return LabelStatistics(frames, mean, deviation, least, largest)
