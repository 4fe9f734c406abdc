"""Messages as functions of torch, on `(n, parts, components, features)`."""

from __future__ import annotations

from one_layer import RandomEdges
from torch import Tensor
from torch.nn.functional import pad

from ase_biasgrad.backbones.tensornet import PART_OF, pair_tensors


def cfconv(edges: RandomEdges, x: Tensor, coefficients: Tensor) -> Tensor:
    sent = edges.filters(coefficients) * x[edges.neighbour, 0, 0]
    return edges.gathered(sent)[:, None, None]


def tensor_cfconv(edges: RandomEdges, x: Tensor, coefficients: Tensor, own: Tensor) -> Tensor:
    sent = edges.filters(coefficients)[:, PART_OF] * x[edges.neighbour, 0]
    return (edges.gathered(sent) + own[None, PART_OF] * x[:, 0])[:, None]


def tensor_message(
    edges: RandomEdges, centre: Tensor, neighbour: Tensor, coefficients: Tensor, own: Tensor
) -> Tensor:
    """Every atom is of an element of its own."""
    lifted = edges.filters(coefficients)[:, PART_OF] * pair_tensors(edges.unit)[:, :, None]
    sent = centre[edges.centre] + neighbour[edges.neighbour]
    received = edges.gathered(lifted * sent[:, None])
    alone = own * (centre + neighbour)
    return (received + pad(alone[:, None], (0, 0, 0, 8)))[:, None]


def vector_message(
    edges: RandomEdges, q: Tensor, mu: Tensor, x: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    sent = edges.filters(coefficients) * x[edges.neighbour, 0]
    one, two, three = sent.split(1, dim=1)
    along = two * edges.unit[:, :, None] + three * mu[edges.neighbour, 0]
    return q + edges.gathered(one)[:, None], mu + edges.gathered(along)[:, None]


def vector_message_without_vectors(
    edges: RandomEdges, q: Tensor, x: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    return vector_message(edges, q, x.new_zeros(x.shape), x, coefficients)
