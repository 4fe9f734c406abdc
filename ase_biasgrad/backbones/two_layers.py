"""Two dense layers with an activation between them, with both derivatives written out.

y = W₂ f(W₁ x + b₁) + b₂. Autograd needs some twenty operations for the force loss of such a pair
of layers; here they are four functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ase_biasgrad.backbones.smooth_activations import Jet
from ase_biasgrad.backbones.wanted import is_wanted


def two_layers(x: Tensor, layers: nn.Sequential, jet: Jet) -> Tensor:
    """`(n, out)` of x `(n, in)`; differentiable twice, of that once in the parameters.

    `layers` are two linear ones; activations of their own are not applied.
    """
    first, second = layers
    parameters = (first.weight, first.bias, second.weight, second.bias)
    # the engine says for views, but not for leaves, whether a backward pass leads there
    return _TwoLayers.apply(jet, x, *(parameter.view_as(parameter) for parameter in parameters))


class _TwoLayers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, jet: Jet, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> Tensor:
        hidden, slope, curvature = jet(torch.addmm(b1, x, w1.t()))
        ctx.save_for_backward(x, w1, b1, w2, hidden, slope, curvature)
        return torch.addmm(b2, hidden, w2.t())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,) = cotangents
        x, w1, b1, w2, hidden, slope, curvature = ctx.saved_tensors
        of_x, of_hidden = _Slopes.apply(g, x, w1, b1, w2, slope, curvature)
        if not any(is_wanted(ctx, k) for k in range(1, 5)):
            return None, of_x, None, None, None, None
        if torch.is_grad_enabled():
            raise RuntimeError("two_layers has no second derivatives in its parameters")
        of_w1, of_w2 = of_hidden.t() @ x, g.t() @ hidden
        return None, of_x, of_w1, of_hidden.sum(0), of_w2, g.sum(0)


class _Slopes(torch.autograd.Function):
    """Cotangents of x and of what the activation is applied to, from that of y."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        slope: Tensor,
        curvature: Tensor,
    ) -> tuple[Tensor, Tensor]:
        passed = g @ w2
        of_hidden = passed * slope
        ctx.save_for_backward(g, x, w1, w2, slope, curvature, passed, of_hidden)
        ctx.mark_non_differentiable(of_hidden)
        return of_hidden @ w1, of_hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        g, x, w1, w2, slope, curvature, passed, of_hidden = ctx.saved_tensors
        outer = cotangents[0]
        change = outer @ w1.t()
        of_passed = change * slope
        bent = change.mul_(passed).mul_(curvature)
        of_w1 = torch.addmm(of_hidden.t() @ outer, bent.t(), x)
        return of_passed @ w2.t(), bent @ w1, of_w1, bent.sum(0), g.t() @ of_passed, None, None
