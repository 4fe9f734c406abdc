"""Common parts of the fused forms of SchNet and PaiNN.

A fused network is the same function from the same parameters at a fraction of the cost: filters are
splines through their values at knots, every pair counts once, pairs beyond the cutoff are left out,
and forces and gradients of losses of forces come from layers with written-out derivatives
(`fused.tape`), which have no derivatives beyond these.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.backbones.schnetpack import SchNetPackBackbone
from ase_biasgrad.fused import layers
from ase_biasgrad.fused.layers import Activation, Energies
from ase_biasgrad.fused.messages import SplinePairs
from ase_biasgrad.fused.tape import Tape, Variable
from ase_biasgrad.graph import AtomGraph, near_pair_vectors
from ase_biasgrad.numerics.activations import silu_jet
from ase_biasgrad.numerics.splines import Knots


class FusedBackbone(Backbone):
    """Common parts; `of` is the backbone whose parameters are used."""

    def __init__(self, of: SchNetPackBackbone) -> None:
        super().__init__()
        self.of = of
        self.arguments, self.cutoff = of.arguments, of.cutoff
        self.knots = Knots.for_functions(of.cutoff, of.sampled_functions)
        self._constants: dict[torch.dtype, tuple[Tensor, ...]] = {}

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV; on other devices than the CPU those of the backbone."""
        return self.on_tape(graph) if graph.device.type == "cpu" else self.of(graph)

    @abstractmethod
    def on_tape(self, graph: AtomGraph) -> Tensor:
        """`forward` by layers with written-out derivatives."""

    def constants(self) -> tuple[Tensor, ...]:
        """Result of `prepared`, kept for each precision."""
        dtype = self.of.readout[-1].weight.dtype
        if dtype not in self._constants:
            modules = self.of.representation
            # what is made in inference mode could not be trained with afterwards
            with torch.inference_mode(False), torch.no_grad():
                distances = torch.from_numpy(self.knots.distances())
                basis = modules.radial_basis(distances)
                envelope = modules.cutoff_fn(distances)[:, None]
                self._constants[dtype] = self.prepared(basis.to(dtype), envelope.to(dtype))
        return self._constants[dtype]

    def prepared(self, basis: Tensor, envelope: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the filters: radial basis `(k, functions)` and cutoff function `(k, 1)` at
        the knots' distances."""
        return basis, envelope

    def embedded(self, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Features of the elements in the graph `(elements, f)`, and which of them each atom is:
        until the first messages atoms of one element are the same."""
        elements, which = torch.unique(graph.numbers, return_inverse=True)
        return self.of.representation.embedding(elements), which  # type: ignore[operator]

    def tape(self, graph: AtomGraph) -> tuple[Tape, SplinePairs, Tensor]:
        """A tape on the pairs of the graph, the pairs, and their vectors."""
        i, j, vectors = near_pair_vectors(graph, self.cutoff)
        dtype = self.of.readout[-1].weight.dtype
        pairs = SplinePairs(i, j, len(graph.numbers), vectors.detach(), self.knots, dtype)
        return Tape(pairs), pairs, vectors

    def energies(self, tape: Tape, x: Variable, vectors: Tensor) -> Tensor:
        """Per-atom energies `(n,)` from features x `(n, f)`."""
        for layer in self.of.readout[:-1]:
            x = tape.add(Activation(layers.linear(tape, x, layer), silu_jet))
        x = layers.linear(tape, x, self.of.readout[-1])
        tape.add(Energies(x, self.of.scale))
        return tape.energies(vectors)
