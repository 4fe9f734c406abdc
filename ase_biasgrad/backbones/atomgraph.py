"""The crystal graph network of AtomicGraphNets.jl, as it was, with forces through its graph.

AGNConv layers on the normalised Laplacian of the atomic graph, AGNPool, and dense layers: the
`build_CGCNN` of Chemellia's AtomicGraphNets.jl. It predicts one number for a structure; here this
is the energy of the cell it is given, spread evenly over the atoms. As a potential it has faults,
by construction (see docs/graphs.md): the Laplacian ignores common factors of all weights, z-scores
and mean pooling make the energy intensive, and the energy jumps where a neighbour passes the
neighbour limit or the cutoff. `graph_convolution` is the variant made for forces.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, max_pool1d, pad, softplus

from ase_biasgrad.architectures import require_choice, require_positive
from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.backbones.element_features import FEATURES, element_table
from ase_biasgrad.backbones.radial import Dense
from ase_biasgrad.differentiable_graph import (
    Adjacency,
    cutoff_adjacency,
    sparse_normalised_laplacian,
    voronoi_adjacency,
)
from ase_biasgrad.differentiable_graph.cutoff_weights import DECAYS
from ase_biasgrad.graph import AtomGraph, sum_per_structure

WEIGHTS = ("cutoff", "voronoi", "voronoi_largest_face")


class AtomGraphNet(Backbone):
    """AGNConv layers, AGNPool and dense layers; one energy for a structure.

    Parameters
    ----------
    convolutions
        Number of AGNConv layers.
    features
        Width of the atom features after each.
    pool
        `mean` or `max`, over windows of features.
    pool_width
        Width of a window as a fraction of `features`.
    pooled_features
        Length of the vector that describes the structure.
    hidden_layers
        Dense layers, the output included: with 1 there is no nonlinearity behind the pooling.
    weights
        `cutoff` (by distance) or by solid angle: `voronoi` (as a share of 4π) or
        `voronoi_largest_face` (of each atom's largest face, as AtomGraphs.jl has it); both run on
        the CPU at every evaluation, and ignore the three arguments that follow.
    cutoff
        Range of the edges in Å.
    max_neighbors
        Soft limit of neighbours of each atom.
    decay
        `inverse_square` or `exp_decay`.
    element_features, bins
        What describes an element, see `ase_biasgrad.backbones.element_features.element_table`.
    scale
        The output is multiplied by it; in eV.
    """

    name: ClassVar[str] = "atomgraph"
    depths: ClassVar[tuple[str, ...]] = ("convolutions", "hidden_layers")

    def __init__(
        self,
        convolutions: int = 2,
        features: int = 80,
        pool: str = "mean",
        pool_width: float = 0.1,
        pooled_features: int = 40,
        hidden_layers: int = 1,
        weights: str = "cutoff",
        cutoff: float = 8.0,
        max_neighbors: int = 12,
        decay: str = "inverse_square",
        element_features: Sequence[str] = FEATURES,
        bins: int = 10,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep_arguments(locals())
        sizes = ("convolutions", "features", "hidden_layers", "cutoff", "max_neighbors")
        require_positive(self.arguments, sizes)
        require_choice("weights", weights, WEIGHTS)
        require_choice("decay", decay, DECAYS)
        table = torch.from_numpy(element_table(element_features, bins)).float()
        self.register_buffer("table", table, persistent=False)  # (119, in)
        widths = [table.shape[1]] + [features] * convolutions
        self.convolutions = nn.ModuleList(AGNConv(one, two) for one, two in pairwise(widths))
        self.pool = AGNPool(features, pooled_features, pool_width, pool)
        self.hidden = nn.ModuleList(
            Dense(pooled_features, pooled_features, softplus) for _ in range(hidden_layers - 1)
        )
        self.output = Dense(pooled_features, 1)

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV, equal within a structure."""
        laplacian = sparse_normalised_laplacian(self.adjacency(graph))
        features = self.table[graph.numbers].to(self.output.weight.dtype)  # (n, in)
        for convolution in self.convolutions:
            features = convolution(laplacian, features, graph)
        pooled = self.pool(features, graph)  # (b, pooled)
        for layer in self.hidden:
            pooled = layer(pooled)
        energy = self.scale * self.output(pooled).squeeze(-1)  # (b,)
        atoms = sum_per_structure(torch.ones_like(features[:, 0]), graph)
        return (energy / atoms.clamp(min=1))[graph.batch]

    def adjacency(self, graph: AtomGraph) -> Adjacency:
        """The weighted graph that the convolutions see."""
        if self.arguments["weights"] != "cutoff":
            return voronoi_adjacency(graph, self.arguments["weights"] == "voronoi_largest_face")
        distances = graph.edge_vectors().norm(dim=1)  # (e,)
        near = distances.detach() < self.cutoff
        centre, neighbour = graph.edge_index[:, near]
        return cutoff_adjacency(
            centre,
            neighbour,
            distances[near],
            graph.batch,
            self.arguments["max_neighbors"],
            DECAYS[self.arguments["decay"]],
        )

    def energy_shifts(self) -> list[nn.Parameter]:
        return [self.output.bias]

    def take_energy_shift(self) -> float:
        """Nothing to fold: the output's bias is per structure, not per atom, and stays."""
        return 0.0


class AGNConv(nn.Module):
    """σ(L X W_conv + X W_self + b) with σ = softplus, then a z-score over all of a structure."""

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__()
        self.convolution = Dense(features_in, features_out, bias=False)
        self.own = Dense(features_in, features_out)

    def forward(self, laplacian: Adjacency, features: Tensor, graph: AtomGraph) -> Tensor:
        """Features `(n, in)` to `(n, out)`."""
        mixed = laplacian.matmul(self.convolution(features)) + self.own(features)
        return standardised(softplus(mixed), graph)


def standardised(features: Tensor, graph: AtomGraph, epsilon: float = 1e-5) -> Tensor:
    """(x − μ) / (σ + ε) with mean and standard deviation over atoms and features of a structure."""
    entries = sum_per_structure(torch.ones_like(features), graph).sum(dim=1).clamp(min=1)  # (b,)
    mean = sum_per_structure(features, graph).sum(dim=1) / entries
    centred = features - mean[graph.batch, None]
    variance = sum_per_structure(centred.square(), graph).sum(dim=1) / entries
    # the root has no derivative at zero, where all entries are equal
    deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    return centred / (deviation[graph.batch, None] + epsilon)


class AGNPool(nn.Module):
    """Windows along the features of each atom, then the mean over the atoms of a structure."""

    def __init__(self, features_in: int, features_out: int, width: float, kind: str) -> None:
        super().__init__()
        require_choice("pool", kind, ("mean", "max"))
        self.kind = kind
        self.window, self.stride, self.padding = pool_window(features_in, features_out, width)

    def forward(self, features: Tensor, graph: AtomGraph) -> Tensor:
        """Features `(n, in)` to `(b, out)`."""
        if self.kind == "mean":  # zeros of the padding count
            padded = pad(features, (self.padding, self.padding))
            pooled = avg_pool1d(padded[:, None], self.window, self.stride).squeeze(1)  # (n, out)
        else:
            padded = pad(features, (self.padding, self.padding), value=-torch.inf)
            pooled = max_pool1d(padded[:, None], self.window, self.stride).squeeze(1)
        atoms = sum_per_structure(torch.ones_like(pooled), graph)
        return sum_per_structure(pooled, graph) / atoms.clamp(min=1)


def pool_window(features_in: int, features_out: int, width: float) -> tuple[int, int, int]:
    """Window, stride and padding that pool `features_in` numbers to `features_out`.

    The window starts at `width` × `features_in`, and grows by a fifth until the padding is less
    than 0.8 of it.

    Raises `ValueError` if no window does it.
    """
    if not 0 < features_out <= features_in:
        raise ValueError(f"pooled_features={features_out} must be 1 to features={features_in}")
    first = round(width * features_in)
    while True:
        window, stride = first, features_in // features_out
        overlap = stride * (features_out - 1) - (features_in - window)
        if overlap == -1:
            window += 1
        elif overlap < 0:
            stride += 1
        overlap = stride * (features_out - 1) - (features_in - window)
        if overlap % 2:
            window, overlap = window - 1, overlap - 1
        wider = round(1.2 * first)
        if overlap >= 0 and window > 0 and overlap / 2 < 0.8 * window:
            return window, stride, overlap // 2
        if overlap < 0 or wider == first or wider > features_in:
            raise ValueError(
                f"no pooling window of about {width} × {features_in} features gives "
                f"{features_out}; change pool_width or pooled_features"
            )
        first = wider
