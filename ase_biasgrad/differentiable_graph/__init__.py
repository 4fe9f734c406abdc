"""Weighted atomic graphs built from positions and cells, with derivatives.

Weights come from distances (`weights_cutoff`) or from Voronoi cells (`weights_voronoi`); the
normalised Laplacian drives graph convolutions.
"""

from ase_biasgrad.differentiable_graph.adjacency import Adjacency
from ase_biasgrad.differentiable_graph.cutoff_weights import (
    cutoff_adjacency,
    exp_decay,
    inverse_square,
    smooth_envelope,
    weights_cutoff,
    within_neighbour_limit,
)
from ase_biasgrad.differentiable_graph.laplacian import (
    normalised_laplacian,
    sparse_normalised_laplacian,
)
from ase_biasgrad.differentiable_graph.voronoi import (
    VoronoiFaces,
    voronoi_adjacency,
    voronoi_faces,
    weights_voronoi,
)

__all__ = [
    "Adjacency",
    "VoronoiFaces",
    "cutoff_adjacency",
    "exp_decay",
    "inverse_square",
    "normalised_laplacian",
    "smooth_envelope",
    "sparse_normalised_laplacian",
    "voronoi_adjacency",
    "voronoi_faces",
    "weights_cutoff",
    "weights_voronoi",
    "within_neighbour_limit",
]
