"""`SchNet` in its fused form."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ase_biasgrad.fused import layers
from ase_biasgrad.fused.base import FusedBackbone
from ase_biasgrad.fused.filters import dense_chain
from ase_biasgrad.fused.layers import Sum
from ase_biasgrad.fused.messages import CFConv, Components
from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.numerics.activations import softplus_jet
from ase_biasgrad.numerics.spline_coefficients import spline_coefficients


@cache
def scalar_of_layer(k: int) -> Components:
    """One component, with filter k."""
    return Components((k,))


class FusedSchNet(FusedBackbone):
    """`SchNet` for training."""

    name = "fused-schnet"

    def on_tape(self, graph: AtomGraph) -> Tensor:
        """See `FusedBackbone`."""
        modules: Any = self.of.representation
        blocks = modules.interactions
        tape, pairs, vectors = self.tape(graph)
        basis, envelope = self.constants()
        jets = softplus_jet, None
        filters = [dense_chain(basis, block.filter_network, jets) for block in blocks]
        values = torch.stack(filters, dim=1) * envelope.unsqueeze(2)  # (k, l, f)
        coefficients = tape.parameter(spline_coefficients(self.knots, values))
        embedded, which = self.embedded(graph)  # (elements, f)
        x = tape.parameter(embedded[which])  # (n, f)
        sent = tape.parameter(linear(embedded, blocks[0].in2f.weight)[which])
        for k, block in enumerate(blocks):
            if k > 0:
                sent = layers.linear(tape, x, block.in2f)
            received = tape.add(CFConv(pairs, sent, coefficients, scalar_of_layer(k)))
            change = layers.two_layers(tape, received, block.f2out, softplus_jet)
            x = tape.add(Sum(x, change))
        return self.energies(tape, x, vectors)
