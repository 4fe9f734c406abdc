"""Which engine runs: a fused one where it fits, else autograd."""

from __future__ import annotations

import warnings

import torch

from ase_biasgrad.backbones import Backbone
from ase_biasgrad.calculators.engine import Engine
from ase_biasgrad.calculators.reference_engine import ReferenceEngine

ENGINES = ("auto", "cpu", "reference")


def select_engine(
    backbones: list[Backbone], device: torch.device, dtype: torch.dtype, engine: str, skin: float
) -> Engine:
    """The engine for these backbones.

    Fused engines work in float32 and on SchNet and PaiNN, committees of one shape included;
    everything else is evaluated by autograd.

    Raises
    ------
    ValueError
        If `engine` is not known, or does not fit what it was chosen for.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose from {ENGINES}")
    obstacle = _obstacle(backbones, device, dtype)
    if engine == "cpu" and obstacle:
        raise ValueError(f"engine='cpu' does not fit: {obstacle}; use engine='auto'")
    if engine == "reference" or obstacle:
        return ReferenceEngine(backbones, device, dtype, skin)
    from ase_biasgrad.calculators.cpu.engine import CpuEngine
    from ase_biasgrad.splines import SplineError

    try:
        return CpuEngine(backbones, skin)
    except SplineError as error:
        if engine == "cpu":
            raise
        warnings.warn(
            f"the radial filters cannot be tabulated, so autograd evaluates them: {error}",
            stacklevel=4,
        )
        return ReferenceEngine(backbones, device, dtype, skin)


def _obstacle(backbones: list[Backbone], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no fused engine can run, if so."""
    from ase_biasgrad.calculators.sampled_weights import fits

    if dtype != torch.float32:
        return "it works in float32"
    if device.type != "cpu":
        return f"it works on the CPU, not on {device}"
    if not fits(backbones):
        return "it evaluates SchNet and PaiNN, in a committee all of one shape"
    return None
