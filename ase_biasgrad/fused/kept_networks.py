"""Finished programs that are kept, so that filters are sampled once on a machine."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.fused.runtime import Compiled, CompiledNetwork
from ase_biasgrad.numerics.kept_files import keep, read_kept
from ase_biasgrad.numerics.splines import Knots
from ase_biasgrad.numerics.vector_memory import WIDTH, aligned_copy

SOURCES = Path(__file__).parent
MOST = 20  # files


def read_network(digest: str, dtype: np.dtype) -> CompiledNetwork | None:
    """The program that `keep_network` kept for a checkpoint of this digest, or None."""
    content = read_kept(SOURCES, _name(digest, dtype))
    if content is None:
        return None
    with np.load(BytesIO(content)) as arrays:
        fields = {key: arrays[key] for key in arrays.files}
    knots = Knots(float(fields.pop("cutoff")), int(fields.pop("count")))
    program: dict[str, Any] = {k: v if v.ndim else int(v) for k, v in fields.items()}
    program["weights"] = aligned_copy(program["weights"])
    return CompiledNetwork(Compiled(**program), knots)


def keep_network(digest: str, dtype: np.dtype, network: CompiledNetwork) -> None:
    """Keep a program; the oldest of many are forgotten."""
    file, knots = BytesIO(), network.knots
    np.savez(file, **vars(network.program), cutoff=knots.cutoff, count=knots.count)
    keep(SOURCES, _name(digest, dtype), file.getvalue(), MOST)


def _name(digest: str, dtype: np.dtype) -> str:
    # processors that share a folder may arrange weights in another way
    return f"{digest}.{np.dtype(dtype).name}.{WIDTH}.program"
