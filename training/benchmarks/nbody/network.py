"""The SE(3)-Transformer that predicts how charged particles move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from ase_biasgrad.se3_transformer.attention import AttentionBlock
from ase_biasgrad.se3_transformer.convolution import ConvolutionBlock, KernelOptions
from ase_biasgrad.se3_transformer.fibers import uniform_fiber
from ase_biasgrad.se3_transformer.network import SE3Transformer, transformer_blocks
from ase_biasgrad.se3_transformer.nonlinearity import NormBias


@dataclass(frozen=True)
class NBodyOptions:
    """Architecture; the defaults are the paper's.

    Parameters
    ----------
    layers, channels, heads, division
        Attention layers before the last, channels of each degree, heads, and by how much keys
        and values are narrower.
    max_degree
        Highest degree of hidden features. With 0 the last layer is a convolution: attention
        needs vectors to ask with.
    attentive
        Attentive self-interaction in the last layer.
    odd_paths
        Kernels odd under reflection, which the physics does not have.
    pair_scalars
        Give the radial networks 1/r, q_i q_j/r and the pair's relative velocity (its square and
        its part along the pair) beside r and q_i q_j.
    low_memory
        Compute kernels again in the backward pass.
    """

    layers: int = 4
    channels: int = 8
    heads: int = 2
    division: int = 4
    max_degree: int = 3
    attentive: bool = True
    odd_paths: bool = True
    pair_scalars: bool = False
    low_memory: bool = False


class NBodyNetwork(nn.Module):
    """Displacement and change of velocity of each particle after a fixed time.

    Charges go in as degree 0 and velocities as degree 1; q_i q_j is an edge scalar. Outputs are
    scaled by `output_scale`, the root mean square displacement and velocity change of the
    training data.
    """

    FORMAT, OPTIONS = "ase-biasgrad nbody network", NBodyOptions
    output_scale: Tensor

    def __init__(
        self, options: NBodyOptions, output_scale: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("output_scale", torch.tensor(output_scale))
        kernels = KernelOptions(
            inputs=6 if options.pair_scalars else 2,
            odd_paths=options.odd_paths,
            low_memory=options.low_memory,
        )
        fiber_in, hidden = {0: 1, 1: 1}, uniform_fiber(options.max_degree, options.channels)
        blocks = transformer_blocks(
            fiber_in, hidden, options.layers, options.heads, options.division, kernels, NormBias
        )
        if options.max_degree:
            heads = min(options.heads, 2)
            last = AttentionBlock(hidden, {1: 2}, heads, 1, kernels, options.attentive)
            blocks.append(last)
        else:
            blocks.append(ConvolutionBlock(hidden, {1: 2}, kernels))
        self.transformer = SE3Transformer(fiber_in, blocks)

    def forward(
        self,
        positions: Tensor,
        velocities: Tensor,
        charges: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Displacements and velocity changes, both `(b, n, 3)`.

        Positions and velocities are `(b, n, 3)`, charges `(b, n)`.
        """
        vectors, index = vectors_and_index(positions)
        q, v = charges.reshape(-1), velocities.reshape(-1, 3)
        features = {0: q[:, None, None], 1: v[:, :, None]}
        scalars = self._edge_scalars(vectors, index, q, v)
        output = self.transformer(features, vectors, index, scalars)[1]
        output = output.view(*positions.shape, 2) * self.output_scale
        return output[..., 0], output[..., 1]

    def _edge_scalars(self, vectors: Tensor, index: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """`(e, s)`."""
        centre, neighbour = index
        product = q[centre] * q[neighbour]  # (e,)
        if not self.options.pair_scalars:
            return product[:, None]
        inverse = 1 / vectors.norm(dim=1)
        relative = v[neighbour] - v[centre]  # (e, 3)
        approach = (relative * vectors).sum(dim=1) * inverse
        square = relative.square().sum(dim=1)
        return torch.stack([product, inverse, product * inverse, approach, square], dim=1)


@torch.no_grad()
def rollout(
    network: NBodyNetwork,
    positions: np.ndarray,
    velocities: np.ndarray,
    charges: np.ndarray,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities `(steps + 1, n, 3)` of one system, each step from the one before.

    The start is `(n, 3)`, `(n, 3)` and `(n,)`.
    """
    like = network.output_scale
    x, v, q = (torch.tensor(a[None]).to(like) for a in (positions, velocities, charges))
    path = [(x, v)]
    for _ in range(steps):
        displacement, change = network(x, v, q)
        x, v = x + displacement, v + change
        path.append((x, v))
    found, moving = (torch.cat(values).cpu().numpy() for values in zip(*path, strict=True))
    return found, moving


def vectors_and_index(positions: Tensor) -> tuple[Tensor, Tensor]:
    """x_j − x_i of all ordered pairs `(e, 3)`, and their places among all particles `(2, e)`."""
    batch, particles = positions.shape[:2]
    index = _all_pairs(batch, particles, positions.device)
    flat = positions.reshape(-1, 3)
    return flat[index[1]] - flat[index[0]], index


@cache
def _all_pairs(batch: int, particles: int, device: torch.device) -> Tensor:
    pairs = torch.nonzero(~torch.eye(particles, dtype=torch.bool)).T  # (2, pairs)
    first = particles * torch.arange(batch)
    return (first[None, :, None] + pairs[:, None, :]).reshape(2, -1).to(device)
