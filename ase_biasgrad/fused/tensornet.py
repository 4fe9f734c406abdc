"""`TensorNet` in its fused form."""

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
from ase_biasgrad.fused.layers import Activation, Energies, Scale, Sum
from ase_biasgrad.fused.messages import CFConv, Components, SplinePairs, TensorMessage, TensorPairs
from ase_biasgrad.fused.tape import Tape, Variable
from ase_biasgrad.fused.tensors import (
    IrrepsLinear,
    Normalised,
    ScaleIrreps,
    SquaredNorms,
    SymmetricProduct,
)
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
        self._prepared: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        if graph.device.type != "cpu":
            return self.of(graph)
        i, j, vectors = near_pair_vectors(graph, self.cutoff)
        n, dtype = len(graph.numbers), self.of.dtype
        pairs = TensorPairs(i, j, n, vectors.detach(), self.knots, dtype)
        tape = Tape(pairs)
        splines, own = self._filters()
        coefficients = tape.parameter(splines)
        x = _embedded(tape, pairs, graph.numbers, coefficients, own[0], self.of.embedding)
        for k, layer in enumerate(self.of.layers, start=1):
            assert isinstance(layer, Interaction)
            x = _passed_on(tape, pairs, x, coefficients, own[k], k, layer)
        hidden = tape.add(SquaredNorms(x, parts=True))
        hidden = layers.layer_norm(tape, hidden, self.of.norm)
        for dense in self.of.readout[:-1]:
            hidden = _silu(tape, layers.linear(tape, hidden, dense))
        last = layers.linear(tape, hidden, self.of.readout[-1])
        tape.add(Energies(last, self.of.scale))
        return tape.energies(vectors)

    def _filters(self) -> tuple[Tensor, list[Tensor]]:
        """Spline coefficients of all layers `(k, 3 l, f)`; filters at distance 0 of each,
        `(1, 3, f)`."""
        basis, envelope = self._constants(self.of.dtype)
        filters = [dense_chain(basis, [self.of.embedding.radial], [None])]
        for layer in self.of.layers:
            networks = layer.radial
            filters.append(dense_chain(basis, networks, [silu_jet] * len(networks)))  # type: ignore[arg-type]
        values = torch.cat(filters, dim=1).mul_(envelope)
        values = values.unflatten(1, (len(filters) * len(PARTS), -1))  # (k, 3 l, f)
        coefficients = spline_coefficients(self.knots, values)
        return coefficients, list(values[:1].split(len(PARTS), dim=1))

    def _constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Radial basis times cutoff function `(k, functions)`, cutoff function `(k, 1)`."""
        if dtype not in self._prepared:
            # what is made in inference mode could not be trained with afterwards
            with torch.inference_mode(False), torch.no_grad():
                distances = torch.from_numpy(self.knots.distances())
                distances[0] = 0.0
                basis, envelope = self.of.basis_and_cutoff(distances)
                self._prepared[dtype] = basis.to(dtype), envelope.to(dtype)
        return self._prepared[dtype]


def _embedded(
    tape: Tape,
    pairs: SplinePairs,
    numbers: Tensor,
    coefficients: Variable,
    own: Tensor,
    layer: TensorEmbedding,
) -> Variable:
    """`TensorEmbedding`."""
    elements, which = torch.unique(numbers, return_inverse=True)
    of_elements = layer.element(elements)  # (elements, f)
    # functions of parameters alone are left to autograd
    centre, neighbour = layer.centre(of_elements), layer.neighbour(of_elements)
    at_zero = 3**0.5 * own[:, 0] * (centre + neighbour)
    lifted = TensorMessage(
        pairs,
        tape.parameter(neighbour[which]),
        coefficients,
        tensors_of_layer(0),
        tape.parameter(centre[which]),
    )
    received = tape.add(lifted)
    x = tape.add(_PlusIsotropic(received, tape.parameter(at_zero[which])))
    scalars = layers.layer_norm(tape, tape.add(SquaredNorms(x, parts=False)), layer.norm)
    for dense in layer.scalars:
        scalars = _silu(tape, layers.linear(tape, scalars, dense))
    return tape.add(ScaleIrreps(_irreps_linear(tape, x, layer.mix), scalars))


def _passed_on(
    tape: Tape,
    pairs: SplinePairs,
    x: Variable,
    coefficients: Variable,
    own: Tensor,
    k: int,
    layer: Interaction,
) -> Variable:
    """`Interaction` number k."""
    x = tape.add(Normalised(x))
    y = _irreps_linear(tape, x, layer.before)
    received = tape.add(CFConv(pairs, y, coefficients, tensors_of_layer(k)))
    kept = tape.add(ScaleIrreps(y, tape.parameter(own)))
    product = tape.add(SymmetricProduct(y, tape.add(Sum(received, kept))))
    change = _irreps_linear(tape, tape.add(Normalised(product)), layer.after)
    square = tape.add(Scale(tape.add(SymmetricProduct(change, change)), 0.5))
    return tape.add(Sum(x, change, square))


def _irreps_linear(tape: Tape, x: Variable, mix: PartwiseLinear) -> Variable:
    weights: Any = [tape.parameter(part.weight) for part in mix.parts]  # type: ignore[arg-type]
    return tape.add(IrrepsLinear(x, weights))


def _silu(tape: Tape, x: Variable) -> Variable:
    return tape.add(Activation(x, silu_jet))


class _PlusIsotropic:
    """Components x `(n, 9, f)`, with y `(n, f)`, which is not active, added to the first."""

    def __init__(self, x: Variable, y: Variable) -> None:
        self.x, self.y = x, y
        total = x.data.clone()
        total[:, 0] += y.data
        self.z = Variable(total, x.active)
        self.results = (self.z,)

    def vjp(self) -> None:
        if self.z.adjoint is not None:
            self.x.add_adjoint(self.z.adjoint)

    def jvp(self) -> None:
        self.z.tangent = self.x.tangent

    def second_order(self) -> None:
        if self.z.gradient is not None:
            self.x.add_gradient(self.z.gradient)
            self.y.add_gradient(self.z.gradient[:, 0])
