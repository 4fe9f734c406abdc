"""Calls of compiled functions, run by one thread or by several.

Each call does one block of the atoms. Several threads share the blocks: compiled code does not hold
the interpreter's lock. OpenMP would be a little cheaper to start, but
its threads do not survive a fork and its settings are torch's, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

# below this many atoms, handing out work costs more than it saves
THREADS_FROM = 48
_pool: tuple[int, int, ThreadPoolExecutor] | None = None
_fixed: int | None = None  # threads to use, whatever torch may


def blocks_for(atoms: int) -> int:
    """Number of blocks to cut the work into: one for each thread, 16 atoms each or more."""
    return 1 if atoms < THREADS_FROM else max(1, min(threads_allowed(), atoms // 16))


def threads_allowed() -> int:
    """Threads to use: as many as torch may, where it is loaded (`torch.set_num_threads`).

    Elsewhere the first number of `OMP_NUM_THREADS`, or else as many as this process may use cores.
    """
    if _fixed is not None:
        return _fixed
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, int(asked)) if asked.isdecimal() else _cores()


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Use `count` threads, however many torch is given meanwhile."""
    global _fixed
    before, _fixed = _fixed, count
    try:
        yield
    finally:
        _fixed = before


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def together(calls: Sequence[Callable[[], None]]) -> None:
    """Call all at the same time, each on a thread of its own, and wait for all, errors or not."""
    first, *others = calls
    waiting = [_threads(len(others)).submit(call) for call in others]
    try:
        first()
    finally:
        errors = [other.exception() for other in waiting]
    for error in filter(None, errors):
        raise error


def _threads(count: int) -> ThreadPoolExecutor:
    """At least `count` threads of this process."""
    from concurrent.futures import ThreadPoolExecutor

    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < count:
        _pool = os.getpid(), count, ThreadPoolExecutor(count, "biasgrad")
    return _pool[2]
