"""Choice of the engine: a fast one where it fits, else autograd."""

from __future__ import annotations

import warnings

import numpy as np

from ase_biasgrad.calculators.engines.base import Engine
from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine, fits
from ase_biasgrad.lazy import required
from ase_biasgrad.numerics.splines import SplineError
from ase_biasgrad.potential_arrays import NetworkArrays

ENGINES = ("auto", "cpu", "reference")


def select_engine(
    networks: list[NetworkArrays], device: str, dtype: str, engine: str, skin: float
) -> Engine:
    """The engine for these networks.

    The CPU engine evaluates SchNet, PaiNN and TensorNet; everything else runs by autograd. Raises
    `ValueError` if `engine` is not known, or does not fit what it was chosen for.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose from {ENGINES}")
    if engine == "reference" or (engine == "auto" and device.startswith("cuda")):
        return _by_autograd(networks, device, dtype, skin)
    obstacle = None
    if not device.startswith("cpu"):
        obstacle = f"the device is {device}"
    elif not fits(networks):
        obstacle = "it evaluates SchNet, PaiNN and TensorNet"
    else:
        try:
            return CpuEngine(networks, np.dtype(dtype), skin)
        except SplineError as error:
            obstacle = f"its radial filters cannot be sampled: {error}"
            if engine == "auto":
                warnings.warn(f"the potential runs by autograd: {obstacle}", stacklevel=4)
    if engine != "auto":
        raise ValueError(f"engine={engine!r} does not fit: {obstacle}; use engine='auto'")
    return _by_autograd(networks, device, dtype, skin)


def _by_autograd(networks: list[NetworkArrays], device: str, dtype: str, skin: float) -> Engine:
    torch = required("torch", "evaluating this potential by autograd")

    from ase_biasgrad.calculators.engines.reference import ReferenceEngine
    from ase_biasgrad.potential import backbone_of

    kind = {"float32": torch.float32, "float64": torch.float64}[dtype]
    # what is made in inference mode could not be differentiated afterwards
    with torch.inference_mode(False):
        backbones = [backbone_of(network) for network in networks]
        return ReferenceEngine(backbones, torch.device(device), kind, skin)
