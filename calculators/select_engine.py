"""Which engine runs: a fused one where it fits, else autograd."""

from __future__ import annotations

import torch

from ase_biasgrad.backbones import Backbone
from ase_biasgrad.calculators.engine import Engine
from ase_biasgrad.calculators.reference_engine import ReferenceEngine

ENGINES = ("auto", "reference")


def select_engine(
    backbones: list[Backbone], device: torch.device, dtype: torch.dtype, engine: str, skin: float
) -> Engine:
    """The engine for these backbones.

    Raises
    ------
    ValueError
        If `engine` is not known.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose from {ENGINES}")
    return ReferenceEngine(backbones, device, dtype, skin)
