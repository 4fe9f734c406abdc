"""`PaiNN` in its fused form."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ase_biasgrad.fused import layers
from ase_biasgrad.fused.base import FusedBackbone
from ase_biasgrad.fused.layers import Concatenate, Slice, Sum
from ase_biasgrad.fused.messages import CFConv, Components, TensorMessage
from ase_biasgrad.fused.tape import Variable
from ase_biasgrad.fused.vectors import PaiNNAggregate, PaiNNMessage, PaiNNMixing, VectorNorms
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
        """Spline coefficients `(k, functions + 1)` of the inputs of the filter network, which
        is one linear layer: those of its outputs follow."""
        inputs = torch.cat([envelope * basis, envelope], dim=1)
        return (spline_coefficients(self.knots, inputs),)

    def on_tape(self, graph: AtomGraph) -> Tensor:
        """See `FusedBackbone`."""
        modules: Any = self.of.representation
        (inputs,) = self.constants()
        net, features = modules.filter_net, self.of.arguments["features"]
        filter_layers = torch.cat([net.weight, net.bias[:, None]], dim=1)
        all_coefficients = linear(inputs, filter_layers).unflatten(1, (-1, features))  # (k, 3 l, f)
        tape, pairs, vectors = self.tape(graph)
        coefficients = tape.parameter(all_coefficients)
        embedded, which = self.embedded(graph)  # (elements, f)
        q = tape.parameter(embedded[which])  # (n, f)
        mu: Variable | None = None  # (n, 3, f); zero before the first layer
        for k, (interaction, mixing) in enumerate(
            zip(modules.interactions, modules.mixing, strict=True)
        ):
            scalar, direction, both = vectors_of_layer(k)
            context = interaction.interatomic_context_net
            if mu is None:
                sent = tape.parameter(context(embedded)[which])  # (n, 3f)
            else:
                sent = layers.two_layers(tape, q, context, silu_jet)
            radial = tape.add(Slice(sent, features, 2 * features))
            dmu = tape.add(TensorMessage(pairs, radial, coefficients, direction))
            if mu is None:
                first = tape.add(Slice(sent, 0, features))
                q = tape.add(Sum(q, tape.add(CFConv(pairs, first, coefficients, scalar))))
                mu = dmu
            else:
                scaled = tape.add(PaiNNMessage(sent, mu))  # (n, 4, f)
                received = tape.add(CFConv(pairs, scaled, coefficients, both))
                step = PaiNNAggregate(q, tape.add(Sum(mu, dmu)), received)
                tape.add(step)
                q, mu = step.results
            mixed = layers.linear(tape, mu, mixing.mu_channel_mix)  # (n, 3, 2f)
            norm = tape.add(VectorNorms(mixed, mixing.epsilon))
            context = tape.add(Concatenate(q, norm))
            factors = layers.two_layers(tape, context, mixing.intraatomic_context_net, silu_jet)
            change = PaiNNMixing(factors, mixed)
            tape.add(change)
            dq, dmu = change.results
            q, mu = tape.add(Sum(q, dq)), tape.add(Sum(mu, dmu))
        return self.energies(tape, q, vectors)
