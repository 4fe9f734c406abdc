"""Edges of one batch, with what all layers of a network need of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ase_biasgrad.se3_transformer.compiled import CompiledFrames
from ase_biasgrad.se3_transformer.frames import Frames


@dataclass(frozen=True)
class EdgeContext:
    """Edges from centres to neighbours, and all of them that does not change between layers."""

    centre: Tensor  # (edges,) int64
    scalars: Tensor  # (edges, s), input of the radial networks: distance, then edge scalars
    frames: Frames | CompiledFrames
    envelope: Tensor | None  # (edges,) in 0..1, weight of an edge that fades out at a cutoff


def edge_softmax(scores: Tensor, edges: EdgeContext, points: int) -> Tensor:
    """Softmax of `scores (edges, heads)` over the edges of each centre, `(edges, heads)`.

    With an envelope f the weights are f_ij · f_ij e^{s_ij} / Σ_j f_ij e^{s_ij}. They and their
    first derivatives vanish where an edge reaches the cutoff, also that of a last neighbour.
    """
    index = edges.centre[:, None].expand_as(scores)
    if edges.envelope is not None:
        beyond = edges.envelope[:, None] == 0
        scores = scores.masked_fill(beyond, -torch.inf)
    with torch.no_grad():  # a shift of all scores of a centre changes nothing
        highest = scores.new_full((points, scores.shape[1]), -torch.inf)
        highest = highest.scatter_reduce(0, index, scores, "amax")
        highest = highest.masked_fill(highest == -torch.inf, 0.0)
    weights = torch.exp(scores - highest.index_select(0, edges.centre))  # (edges, heads)
    if edges.envelope is None:
        return weights / _sum_by_centre(weights, edges, points).index_select(0, edges.centre)
    fading = edges.envelope[:, None]
    weights = fading * weights
    # a centre without any neighbour within the cutoff would divide by zero
    total = _sum_by_centre(weights, edges, points).clamp_min(1e-30)
    return fading * weights / total.index_select(0, edges.centre)


def _sum_by_centre(values: Tensor, edges: EdgeContext, points: int) -> Tensor:
    return values.new_zeros(points, *values.shape[1:]).index_add(0, edges.centre, values)
