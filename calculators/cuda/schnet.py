"""SchNet's energies and derivatives on a device, written out.

With y = x W, m_i = Σ_j w(d_ij) ∘ y_j, h = ssp(m A + a), x ← x + h B + b in every interaction,
the backward pass needs y and the slopes of ssp only. Tensors are `(members, n, width)`; dense
layers run in cuBLAS, everything else in fused kernels. Nothing here waits for the device or
depends on values on it, so a CUDA graph can hold all of it.
Formulas: Schütt et al. 2018, J. Chem. Phys. 148, 241722.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.calculators.cuda.activations import shifted_softplus
from ase_biasgrad.calculators.cuda.buffers import Buffers
from ase_biasgrad.calculators.cuda.geometry import Edges, radial_forces, within_cutoff
from ase_biasgrad.calculators.cuda.readout import device_readout, kernel_width, on_device
from ase_biasgrad.calculators.cuda.schnet_kernels import (
    convolve,
    convolve_backward,
    radial_slopes,
)
from ase_biasgrad.calculators.padding import packed_filters, widened
from ase_biasgrad.calculators.sampled_weights import schnet_weights


class CudaSchNet:
    """SchNet, one or several stacked: weights on the device, and the step."""

    def __init__(self, backbones: Sequence[Any], device: torch.device) -> None:
        weights = schnet_weights(backbones)
        self.table = weights.table
        self.members, self.layers = weights.hidden.shape[:2]
        features = weights.embedding.shape[2]
        width = kernel_width(features)
        embedding = widened(weights.embedding, width)
        inward = widened(weights.inward, width, width)
        self.embedding = on_device(embedding, device)  # (members, elements, width)
        first = np.einsum("mzf,mfg->mzg", embedding, inward[:, 0])
        self.first_inward = on_device(first, device)  # y of the first interaction
        # (members, layers, width, width) and (members, layers, width)
        self.inward = on_device(inward, device)
        self.hidden = on_device(widened(weights.hidden, width, width), device)
        self.hidden_bias = on_device(widened(weights.hidden_bias, width), device)
        self.outward = on_device(widened(weights.outward, width, width), device)
        self.outward_bias = on_device(widened(weights.outward_bias, width), device)
        self.readout = device_readout(weights.readout, width, device)
        lead = (self.members, self.layers)
        filters = packed_filters(self.table, lead, (1, features), width)
        self.filters = on_device(filters, device)  # (members, layers, rows, width)
        self.grid = torch.tensor(
            [float(backbones[0].cutoff), self.table.knots.spacing],
            dtype=torch.float64,
            device=device,
        )

    def step(self, buffers: Buffers, derivatives: bool) -> None:
        """Write energies, and with `derivatives` forces and virials, to `buffers.result`."""
        edges = within_cutoff(buffers, self.grid, self.table.intervals)
        x = self.embedding.index_select(1, buffers.numbers)
        y = [self.first_inward.index_select(1, buffers.numbers)]
        slopes: list[Tensor] = []
        for layer in range(self.layers):
            messages = convolve(y[layer], self.filters[:, layer], edges)
            h = torch.bmm(messages, self.hidden[:, layer])
            h, slope = shifted_softplus(h, self.hidden_bias[:, layer])
            slopes.append(slope)
            x.baddbmm_(h, self.outward[:, layer]).add_(self.outward_bias[:, layer, None])
            if layer + 1 < self.layers:
                y.append(torch.bmm(x, self.inward[:, layer + 1]))
        energies, gradient = self.readout(x)
        buffers.result[:, :, 0] = energies
        if derivatives:
            radial = self._backward(gradient, y, slopes, edges)
            radial_forces(edges, radial, self.grid, buffers.result)

    def _backward(
        self, gradient: Tensor, y: list[Tensor], slopes: list[Tensor], edges: Edges
    ) -> Tensor:
        """∂E/∂d `(members, capacity)` per spacing of the grid, from ∂E/∂x, which is used up."""
        radial = gradient.new_zeros(self.members, len(edges.place), dtype=torch.float64)
        for layer in range(self.layers - 1, -1, -1):
            of_h = torch.bmm(gradient, self.outward[:, layer].mT).mul_(slopes[layer])
            of_messages = torch.bmm(of_h, self.hidden[:, layer].mT)
            filters = self.filters[:, layer]
            if layer == 0:
                radial_slopes(y[0], of_messages, filters, edges, radial)
            else:
                of_y = convolve_backward(y[layer], of_messages, filters, edges, radial)
                gradient.baddbmm_(of_y, self.inward[:, layer].mT)
        return radial
