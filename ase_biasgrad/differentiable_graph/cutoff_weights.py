"""Edge weights that fall off with distance, as in AtomGraphs.jl, and a smooth alternative.

The original (Chemellia's AtomGraphs.jl and ChemistryFeaturization.jl, after the CGCNN of Xie and
Grossman 2018, Phys. Rev. Lett. 120, 145301) limits the number of neighbours. Which pairs it
accepts is piecewise constant in the positions: derivatives are exact wherever no distance passes
the limit, and the weights jump where one does. `smooth_envelope` takes the place of the limits in
models that are made for forces.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ase_biasgrad.differentiable_graph.adjacency import Adjacency, symmetrised

Decay = Callable[[Tensor], Tensor]

# √ε of float64: the relative tolerance of Julia's `isapprox`, which decides on ties
TIE = 2.0**-26


def inverse_square(distances: Tensor) -> Tensor:
    """d⁻², the decay of the original; d in Å."""
    return distances**-2


def exp_decay(distances: Tensor) -> Tensor:
    """exp(−d), d in Å."""
    return torch.exp(-distances)


DECAYS: dict[str, Decay] = {"inverse_square": inverse_square, "exp_decay": exp_decay}


def smooth_envelope(distances: Tensor, cutoff: float) -> Tensor:
    """1 − 28x⁶ + 48x⁷ − 21x⁸ with x = d / `cutoff`: one at 0, zero from `cutoff` on, C².

    Gasteiger, Groß and Günnemann 2020 (DimeNet, ICLR), with p = 6.
    """
    x = (distances / cutoff).clamp(max=1.0)
    return 1 - x**6 * (28 - 48 * x + 21 * x**2)


def within_neighbour_limit(centre: Tensor, distances: Tensor, max_neighbors: int) -> Tensor:
    """Which edges are among the nearest `max_neighbors` of their centre, `(e,)` bool.

    Whole shells are accepted: beyond the limit an edge still counts as long as it is as long as
    the one accepted before it, within a relative `TIE`.
    """
    if max_neighbors < 1:
        raise ValueError(f"max_neighbors={max_neighbors}: a centre needs at least one neighbour")
    if len(centre) == 0:
        return torch.zeros_like(centre, dtype=torch.bool)
    order = torch.argsort(distances.detach(), stable=True)
    order = order[torch.argsort(centre[order], stable=True)]  # by centre, then by distance
    centre, distances = centre[order], distances.detach()[order]
    count = torch.bincount(centre)
    first = (torch.cumsum(count, 0) - count)[centre]  # (e,) where the edges of this centre start
    rank = torch.arange(len(centre), device=centre.device) - first
    ties = distances[1:] - distances[:-1] <= TIE * distances[1:]
    new_shell = torch.cat([ties.new_ones(1), ~ties])
    refused = torch.cumsum((rank >= max_neighbors) & new_shell, 0)  # (e,)
    before = torch.cat([refused.new_zeros(1), refused])[first]
    accepted = torch.empty_like(new_shell)
    accepted[order] = refused == before
    return accepted


def cutoff_adjacency(
    centre: Tensor,
    neighbour: Tensor,
    distances: Tensor,
    batch: Tensor,
    max_neighbors: int = 12,
    decay: Decay = inverse_square,
) -> Adjacency:
    """The weights of `weights_cutoff` for a batch of structures, without the dense matrix.

    `batch (n,)` is the structure of each atom; each structure is divided by its own largest
    entry. Structures without edges have no entries.
    """
    accepted = within_neighbour_limit(centre, distances, max_neighbors)
    weights = decay(distances[accepted])
    adjacency = symmetrised(centre[accepted], neighbour[accepted], weights, len(batch))
    largest = largest_of_group(adjacency.values, batch[adjacency.index[0]])
    return Adjacency(adjacency.index, adjacency.values / largest, adjacency.n_atoms)


def weights_cutoff(
    centre: Tensor,
    neighbour: Tensor,
    distances: Tensor,
    max_neighbors: int = 12,
    decay: Decay = inverse_square,
    n_atoms: int | None = None,
) -> Tensor:
    """Weights W `(n, n)` of one structure: nearest neighbours, symmetrised, largest entry one.

    Each centre accepts its nearest `max_neighbors` edges plus whole shells; W[i, j] += decay(d)
    for each accepted periodic image (those of an atom itself count on the diagonal); then
    ½(W + Wᵀ), divided by the largest entry. Where several entries are the largest (within
    `TIE`), the derivative of the divisor is shared among them. Without edges W is zero.

    Parameters
    ----------
    centre, neighbour
        `(e,)` int64, every edge in both directions.
    distances
        `(e,)` Å, the edges' lengths within the cutoff; the result is differentiable in them.
    max_neighbors
        Soft limit of neighbours per centre.
    decay
        Weight of an edge by its length.
    n_atoms
        Size of W; by default what the largest index asks for.

    Raises
    ------
    ValueError
        On arrays of different lengths, or an edge without length.
    """
    if not len(centre) == len(neighbour) == len(distances):
        raise ValueError(
            f"centre, neighbour and distances belong together, but there are {len(centre)}, "
            f"{len(neighbour)} and {len(distances)} of them"
        )
    if bool((distances <= 0).any()):
        edge = int((distances <= 0).nonzero()[0])
        raise ValueError(
            f"edge {edge} from atom {int(centre[edge])} to atom {int(neighbour[edge])} has the "
            f"length {float(distances[edge])} Å: two atoms coincide, or the edge is a self-loop"
        )
    if n_atoms is None:
        n_atoms = int(torch.cat([centre, neighbour]).max()) + 1 if len(centre) else 0
    batch = torch.zeros(n_atoms, dtype=torch.int64, device=centre.device)
    return cutoff_adjacency(centre, neighbour, distances, batch, max_neighbors, decay).dense()


def largest_of_group(values: Tensor, group: Tensor) -> Tensor:
    """Largest value of each entry's group `(m,)`; ties share the derivative."""
    if len(values) == 0:
        return values
    n = int(group.max()) + 1
    constant = values.detach()
    largest = constant.new_zeros(n).scatter_reduce(0, group, constant, "amax")  # (groups,)
    is_largest = (constant >= largest[group] * (1 - TIE)).to(values.dtype)
    share = is_largest / is_largest.new_zeros(n).index_add(0, group, is_largest)[group]
    change = values.new_zeros(n).index_add(0, group, share * (values - constant))  # zero
    return (largest + change)[group]
