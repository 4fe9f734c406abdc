"""Which frames make up each batch: seeded, resumable, and the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from ase_biasgrad.training.frames.device_frames import DeviceFrames


class EpochBatches(Sampler[list[int]]):
    """Batches of frame places; the order depends on (seed, epoch) alone.

    Of each global batch of `batch_size · world_size` frames, process `rank` takes its share, so
    that several processes see what one with the larger batch would see. With several processes
    a last incomplete global batch is left out.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        if world_size > 1 and n < batch_size * world_size:
            raise ValueError(
                f"{n} frames do not fill one batch of {batch_size} on each of {world_size} "
                "processes; lower batch_size or the number of devices"
            )

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        share = self.batch_size * self.world_size
        return -(-self.n // share) if self.world_size == 1 else self.n // share

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.n)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        share = self.batch_size * self.world_size
        for k in range(len(self)):
            mine = order[k * share : (k + 1) * share]
            if self.world_size > 1:
                mine = mine[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
            yield mine.tolist()


def batch_loader(frames: DeviceFrames, batches: EpochBatches) -> DataLoader[Any]:
    """A loader that yields `Batch` objects, gathered on the device of `frames`."""
    return DataLoader(frames, sampler=batches, batch_size=None, num_workers=0)
