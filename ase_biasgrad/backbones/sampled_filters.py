"""SchNet's filter networks at the knots of splines, all layers at once, with their derivative.

On the CPU; they depend on nothing but parameters, so that one derivative is all they need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ase_biasgrad.backbones.smooth_activations import softplus_jet
from ase_biasgrad.spline_coefficients import solve_in_place
from ase_biasgrad.splines import Knots


def sampled_filters(
    knots: Knots, basis: Tensor, envelope: Tensor, networks: Sequence[nn.Sequential]
) -> Tensor:
    """Spline coefficients `(rows, l, f)` of l filters, each W₂ f(W₁ basis + b₁) + b₂.

    Parameters
    ----------
    knots
        Of the splines.
    basis, envelope
        Radial basis `(rows, k)` and cutoff function `(rows, 1)` at `knots.distances()`.
    networks
        Two linear layers each, of f features.
    """
    layers = [layer for network in networks for layer in network]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return _SampledFilters.apply(knots, basis, envelope, *parameters)


class _SampledFilters(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, knots: Knots, basis: Tensor, envelope: Tensor, *parameters: Tensor
    ) -> Tensor:
        first, shifts, second, last = (parameters[k::4] for k in range(4))
        inner = torch.addmm(torch.cat(shifts), basis, torch.cat(first).t())  # (rows, l f)
        hidden, slope, _ = softplus_jet(inner)
        rows = torch.empty_like(inner)
        parts = zip(rows.chunk(len(second), 1), hidden.chunk(len(second), 1), strict=True)
        for (row, of), weight, shift in zip(parts, second, last, strict=True):
            torch.addmm(shift, of, weight.t(), out=row)
        rows *= envelope
        solve_in_place(knots, rows)
        ctx.knots = knots
        ctx.save_for_backward(basis, envelope, hidden, slope, *second)
        return rows.view(len(rows), len(second), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        basis, envelope, hidden, slope, *second = ctx.saved_tensors
        g = cotangents[0].reshape(len(hidden), -1).clone()
        solve_in_place(ctx.knots, g, transposed=True)
        g *= envelope
        of_hidden = torch.empty_like(hidden)
        count = len(second)
        chunks = zip(g.chunk(count, 1), of_hidden.chunk(count, 1), second, strict=True)
        for part, of, weight in chunks:
            torch.mm(part, weight, out=of)
        of_hidden *= slope
        of_first, of_shifts = of_hidden.t() @ basis, of_hidden.sum(0)
        of_last = g.sum(0)
        gradients = [
            gradient
            for part, of, w, b, last in zip(
                g.chunk(count, 1),
                hidden.chunk(count, 1),
                of_first.chunk(count),
                of_shifts.chunk(count),
                of_last.chunk(count),
                strict=True,
            )
            for gradient in (w, b, part.t() @ of, last)
        ]
        return None, None, None, *gradients
