"""Backbones for training: the same parameters, but pairs counted once and filters sampled.

SchNet, PaiNN and TensorNet: the same functions up to rounding, from the same parameters, at a
fraction of the cost. Filters are splines through their values at knots (`splines`), pairs beyond
the cutoff are left out, and on the CPU forces and gradients of losses of forces come from passes
that are written out (`passes`), which have no derivatives beyond these. Validation uses the
backbone itself, calculators the same splines once more (`calculators/`).
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ase_biasgrad.backbones import operations
from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.backbones.dense_chain import dense_chain
from ase_biasgrad.backbones.half_pairs import near_pair_vectors, pairs_of
from ase_biasgrad.backbones.lean_tensornet import LeanTensorNet
from ase_biasgrad.backbones.operations import Activation, Columns, Energies, Joined, Sum
from ase_biasgrad.backbones.pair_messages import Components, Pairs, convolve, lift
from ase_biasgrad.backbones.pair_operations import Convolve, Lift, SampledPairs
from ase_biasgrad.backbones.passes import Network, Value
from ase_biasgrad.backbones.schnetpack import PaiNN, SchNet, SchNetPackBackbone
from ase_biasgrad.backbones.smooth_activations import silu, silu_jet, softplus_jet
from ase_biasgrad.backbones.tensornet import TensorNet
from ase_biasgrad.backbones.two_layers import two_layers
from ase_biasgrad.backbones.vector_products import Norms, Receive, Send, Updates, norms, updates
from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.spline_coefficients import spline_coefficients
from ase_biasgrad.splines import Knots


def lean(backbone: Backbone) -> Backbone:
    """The backbone in its form for training, on the same parameters; itself if it has none."""
    if isinstance(backbone, SchNet):
        return LeanSchNet(backbone)
    if isinstance(backbone, PaiNN):
        return LeanPaiNN(backbone)
    if isinstance(backbone, TensorNet):
        return LeanTensorNet(backbone)
    return backbone


SCALAR = Components((0,))
SCALAR_AND_VECTOR = Components((0, 2, 2, 2))
DIRECTION = Components((1, 1, 1), (-1, -1, -1))


@cache
def scalar_of_layer(k: int) -> Components:
    """One component, with filter k."""
    return Components((k,))


@cache
def vectors_of_layer(k: int) -> tuple[Components, Components, Components]:
    """`SCALAR`, `DIRECTION` and `SCALAR_AND_VECTOR` with the filters of PaiNN's layer k."""
    return (
        Components((3 * k,)),
        Components((3 * k + 1,) * 3, (-1, -1, -1)),
        Components((3 * k, *(3 * k + 2,) * 3)),
    )


class LeanBackbone(Backbone):
    """Common parts; `of` is the backbone whose parameters are used."""

    def __init__(self, of: SchNetPackBackbone) -> None:
        super().__init__()
        self.of = of
        self.arguments, self.cutoff = of.arguments, of.cutoff
        self.knots = Knots.for_functions(of.cutoff, of.sampled_functions)
        self._constants: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        return self.in_passes(graph) if graph.device.type == "cpu" else self.by_autograd(graph)

    @abstractmethod
    def in_passes(self, graph: AtomGraph) -> Tensor:
        """`forward` on the CPU, in four passes."""

    @abstractmethod
    def by_autograd(self, graph: AtomGraph) -> Tensor:
        """`forward` anywhere, in torch operations of shapes that do not depend on distances."""

    def constants(self) -> tuple[Tensor, ...]:
        """See `prepared`; made once for each device and precision."""
        weight = self.of.readout[-1].weight
        key = (weight.device, weight.dtype)
        if key not in self._constants:
            modules = self.of.representation
            # what is made in inference mode could not be trained with afterwards
            with torch.inference_mode(False), torch.no_grad():
                distances = self.knots.distances().to(weight.device)
                basis = modules.radial_basis(distances)
                envelope = modules.cutoff_fn(distances)[:, None]
                self._constants[key] = self.prepared(
                    basis.to(weight.dtype), envelope.to(weight.dtype)
                )
        return self._constants[key]

    def prepared(self, basis: Tensor, envelope: Tensor) -> tuple[Tensor, ...]:
        """What filters are made of: radial basis `(k, functions)` and cutoff function `(k, 1)` at
        the knots' distances."""
        return basis, envelope

    def pairs(self, graph: AtomGraph) -> tuple[Pairs, Tensor]:
        """See `sampled_pairs`."""
        return sampled_pairs(graph, self.knots, self.of.readout[-1].weight.dtype)

    def embedded(self, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Features of the elements in the graph `(elements, f)`, and which of them each atom is:
        until the first messages atoms of one element are the same."""
        elements, which = torch.unique(graph.numbers, return_inverse=True)
        return self.of.representation.embedding(elements), which  # type: ignore[operator]

    def network(self, graph: AtomGraph) -> tuple[Network, SampledPairs, Tensor]:
        """A network on the pairs of the graph, and the vectors of these."""
        i, j, vectors = near_pair_vectors(graph, self.cutoff)
        dtype = self.of.readout[-1].weight.dtype
        pairs = SampledPairs(i, j, len(graph.numbers), vectors.detach(), self.knots, dtype)
        return Network(pairs), pairs, vectors

    def energies(self, network: Network, x: Value, vectors: Tensor) -> Tensor:
        """Per-atom energies `(n,)` from features x `(n, f)`."""
        for layer in self.of.readout[:-1]:
            x = network.add(Activation(operations.linear(network, x, layer), silu_jet))
        x = operations.linear(network, x, self.of.readout[-1])
        network.add(Energies(x, self.of.scale))
        return network.energies(vectors)

    def read_out(self, features: Tensor) -> Tensor:
        """Per-atom energies `(n,)` from features `(n, f)`."""
        for layer in self.of.readout[:-1]:
            features = silu(linear(features, layer.weight, layer.bias))
        last = self.of.readout[-1]
        return self.of.scale * linear(features, last.weight, last.bias).squeeze(-1)


class LeanSchNet(LeanBackbone):
    """`SchNet` for training."""

    name = "lean-schnet"

    def by_autograd(self, graph: AtomGraph) -> Tensor:
        """See `LeanBackbone`."""
        pairs, _ = self.pairs(graph)
        modules: Any = self.of.representation
        basis, envelope = self.constants()
        x = modules.embedding(graph.numbers)  # (n, f)
        for block in modules.interactions:
            filters = envelope * two_layers(basis, block.filter_network, softplus_jet)
            rows = spline_coefficients(self.knots, filters)  # (rows, f)
            sent = linear(x, block.in2f.weight)
            received = convolve(pairs, sent.unsqueeze(1), rows.unsqueeze(1), SCALAR).squeeze(1)
            x = x + two_layers(received, block.f2out, softplus_jet)
        return self.read_out(x)

    def in_passes(self, graph: AtomGraph) -> Tensor:
        """See `LeanBackbone`."""
        modules: Any = self.of.representation
        blocks = modules.interactions
        network, pairs, vectors = self.network(graph)
        basis, envelope = self.constants()
        jets = softplus_jet, None
        filters = [dense_chain(basis, block.filter_network, jets) for block in blocks]
        values = torch.stack(filters, dim=1) * envelope.unsqueeze(2)  # (rows, l, f)
        rows = network.learns(spline_coefficients(self.knots, values))
        embedded, which = self.embedded(graph)  # (elements, f)
        x = network.learns(embedded[which])  # (n, f)
        sent = network.learns(linear(embedded, blocks[0].in2f.weight)[which])
        for k, block in enumerate(blocks):
            if k > 0:
                sent = operations.linear(network, x, block.in2f)
            received = network.add(Convolve(pairs, sent, rows, scalar_of_layer(k)))
            change = operations.two_layers(network, received, block.f2out, softplus_jet)
            x = network.add(Sum(x, change))
        return self.energies(network, x, vectors)


class LeanPaiNN(LeanBackbone):
    """`PaiNN` for training."""

    name = "lean-painn"

    def prepared(self, basis: Tensor, envelope: Tensor) -> tuple[Tensor, ...]:
        """Spline coefficients `(rows, functions + 1)` of the inputs of the filter network, which
        is one linear layer: those of its outputs follow."""
        inputs = torch.cat([envelope * basis, envelope], dim=1)
        return (spline_coefficients(self.knots, inputs),)

    def by_autograd(self, graph: AtomGraph) -> Tensor:
        """See `LeanBackbone`."""
        pairs, unit = self.pairs(graph)
        modules: Any = self.of.representation
        (inputs,) = self.constants()
        net = modules.filter_net
        layers = torch.cat([net.weight, net.bias[:, None]], dim=1).chunk(len(modules.interactions))
        q = modules.embedding(graph.numbers)  # (n, f)
        mu: Tensor | None = None  # (n, 3, f); zero before the first layer
        for interaction, mixing, layer in zip(
            modules.interactions, modules.mixing, layers, strict=True
        ):
            rows = linear(inputs, layer).reshape(len(inputs), 3, -1)
            scalar, radial, factor = _thirds(interaction.interatomic_context_net, q).unbind(dim=1)
            dmu = lift(pairs, radial, rows, unit, DIRECTION)
            if mu is None:
                q = q + convolve(pairs, scalar.unsqueeze(1), rows, SCALAR).squeeze(1)
                mu = dmu
            else:
                # (n, 4, f)
                sent = torch.cat([scalar.unsqueeze(1), factor.unsqueeze(1) * mu], dim=1)
                received = convolve(pairs, sent, rows, SCALAR_AND_VECTOR)
                of_q, of_mu = received.split((1, 3), dim=1)
                q, mu = q + of_q.squeeze(1), mu + dmu + of_mu
            mixed = linear(mu, mixing.mu_channel_mix.weight)  # (n, 3, 2f)
            context = torch.cat([q, norms(mixed, mixing.epsilon)], dim=1)
            factors = _thirds(mixing.intraatomic_context_net, context)
            dq, dmu = updates(factors, mixed)
            q, mu = q + dq, mu + dmu
        return self.read_out(q)

    def in_passes(self, graph: AtomGraph) -> Tensor:
        """See `LeanBackbone`."""
        modules: Any = self.of.representation
        (inputs,) = self.constants()
        net, features = modules.filter_net, self.of.arguments["features"]
        layers = torch.cat([net.weight, net.bias[:, None]], dim=1)
        rows_of_all = linear(inputs, layers).unflatten(1, (-1, features))  # (rows, 3 l, f)
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
                sent = network.learns(two_layers(embedded, context, silu_jet)[which])  # (n, 3f)
            else:
                sent = operations.two_layers(network, q, context, silu_jet)
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
            mixed = operations.linear(network, mu, mixing.mu_channel_mix)  # (n, 3, 2f)
            norm = network.add(Norms(mixed, mixing.epsilon))
            context = network.add(Joined(q, norm))
            factors = operations.two_layers(
                network, context, mixing.intraatomic_context_net, silu_jet
            )
            change = Updates(factors, mixed)
            network.add(change)
            dq, dmu = change.results
            q, mu = network.add(Sum(q, dq)), network.add(Sum(mu, dmu))
        return self.energies(network, q, vectors)


def sampled_pairs(graph: AtomGraph, knots: Knots, dtype: torch.dtype) -> tuple[Pairs, Tensor]:
    """Every pair once, and unit vectors `(p, 3)` from i to j.

    Both are differentiable in the positions and the cell. Weights of pairs beyond the cutoff are 0:
    shapes do not depend on distances, so that a device is never waited for.
    """
    i, j, distances, unit = pairs_of(graph)
    near = distances.detach() < knots.cutoff
    first, weights = knots.weights(torch.where(near, distances, 0.0))
    weights = torch.where(near[:, None], weights, 0.0)
    return Pairs(i, j, len(graph.numbers), first, weights.to(dtype)), unit.to(dtype)


def _thirds(net: nn.Sequential, x: Tensor) -> Tensor:
    """The outputs `(n, 3, f)` of a network of two layers."""
    return two_layers(x, net, silu_jet).reshape(len(x), 3, -1)
