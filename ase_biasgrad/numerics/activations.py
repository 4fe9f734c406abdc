"""Activations with first and second derivatives written out, for training on forces."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_biasgrad.numerics.simd import WIDTH
from ase_biasgrad.numerics.simd_activations import silu_jets, softplus_jets

# value, first and second derivative of an activation
Jet = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def silu(x: Tensor) -> Tensor:
    """x / (1 + e⁻ˣ), twice differentiable."""
    return _Activation.apply(x)


def softplus_jet(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of the shifted softplus."""
    if _has_vectors(x):
        return _jets(softplus_jets, x)
    sigmoid = torch.sigmoid(x)
    return torch.nn.functional.softplus(x).sub_(log(2.0)), sigmoid, sigmoid * (1 - sigmoid)


def silu_jet(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative of silu."""
    if _has_vectors(x):
        return _jets(silu_jets, x)
    sigmoid = torch.sigmoid(x)
    value = x * sigmoid
    rest = 1 - sigmoid
    first = torch.addcmul(sigmoid, value, rest)
    second = torch.addcmul(2 * sigmoid, value, 1 - 2 * sigmoid).mul_(rest)
    return value, first, second


def _has_vectors(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= WIDTH


def _jets(loop: Callable[..., None], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().contiguous()
    jet = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    loop(x.numpy(), *(part.numpy() for part in jet))
    return jet


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        value, first, second = silu_jet(x)
        ctx.save_for_backward(x, first, second)
        return value

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _Derivative.apply(cotangents[0], *ctx.saved_tensors)


class _Derivative(torch.autograd.Function):
    """cotangent · f′(x)."""

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(cotangent, first, second)
        return cotangent * first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        cotangent, first, second = ctx.saved_tensors
        (outer,) = cotangents
        return outer * first, outer * cotangent * second, None, None
