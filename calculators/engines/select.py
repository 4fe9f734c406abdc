"""Choice of the engine: a fast one where it fits, else autograd."""

from __future__ import annotations

import warnings

import torch

from ase_biasgrad.backbones import Backbone
from ase_biasgrad.calculators.engines import layered
from ase_biasgrad.calculators.engines.base import Engine
from ase_biasgrad.calculators.engines.reference import ReferenceEngine
from ase_biasgrad.calculators.engines.weights import fits
from ase_biasgrad.numerics.splines import SplineError

ENGINES = ("auto", "cpu", "layered", "reference")


def select_engine(
    backbones: list[Backbone], device: torch.device, dtype: torch.dtype, engine: str, skin: float
) -> Engine:
    """The engine for these backbones.

    Fused engines work in float32 and on SchNet and PaiNN, committees of one shape included; the
    layered engine on TensorNet; everything else is evaluated by autograd.

    Raises
    ------
    ValueError
        If `engine` is not known, or does not fit what it was chosen for.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose from {ENGINES}")
    if engine == "reference" or (engine == "auto" and device.type == "cuda"):
        return ReferenceEngine(backbones, device, dtype, skin)
    wanted = engine
    if engine == "auto":
        wanted = "layered" if layered.fits(backbones) else "cpu"
    obstacle = _obstacle(wanted, backbones, device, dtype)
    if obstacle is None:
        try:
            return _made(wanted, backbones, device, dtype, skin)
        except SplineError as error:
            obstacle = f"its radial filters cannot be sampled: {error}"
            if engine == "auto":
                warnings.warn(f"the potential runs by autograd: {obstacle}", stacklevel=4)
    if engine != "auto":
        raise ValueError(f"engine={engine!r} does not fit: {obstacle}; use engine='auto'")
    return ReferenceEngine(backbones, device, dtype, skin)


def _obstacle(
    engine: str, backbones: list[Backbone], device: torch.device, dtype: torch.dtype
) -> str | None:
    """Reason why this engine cannot run, or None."""
    if device.type != "cpu":
        return f"the device is {device}"
    if engine == "layered":
        return None if layered.fits(backbones) else "it evaluates TensorNet"
    if dtype != torch.float32:
        return "it works in float32"
    if not fits(backbones):
        return "it evaluates SchNet and PaiNN, in a committee all of one shape"
    return None


def _made(
    engine: str, backbones: list[Backbone], device: torch.device, dtype: torch.dtype, skin: float
) -> Engine:
    if engine == "layered":
        return layered.LayeredEngine(backbones, dtype, skin)
    from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine

    return CpuEngine(backbones, skin)
