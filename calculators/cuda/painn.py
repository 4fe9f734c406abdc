"""PaiNN's energies and derivatives on a device, written out.

Scalars q `(members, n, width)`, vectors μ `(members, 3 n, width)`; formulas and names as in
`calculators/cpu/painn.py`. Dense layers run in cuBLAS, everything else in fused kernels. Nothing
here waits for the device or depends on values on it, so a CUDA graph can hold all of it.
Formulas: Schütt, Unke, Gastegger 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ase_biasgrad.calculators.cuda.activations import silu
from ase_biasgrad.calculators.cuda.buffers import Buffers
from ase_biasgrad.calculators.cuda.geometry import Edges, directed_forces, within_cutoff
from ase_biasgrad.calculators.cuda.painn_kernels import (
    mix,
    mixing_gradients,
    norms_and_products,
    send,
    send_backward,
    send_first,
    send_first_backward,
    vector_gradients,
)
from ase_biasgrad.calculators.cuda.readout import device_readout, kernel_width, on_device
from ase_biasgrad.calculators.padding import (
    packed_filters,
    widened,
    widened_matrix,
    widened_parts,
)
from ase_biasgrad.calculators.sampled_weights import first_context, painn_weights


@dataclass(frozen=True)
class Interaction:
    """What the backward pass needs of one interaction."""

    x: Tensor  # context, (members, n, 3 width)
    context_slopes: Tensor  # of silu; (members, n, width)
    mu: Tensor  # before the messages; not used in the first interaction
    vw: Tensor  # (members, 3 n, 2 width)
    products: Tensor  # (members, n, width)
    mixing_slopes: Tensor  # of silu
    a: Tensor  # (members, n, 3 width)


class CudaPaiNN:
    """PaiNN, one or several stacked: weights on the device, and the step."""

    def __init__(self, backbones: Sequence[Any], device: torch.device) -> None:
        weights = painn_weights(backbones)
        self.table, self.epsilon = weights.table, weights.epsilon
        self.members, self.layers = weights.context1.shape[:2]
        features = weights.embedding.shape[2]
        width = kernel_width(features)
        embedding = widened(weights.embedding, width)
        context = (
            widened_matrix(weights.context1, features, width),
            widened_parts(weights.context1_bias, features, width),
            widened_matrix(weights.context2, features, width),
            widened_parts(weights.context2_bias, features, width),
        )
        self.embedding = on_device(embedding, device)  # (members, elements, width)
        # context of the first interaction, (members, elements, 3 width)
        self.first_context = on_device(first_context(embedding, *context), device)
        # (members, layers, inputs, outputs) and (members, layers, outputs)
        self.context1, self.context1_bias, self.context2, self.context2_bias = (
            on_device(array, device) for array in context
        )
        self.mix = on_device(widened_matrix(weights.mix, features, width), device)
        self.mixing1 = on_device(widened_matrix(weights.mixing1, features, width), device)
        self.mixing1_bias = on_device(widened_parts(weights.mixing1_bias, features, width), device)
        self.mixing2 = on_device(widened_matrix(weights.mixing2, features, width), device)
        self.mixing2_bias = on_device(widened_parts(weights.mixing2_bias, features, width), device)
        self.readout = device_readout(weights.readout, width, device)
        lead = (self.members, self.layers)
        filters = packed_filters(self.table, lead, (3, features), width)
        self.filters = on_device(filters, device)  # (members, layers, rows, 3 width)
        self.grid = torch.tensor(
            [float(backbones[0].cutoff), self.table.knots.spacing],
            dtype=torch.float64,
            device=device,
        )

    def step(self, buffers: Buffers, derivatives: bool) -> None:
        """Write energies, and with `derivatives` forces and virials, to `buffers.result`."""
        edges = within_cutoff(buffers, self.grid, self.table.intervals)
        q = self.embedding.index_select(1, buffers.numbers)
        x = self.first_context.index_select(1, buffers.numbers)
        mu = context_slopes = q.new_empty(0)  # all vectors are zero at first
        done: list[Interaction] = []
        for layer in range(self.layers):
            filters = self.filters[:, layer]
            if layer == 0:
                middle = send_first(q, x, filters, edges)
            else:
                x, context_slopes = self._context(q, layer)
                middle = send(q, x, mu, filters, edges)
            vw = torch.bmm(middle, self.mix[:, layer])
            joint, products = norms_and_products(q, vw, self.epsilon)
            hidden = torch.bmm(joint, self.mixing1[:, layer])
            hidden, mixing_slopes = silu(hidden, self.mixing1_bias[:, layer])
            a = torch.baddbmm(self.mixing2_bias[:, layer, None], hidden, self.mixing2[:, layer])
            done.append(Interaction(x, context_slopes, mu, vw, products, mixing_slopes, a))
            mu = mix(q, middle, a, vw, products)
        energies, gradient = self.readout(q)
        buffers.result[:, :, 0] = energies
        if derivatives:
            slopes, turns = self._backward(gradient, torch.zeros_like(mu), done, edges)
            directed_forces(edges, slopes, turns, self.grid, buffers.result)

    def _context(self, q: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """x = silu(q A + a) B + b `(members, n, 3 width)`, and the slopes of silu."""
        hidden = torch.bmm(q, self.context1[:, layer])
        hidden, slopes = silu(hidden, self.context1_bias[:, layer])
        bias = self.context2_bias[:, layer, None]
        return torch.baddbmm(bias, hidden, self.context2[:, layer]), slopes

    def _backward(
        self, gq: Tensor, gmu: Tensor, done: list[Interaction], edges: Edges
    ) -> tuple[Tensor, Tensor]:
        """∂E/∂d `(members, capacity)` per spacing of the grid and ∂E/∂u `(members, 3, capacity)`.

        From ∂E/∂q and ∂E/∂μ, which are used up.
        """
        capacity = len(edges.place)
        slopes = gq.new_zeros(self.members, capacity, dtype=torch.float64)
        turns = gq.new_zeros(self.members, 3, capacity, dtype=torch.float64)
        for layer in range(self.layers - 1, -1, -1):
            of, filters = done[layer], self.filters[:, layer]
            ga = mixing_gradients(gq, gmu, of.vw, of.products)
            of_hidden = torch.bmm(ga, self.mixing2[:, layer].mT).mul_(of.mixing_slopes)
            gjoint = torch.bmm(of_hidden, self.mixing1[:, layer].mT)
            gvw = vector_gradients(gq, gmu, gjoint, of.a, of.vw, self.epsilon)
            gmu.baddbmm_(gvw, self.mix[:, layer].mT)
            if layer == 0:
                send_first_backward(of.x, gq, gmu, filters, edges, slopes, turns)
            else:
                gx, gmu = send_backward(of.x, of.mu, gq, gmu, filters, edges, slopes, turns)
                of_hidden = torch.bmm(gx, self.context2[:, layer].mT).mul_(of.context_slopes)
                gq.baddbmm_(of_hidden, self.context1[:, layer].mT)
        return slopes, turns
