"""Compiled kernels are those of the sources.

Numba compiles a function again when its own file has changed, not when one has changed whose
functions are compiled into it, as after a `git pull`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from ase_biasgrad.files import whole_file

CORE = Path(__file__).parent
# whose functions are compiled into kernels of other folders
EVERYWHERE = tuple(CORE / name for name in ("splines.py", "simd.py", "simd_activations.py"))


def forget_stale_kernels(folder: Path, others: Sequence[Path] = EVERYWHERE) -> None:
    """Delete what numba keeps beside the sources of `folder` if one of them, or of `others`, has
    changed since.

    Where the folder cannot be written numba keeps its files elsewhere, by the time of installation.
    """
    sources = [*sorted(folder.glob("*.py")), *others]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = folder / "__pycache__" / "kernels.sha256"
    with contextlib.suppress(OSError):
        if stamp.read_text() == digest:
            return
    with contextlib.suppress(OSError):
        for path in stamp.parent.glob("*.nb[ci]"):
            path.unlink(missing_ok=True)
        stamp.parent.mkdir(exist_ok=True)
        with whole_file(stamp) as temporary:
            temporary.write_text(digest)
