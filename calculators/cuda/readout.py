"""The dense layers from features to energies, and the gradient at the features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.calculators.cuda.activations import silu
from ase_biasgrad.calculators.padding import widened
from ase_biasgrad.calculators.sampled_weights import Readout


@dataclass(frozen=True)
class DeviceReadout:
    """`Readout` on the device; hidden layers float32, the last one float64."""

    hidden: Tensor  # (members, layers, width, width)
    hidden_bias: Tensor  # (members, layers, width)
    last: Tensor  # (members, width, 1)
    last_bias: Tensor  # (members, 1)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies `(members, n)` in eV, float64, and ∂E/∂x; x `(members, n, width)`."""
        slopes = []
        for k in range(self.hidden.shape[1]):
            x, slope = silu(torch.bmm(x, self.hidden[:, k]), self.hidden_bias[:, k])
            slopes.append(slope)
        energies = torch.bmm(x.double(), self.last).squeeze(2) + self.last_bias
        gradient = self.last.mT.float().expand_as(x)
        for k in range(self.hidden.shape[1] - 1, -1, -1):
            gradient = torch.bmm(gradient * slopes[k], self.hidden[:, k].mT)
        return energies, gradient.contiguous()


def device_readout(readout: Readout, width: int, device: torch.device) -> DeviceReadout:
    """Weights padded with zeros to `width`."""
    return DeviceReadout(
        on_device(widened(readout.hidden, width, width), device),
        on_device(widened(readout.hidden_bias, width), device),
        torch.from_numpy(widened(readout.last, width)[..., None]).to(device),
        torch.from_numpy(readout.last_bias[:, None]).to(device),
    )


def kernel_width(features: int) -> int:
    """The width of rows in the kernels: a power of two, of which Triton makes its tiles."""
    return max(16, 1 << (features - 1).bit_length())


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """On the device as float32."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)
