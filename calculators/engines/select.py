"""Choice of the engine: a fast one where it fits, else autograd."""

from __future__ import annotations

import warnings

import torch

from ase_biasgrad.backbones import Backbone
from ase_biasgrad.calculators.engines.base import Engine
from ase_biasgrad.calculators.engines.reference import ReferenceEngine
from ase_biasgrad.numerics.splines import SplineError

ENGINES = ("auto", "cpu", "reference")


def select_engine(
    backbones: list[Backbone], device: torch.device, dtype: torch.dtype, engine: str, skin: float
) -> Engine:
    """The engine for these backbones.

    The CPU engine evaluates SchNet, PaiNN and TensorNet; everything else runs by autograd.

    Raises
    ------
    ValueError
        If `engine` is not known, or does not fit what it was chosen for.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose from {ENGINES}")
    if engine == "reference" or (engine == "auto" and device.type == "cuda"):
        return ReferenceEngine(backbones, device, dtype, skin)
    from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine, fits

    obstacle = None
    if device.type != "cpu":
        obstacle = f"the device is {device}"
    elif not fits(backbones):
        obstacle = "it evaluates SchNet, PaiNN and TensorNet"
    else:
        try:
            return CpuEngine(backbones, dtype, skin)
        except SplineError as error:
            obstacle = f"its radial filters cannot be sampled: {error}"
            if engine == "auto":
                warnings.warn(f"the potential runs by autograd: {obstacle}", stacklevel=4)
    if engine != "auto":
        raise ValueError(f"engine={engine!r} does not fit: {obstacle}; use engine='auto'")
    return ReferenceEngine(backbones, device, dtype, skin)
