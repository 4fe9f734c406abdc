"""Graph convolutions made for forces: extensive, smooth, on the same differentiable graph.

What differs from the original in `atomgraph.py`, and why:

- Self-loops of weight λ in the normalisation, L̂ = D^(−1/2) (A + λI) D^(−1/2) with D the row sums
  of A + λI, and ln D as a feature: the energy follows a common factor of the weights, so that it
  changes under dilation and a diatomic molecule feels forces.
- A smooth envelope in place of cutoff and neighbour limit: edges leave with zero weight and slope.
- Edge features on a radial basis, which scale what a neighbour sends.
- No z-scores over the structure; energies per atom, added up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ase_biasgrad.architectures import require_choice, require_positive
from ase_biasgrad.backbones.base import ReadoutBackbone
from ase_biasgrad.backbones.element_features import FEATURES, element_table
from ase_biasgrad.backbones.radial import Dense
from ase_biasgrad.differentiable_graph import smooth_envelope, voronoi_faces
from ase_biasgrad.differentiable_graph.cutoff_weights import DECAYS
from ase_biasgrad.graph import AtomGraph

# λ: what an atom counts beside its neighbours, whose inverse squares add up to about 1 Å⁻²
SELF_LOOP = 1 / 3
# L̂ takes averages, of what differs little from neighbour to neighbour: edge features start large,
# so that messages count beside an atom's own features from the first step on, and the readout small
EDGE_GAIN = 30.0


@dataclass(frozen=True)
class WeightedEdges:
    """Directed edges with lengths in Å and weights that vanish at the cutoff."""

    centre: Tensor  # (e,) int64
    neighbour: Tensor  # (e,) int64
    distances: Tensor  # (e,) float64
    weights: Tensor  # (e,) float64


class GraphConvolution(ReadoutBackbone):
    """Convolutions on the smoothly weighted, normalised atomic graph.

    Parameters
    ----------
    features
        Width of the atom features.
    interactions
        Number of convolutions.
    cutoff
        Range of the edges in Å.
    radial_functions
        Number of radial basis functions of the edge features.
    weights
        `cutoff`: `decay` of the distance. `voronoi`: the solid angle of the shared Voronoi face,
        as a share of 4π, found on the CPU at every evaluation. Both times an envelope.
    decay
        `inverse_square` or `exp_decay`.
    element_features, bins
        What describes an element, see `ase_biasgrad.backbones.element_features.element_table`.
    scale
        Energy unit of the readout in eV; see `SchNet`.
    """

    name: ClassVar[str] = "graph_convolution"
    radial: ClassVar[tuple[str, ...]] = ("edge",)

    def __init__(
        self,
        features: int = 128,
        interactions: int = 3,
        cutoff: float = 5.0,
        radial_functions: int = 20,
        weights: str = "cutoff",
        decay: str = "inverse_square",
        element_features: Sequence[str] = (*FEATURES, "element"),
        bins: int = 10,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep_arguments(locals())
        sizes = ("features", "interactions", "cutoff", "radial_functions")
        require_positive(self.arguments, sizes)
        require_choice("weights", weights, ("cutoff", "voronoi"))
        require_choice("decay", decay, DECAYS)
        table = torch.from_numpy(element_table(element_features, bins)).float()
        self.register_buffer("table", table, persistent=False)  # (119, in)
        self.embedding = Dense(table.shape[1], features)
        self.crowding = Dense(1, features, bias=False)
        self.convolutions = nn.ModuleList(
            SmoothConvolution(features, radial_functions) for _ in range(interactions)
        )
        self.readout = nn.Sequential(
            Dense(features, features // 2), nn.SiLU(), Dense(features // 2, 1)
        )
        # features of order one: each element is in one column of each feature
        nn.init.normal_(self.embedding.weight, std=len(element_features) ** -0.5)
        for convolution in self.convolutions:
            convolution.edge[-1].weight.data *= EDGE_GAIN
        self.readout[-1].weight.data /= EDGE_GAIN

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        edges = self.edges(graph)
        degrees = torch.full_like(graph.positions[:, 0], SELF_LOOP)  # (n,)
        degrees = degrees.index_add(0, edges.centre, edges.weights)
        roots = degrees.rsqrt()
        dtype = self.embedding.weight.dtype
        laplacian = (roots[edges.centre] * edges.weights * roots[edges.neighbour]).to(dtype)
        own = (SELF_LOOP / degrees).to(dtype)[:, None]  # (n, 1) the self-loops' entries
        radial = self._radial_basis(edges.distances).to(dtype)  # (e, radial)
        features = self.embedding(self.table[graph.numbers].to(dtype))
        features = features + self.crowding(degrees.log().to(dtype)[:, None])
        for convolution in self.convolutions:
            features = convolution(features, edges, laplacian, own, radial)
        return self.scale * self.readout(features).squeeze(-1)

    def edges(self, graph: AtomGraph) -> WeightedEdges:
        """The weighted graph that the convolutions see, without the self-loops."""
        if self.arguments["weights"] == "voronoi":
            faces = voronoi_faces(graph)
            centre, neighbour = faces.centre, faces.neighbour
            distances = faces.bonds.norm(dim=1)  # (e,)
            weights = faces.solid_angles / (4 * math.pi)
        else:
            centre, neighbour = graph.edge_index
            distances = graph.edge_vectors().norm(dim=1)
            weights = DECAYS[self.arguments["decay"]](distances)
        near = distances.detach() < self.cutoff
        distances = distances[near]
        weights = weights[near] * smooth_envelope(distances, self.cutoff)
        return WeightedEdges(centre[near], neighbour[near], distances, weights)

    def _radial_basis(self, distances: Tensor) -> Tensor:
        """Gaussians on an equidistant grid up to the cutoff, as wide as their spacing: `(e, k)`."""
        spacing = self.cutoff / self.arguments["radial_functions"]
        grid = torch.arange(1, self.arguments["radial_functions"] + 1, device=distances.device)
        return torch.exp(-0.5 * (distances[:, None] / spacing - grid).square())


class SmoothConvolution(nn.Module):
    """x + V σ(Σ_j L̂_ij (g(d_ij) ∘ U x_j) W_conv + L̂_ii U x_i W_conv + x_i W_self + b).

    The sum runs over neighbours, σ is softplus, and g a small network on the radial basis.
    """

    def __init__(self, features: int, radial_functions: int) -> None:
        super().__init__()
        self.sender = Dense(features, features, bias=False)
        self.edge = nn.Sequential(
            Dense(radial_functions, features), nn.SiLU(), Dense(features, features)
        )
        self.convolution = Dense(features, features, bias=False)
        self.own = Dense(features, features)
        self.update = Dense(features, features)

    def forward(
        self, features: Tensor, edges: WeightedEdges, laplacian: Tensor, own: Tensor, radial: Tensor
    ) -> Tensor:
        """Features `(n, f)` to `(n, f)`."""
        sent = self.sender(features)  # (n, f)
        messages = laplacian[:, None] * self.edge(radial) * sent[edges.neighbour]  # (e, f)
        received = (own * sent).index_add(0, edges.centre, messages)
        mixed = self.convolution(received) + self.own(features)
        return features + self.update(nn.functional.softplus(mixed))
