"""Kernels in phases, run by one thread or by several.

A kernel is a compiled function `phase(kind, member, layer, block, blocks, *arrays)` that does one
block of one phase; a plan lists the phases as rows `(kind, member, layer)`. One thread runs the
whole plan in compiled code. Several share the blocks of each phase: compiled code does not hold
the interpreter's lock. OpenMP would be a little cheaper to start, but its threads do not survive
a fork and its settings are torch's, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

# below this many atoms, handing out work costs more than it saves
THREADS_FROM = 200
# what all threads may take for messages of their own, in bytes
MOST_MEMORY = 2**28
_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def blocks_for(atoms: int, bytes_per_block: int) -> int:
    """Number of blocks to cut the work into: at most as many as torch may use threads."""
    if atoms < THREADS_FROM:
        return 1
    return max(1, min(torch.get_num_threads(), MOST_MEMORY // max(1, bytes_per_block)))


def run(
    whole: Callable[..., None],
    phase: Callable[..., None],
    plan: np.ndarray,
    blocks: int,
    arrays: tuple[Any, ...],
) -> None:
    """Run all phases of `plan`; `whole(plan, *arrays)` does it on one thread."""
    if blocks == 1:
        whole(plan, *arrays)
        return
    pool = _threads(blocks - 1)
    for kind, member, layer in plan.tolist():
        others = [
            pool.submit(phase, kind, member, layer, block, blocks, *arrays)
            for block in range(1, blocks)
        ]
        phase(kind, member, layer, 0, blocks, *arrays)
        for other in others:
            other.result()


def _threads(count: int) -> ThreadPoolExecutor:
    """At least `count` threads of this process."""
    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < count:
        _pool = os.getpid(), count, ThreadPoolExecutor(count, "biasgrad")
    return _pool[2]
