"""`TensorNet` in its form for training, in four passes (`passes`) on the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.backbones.tensornet import (
    PARITIES,
    PART_OF,
    PARTS,
    Interaction,
    PartwiseLinear,
    TensorEmbedding,
    TensorNet,
)
from ase_biasgrad.fused import layers
from ase_biasgrad.fused.filters import dense_chain
from ase_biasgrad.fused.layers import Activation, Energies, Scaled, Sum
from ase_biasgrad.fused.messages import Components, Convolve, Lift, SampledPairs, TensorPairs
from ase_biasgrad.fused.tape import Network, Value
from ase_biasgrad.fused.tensors import ByPart, Mixed, Normalised, Squares, SymmetricProduct
from ase_biasgrad.graph import AtomGraph, near_pair_vectors
from ase_biasgrad.numerics.activations import silu_jet
from ase_biasgrad.numerics.spline_coefficients import spline_coefficients
from ase_biasgrad.numerics.splines import Knots


@cache
def tensors_of_layer(k: int) -> Components:
    """Nine components with the filters of layer k, of which 0 is the embedding."""
    return Components(tuple(len(PARTS) * k + part for part in PART_OF), PARITIES)


class FusedTensorNet(Backbone):
    """`TensorNet` for training; `of` is the backbone whose parameters are used."""

    name = "fused-tensornet"

    def __init__(self, of: TensorNet) -> None:
        super().__init__()
        self.of = of
        self.arguments, self.cutoff = of.arguments, of.cutoff
        self.knots = Knots.for_functions(of.cutoff, of.sampled_functions)
        self._made: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        if graph.device.type != "cpu":
            return self.of(graph)
        i, j, vectors = near_pair_vectors(graph, self.cutoff)
        n, dtype = len(graph.numbers), self.of.dtype
        pairs = TensorPairs(i, j, n, vectors.detach(), self.knots, dtype)
        network = Network(pairs)
        rows, own = self._filters()
        rows_value = network.learns(rows)
        x = _embedded(network, pairs, graph.numbers, rows_value, own[0], self.of.embedding)
        for k, layer in enumerate(self.of.layers, start=1):
            assert isinstance(layer, Interaction)
            x = _passed_on(network, pairs, x, rows_value, own[k], k, layer)
        hidden = network.add(Squares(x, parts=True))
        hidden = layers.layer_norm(network, hidden, self.of.norm)
        for dense in self.of.readout[:-1]:
            hidden = _silu(network, layers.linear(network, hidden, dense))
        last = layers.linear(network, hidden, self.of.readout[-1])
        network.add(Energies(last, self.of.scale))
        return network.energies(vectors)

    def _filters(self) -> tuple[Tensor, list[Tensor]]:
        """Spline coefficients of all layers `(rows, 3 l, f)`; filters at distance 0 of each,
        `(1, 3, f)`."""
        basis, envelope = self._constants(self.of.dtype)
        filters = [dense_chain(basis, [self.of.embedding.radial], [None])]
        for layer in self.of.layers:
            networks = layer.radial
            filters.append(dense_chain(basis, networks, [silu_jet] * len(networks)))  # type: ignore[arg-type]
        values = torch.cat(filters, dim=1).mul_(envelope)
        values = values.unflatten(1, (len(filters) * len(PARTS), -1))  # (rows, 3 l, f)
        rows = spline_coefficients(self.knots, values)
        return rows, list(values[:1].split(len(PARTS), dim=1))

    def _constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Radial basis times cutoff function `(rows, functions)`, cutoff function `(rows, 1)`."""
        if dtype not in self._made:
            # what is made in inference mode could not be trained with afterwards
            with torch.inference_mode(False), torch.no_grad():
                distances = self.knots.distances()
                distances[0] = 0.0
                basis, envelope = self.of.basis_and_cutoff(distances)
                self._made[dtype] = basis.to(dtype), envelope.to(dtype)
        return self._made[dtype]


def _embedded(
    network: Network,
    pairs: SampledPairs,
    numbers: Tensor,
    rows: Value,
    own: Tensor,
    layer: TensorEmbedding,
) -> Value:
    """`TensorEmbedding`."""
    elements, which = torch.unique(numbers, return_inverse=True)
    of_elements = layer.element(elements)  # (elements, f)
    # what moves with nothing is left to autograd
    centre, neighbour = layer.centre(of_elements), layer.neighbour(of_elements)
    at_zero = 3**0.5 * own[:, 0] * (centre + neighbour)
    lifted = Lift(
        pairs,
        network.learns(neighbour[which]),
        rows,
        tensors_of_layer(0),
        network.learns(centre[which]),
    )
    received = network.add(lifted)
    x = network.add(_PlusIsotropic(received, network.learns(at_zero[which])))
    scalars = layers.layer_norm(network, network.add(Squares(x, parts=False)), layer.norm)
    for dense in layer.scalars:
        scalars = _silu(network, layers.linear(network, scalars, dense))
    return network.add(ByPart(_mixed(network, x, layer.mix), scalars))


def _passed_on(
    network: Network,
    pairs: SampledPairs,
    x: Value,
    rows: Value,
    own: Tensor,
    k: int,
    layer: Interaction,
) -> Value:
    """`Interaction` number k."""
    x = network.add(Normalised(x))
    y = _mixed(network, x, layer.before)
    received = network.add(Convolve(pairs, y, rows, tensors_of_layer(k)))
    kept = network.add(ByPart(y, network.learns(own)))
    product = network.add(SymmetricProduct(y, network.add(Sum(received, kept))))
    change = _mixed(network, network.add(Normalised(product)), layer.after)
    square = network.add(Scaled(network.add(SymmetricProduct(change, change)), 0.5))
    return network.add(Sum(x, change, square))


def _mixed(network: Network, x: Value, mix: PartwiseLinear) -> Value:
    weights: Any = [network.learns(part.weight) for part in mix.parts]  # type: ignore[arg-type]
    return network.add(Mixed(x, weights))


def _silu(network: Network, x: Value) -> Value:
    return network.add(Activation(x, silu_jet))


class _PlusIsotropic:
    """Components x `(n, 9, f)`, with y `(n, f)`, which does not move, added to the first."""

    def __init__(self, x: Value, y: Value) -> None:
        self.x, self.y = x, y
        total = x.data.clone()
        total[:, 0] += y.data
        self.z = Value(total, x.moves)
        self.results = (self.z,)

    def reverse(self) -> None:
        if self.z.slope is not None:
            self.x.add_slope(self.z.slope)

    def tangent(self) -> None:
        self.z.tangent = self.x.tangent

    def learn(self) -> None:
        if self.z.gradient is not None:
            self.x.add_gradient(self.z.gradient)
            self.y.add_gradient(self.z.gradient[:, 0])
