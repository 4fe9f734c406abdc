"""The reference engine: autograd through the backbones, on any device, for any architecture."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.backbones import Backbone
from ase_biasgrad.calculators.engines.base import Evaluation, Structure, split
from ase_biasgrad.graph import AtomGraph, collate, graph_from_arrays
from ase_biasgrad.neighbours import VerletList
from ase_biasgrad.potential import second_derivatives, strained


class ReferenceEngine:
    """Evaluates backbones one after another over one neighbour list with a skin."""

    name = "reference"

    def __init__(
        self, backbones: list[Backbone], device: torch.device, dtype: torch.dtype, skin: float
    ) -> None:
        self.device = device
        self.backbones = [b.to(device=device, dtype=dtype).eval() for b in backbones]
        for backbone in self.backbones:
            backbone.requires_grad_(False)
        self.cutoff = max(backbone.cutoff for backbone in backbones)
        self.list = VerletList(self.cutoff, skin)

    def reset(self) -> None:
        self.list.reset()

    def fresh(self) -> ReferenceEngine:
        """Another engine without neighbour list that shares the weights."""
        other = copy.copy(self)
        other.list = VerletList(self.cutoff, self.list.skin)
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        with torch.inference_mode(False):  # autograd does not work in it
            return self._evaluate(structure, derivatives)

    def _evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        s = structure
        edges = self.list.edges(s.numbers, s.positions, s.cell, s.pbc)
        graph = graph_from_arrays(
            s.numbers, s.positions, self.cutoff, s.cell, s.pbc, edges=edges
        ).to(self.device)
        if not derivatives:
            with torch.no_grad():
                return Evaluation(_stacked([backbone(graph) for backbone in self.backbones]))
        values = [_differentiated(backbone, graph) for backbone in self.backbones]
        energies, forces, strain = (_stacked(column) for column in zip(*values, strict=True))
        return Evaluation(energies, forces, strain[:, 0])

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives, in one batch."""
        with torch.inference_mode(False):
            return self._evaluate_many(structures)

    def _evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        graph = collate(
            [
                graph_from_arrays(s.numbers, s.positions, self.cutoff, s.cell, s.pbc)
                for s in structures
            ]
        ).to(self.device)
        values = [_differentiated(backbone, graph) for backbone in self.backbones]
        energies, forces, strain = (_stacked(column) for column in zip(*values, strict=True))
        return split(energies, forces, strain, [len(s.numbers) for s in structures])

    def second_derivatives(self, structure: Structure, strain: bool) -> np.ndarray:
        """Second derivatives in all coordinates by autograd in float64 (see `Engine`)."""
        s = structure
        with torch.inference_mode(False):
            graph = graph_from_arrays(s.numbers, s.positions, self.cutoff, s.cell, s.pbc)
            graph = graph.to(self.device)
            members = [second_derivatives(backbone, graph, strain) for backbone in self.backbones]
            return np.asarray(torch.stack(members).mean(dim=0).cpu().numpy())


def _differentiated(backbone: Backbone, graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Energies `(n,)`, forces `(n, 3)` and ∂E/∂ε `(b, 3, 3)`."""
    with torch.enable_grad():
        positions = graph.positions.detach().requires_grad_()
        strain = torch.zeros_like(graph.cell).requires_grad_()
        own = backbone(strained(graph, positions, strain)).to(torch.float64)
        gradients = torch.autograd.grad(own.sum(), [positions, strain], materialize_grads=True)
    return own.detach(), -gradients[0], gradients[1]


def _stacked(tensors: tuple[Tensor, ...] | list[Tensor]) -> np.ndarray:
    return np.stack([tensor.detach().cpu().numpy().astype(np.float64) for tensor in tensors])
