"""Memory that tensors leave stays with a process that trains."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_BLOCK = 2**25  # bytes; more than this older versions refuse
LARGEST_REST = 2**28  # bytes


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks up to `LARGEST_BLOCK` for the next tensors of their size, and up
    to `LARGEST_REST` of unused memory, from now on.

    Else it returns blocks of a few hundred kB to the system, which hands them out again page by
    page, each filled with zeros first: a tenth of a training step. Elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK):
        mallopt(M_TRIM_THRESHOLD, LARGEST_REST)
