"""`PaiNN` in its fused form."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ase_biasgrad.fused import layers
from ase_biasgrad.fused.base import FusedBackbone
from ase_biasgrad.fused.layers import Columns, Joined, Sum
from ase_biasgrad.fused.messages import Components, Convolve, Lift
from ase_biasgrad.fused.tape import Value
from ase_biasgrad.fused.vectors import Norms, Receive, Send, Updates
from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.numerics.activations import silu_jet
from ase_biasgrad.numerics.spline_coefficients import spline_coefficients


@cache
def vectors_of_layer(k: int) -> tuple[Components, Components, Components]:
    """Components of layer k: scalar, direction, scalar and vector."""
    return (
        Components((3 * k,)),
        Components((3 * k + 1,) * 3, (-1, -1, -1)),
        Components((3 * k, *(3 * k + 2,) * 3)),
    )


class FusedPaiNN(FusedBackbone):
    """`PaiNN` for training."""

    name = "fused-painn"

    def prepared(self, basis: Tensor, envelope: Tensor) -> tuple[Tensor, ...]:
        """Spline coefficients `(rows, functions + 1)` of the inputs of the filter network, which
        is one linear layer: those of its outputs follow."""
        inputs = torch.cat([envelope * basis, envelope], dim=1)
        return (spline_coefficients(self.knots, inputs),)

    def on_tape(self, graph: AtomGraph) -> Tensor:
        """See `FusedBackbone`."""
        modules: Any = self.of.representation
        (inputs,) = self.constants()
        net, features = modules.filter_net, self.of.arguments["features"]
        filter_layers = torch.cat([net.weight, net.bias[:, None]], dim=1)
        rows_of_all = linear(inputs, filter_layers).unflatten(1, (-1, features))  # (rows, 3 l, f)
        network, pairs, vectors = self.network(graph)
        rows = network.learns(rows_of_all)
        embedded, which = self.embedded(graph)  # (elements, f)
        q = network.learns(embedded[which])  # (n, f)
        mu: Value | None = None  # (n, 3, f); zero before the first layer
        for k, (interaction, mixing) in enumerate(
            zip(modules.interactions, modules.mixing, strict=True)
        ):
            scalar, direction, both = vectors_of_layer(k)
            context = interaction.interatomic_context_net
            if mu is None:
                sent = network.learns(context(embedded)[which])  # (n, 3f)
            else:
                sent = layers.two_layers(network, q, context, silu_jet)
            radial = network.add(Columns(sent, features, 2 * features))
            dmu = network.add(Lift(pairs, radial, rows, direction))
            if mu is None:
                first = network.add(Columns(sent, 0, features))
                q = network.add(Sum(q, network.add(Convolve(pairs, first, rows, scalar))))
                mu = dmu
            else:
                scaled = network.add(Send(sent, mu))  # (n, 4, f)
                received = network.add(Convolve(pairs, scaled, rows, both))
                step = Receive(q, network.add(Sum(mu, dmu)), received)
                network.add(step)
                q, mu = step.results
            mixed = layers.linear(network, mu, mixing.mu_channel_mix)  # (n, 3, 2f)
            norm = network.add(Norms(mixed, mixing.epsilon))
            context = network.add(Joined(q, norm))
            factors = layers.two_layers(network, context, mixing.intraatomic_context_net, silu_jet)
            change = Updates(factors, mixed)
            network.add(change)
            dq, dmu = change.results
            q, mu = network.add(Sum(q, dq)), network.add(Sum(mu, dmu))
        return self.energies(network, q, vectors)
