"""The reference engine: autograd through the backbones, on any device, for any architecture."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.backbones import Backbone
from ase_biasgrad.backbones.base import ReadoutBackbone
from ase_biasgrad.calculators.engines.base import Evaluation, split
from ase_biasgrad.graph import AtomGraph, collate, graph_from_arrays
from ase_biasgrad.neighbours import Structure, VerletList
from ase_biasgrad.potential import derivatives, readout_derivatives, second_derivatives


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

    @torch.inference_mode(False)
    def readouts(self, structure: Structure, weights: np.ndarray) -> Evaluation:
        """Energies and forces of the first backbone with other last layers (see `Engine`)."""
        backbone = self.backbones[0]
        assert isinstance(backbone, ReadoutBackbone)
        graph = self._graph(structure)
        with torch.enable_grad():
            values = readout_derivatives(backbone, graph, torch.from_numpy(weights))
        return Evaluation(*(value.cpu().numpy() for value in values))

    @torch.inference_mode(False)  # autograd does not work in it
    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        graph = self._graph(structure)
        if not derivatives:
            with torch.no_grad():
                return Evaluation(_stacked([backbone(graph) for backbone in self.backbones]))
        energies, forces, strain = self._differentiated(graph)
        return Evaluation(energies, forces, strain[:, 0])

    @torch.inference_mode(False)
    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives, in one batch."""
        graph = collate(
            [
                graph_from_arrays(s.numbers, s.positions, self.cutoff, s.cell, s.pbc)
                for s in structures
            ]
        ).to(self.device)
        return split(*self._differentiated(graph), [len(s.numbers) for s in structures])

    def _graph(self, s: Structure) -> AtomGraph:
        edges = self.list.edges(s)
        graph = graph_from_arrays(s.numbers, s.positions, self.cutoff, s.cell, s.pbc, edges=edges)
        return graph.to(self.device)

    def _differentiated(self, graph: AtomGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies `(members, n)`, forces `(members, n, 3)`, ∂E/∂ε `(members, b, 3, 3)`."""
        with torch.enable_grad():
            values = [derivatives(backbone, graph, strain=True) for backbone in self.backbones]
        energies, forces, strain = (_stacked(column) for column in zip(*values, strict=True))
        return energies, forces, strain

    @torch.inference_mode(False)
    def second_derivatives(self, structure: Structure, strain: bool) -> np.ndarray:
        """Second derivatives in all coordinates by autograd in float64 (see `Engine`)."""
        s = structure
        graph = graph_from_arrays(s.numbers, s.positions, self.cutoff, s.cell, s.pbc)
        graph = graph.to(self.device)
        members = [second_derivatives(backbone, graph, strain) for backbone in self.backbones]
        return np.asarray(torch.stack(members).mean(dim=0).cpu().numpy())


def _stacked(tensors: tuple[Tensor, ...] | list[Tensor]) -> np.ndarray:
    return np.stack([tensor.detach().cpu().numpy().astype(np.float64) for tensor in tensors])
