"""Dense layers in sequence for filters at knots, which depend on parameters alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ase_biasgrad.numerics.activations import Jet


def dense_chain(x: Tensor, layers: Sequence[nn.Module], jets: Sequence[Jet | None]) -> Tensor:
    """… f₂(W₂ f₁(W₁ x + b₁) + b₂) of x `(n, in)`, differentiable once, in the parameters.

    Parameters
    ----------
    x
        Constants.
    layers
        Linear ones; activations of their own are not applied.
    jets
        The activation after each layer, or None.
    """
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return _DenseChain.apply(tuple(jets), x, *parameters)


class _DenseChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, jets: tuple[Jet | None, ...], x: Tensor, *parameters: Tensor) -> Tensor:
        weights, shifts = parameters[::2], parameters[1::2]
        inputs, derivatives = [], []
        for weight, shift, jet in zip(weights, shifts, jets, strict=True):
            inputs.append(x)
            x = torch.addmm(shift, x, weight.t())
            if jet is not None:
                x, derivative, _ = jet(x)
                derivatives.append(derivative)
        ctx.jets = jets
        ctx.save_for_backward(*weights, *inputs, *derivatives)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,), count = cotangents, len(ctx.jets)
        saved = list(ctx.saved_tensors)
        weights, inputs, derivatives = saved[:count], saved[count : 2 * count], saved[2 * count :]
        gradients: list[Tensor] = []
        for k in reversed(range(count)):
            if ctx.jets[k] is not None:
                g = g * derivatives.pop()
            gradients = [g.t() @ inputs[k], g.sum(0), *gradients]
            if k > 0:
                g = g @ weights[k]
        return None, None, *gradients
