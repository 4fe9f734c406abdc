"""The network: blocks in a row that share harmonics and bases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ase_biasgrad.se3_transformer.attention import AttentionBlock
from ase_biasgrad.se3_transformer.bases import BasisShape, kernel_bases, spherical_harmonics
from ase_biasgrad.se3_transformer.convolution import Convolution, KernelOptions
from ase_biasgrad.se3_transformer.edges import EdgeContext
from ase_biasgrad.se3_transformer.fibers import Features, Fiber, check_features


class SE3Transformer(nn.Module):
    """Features of points in, features of points out, turning with the points.

    Parameters
    ----------
    fiber_in
        Features that come in.
    blocks
        Modules called with (features, edges) one after another; see `transformer_blocks`.
    """

    def __init__(self, fiber_in: Fiber, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.fiber_in = dict(fiber_in)
        self.blocks = nn.ModuleList(blocks)

    @property
    def shapes(self) -> list[BasisShape]:
        """Shapes of all bases that the blocks need, each once."""
        convolutions = [m for m in self.modules() if isinstance(m, Convolution)]
        return list(dict.fromkeys(shape for conv in convolutions for shape in conv.shapes))

    @property
    def highest_order(self) -> int:
        """Highest order of the spherical harmonics."""
        return max(shape.highest_order for shape in self.shapes)

    def forward(
        self,
        features: Features,
        vectors: Tensor,
        edge_index: Tensor,
        edge_scalars: Tensor | None = None,
        envelope: Tensor | None = None,
        harmonics: Tensor | None = None,
    ) -> Features:
        """One pass.

        Parameters
        ----------
        features
            Degree l → `(n, 2l + 1, channels)`; vectors are degree 1 in Cartesian order.
        vectors
            x_j − x_i of each edge, `(e, 3)`, not zero. Gradients flow through them.
        edge_index
            Centres i and neighbours j, `(2, e)`.
        edge_scalars
            Further invariants of the edges, `(e, s)`.
        envelope
            Weight of each edge in 0..1, `(e,)`, for edges that fade out at a cutoff.
        harmonics
            `spherical_harmonics(vectors, highest_order)` if at hand, from a cache.

        Raises
        ------
        ValueError
            If features, edge scalars or harmonics have other shapes than the network takes.
        """
        check_features(features, self.fiber_in)
        edges = self.edge_context(vectors, edge_index, edge_scalars, envelope, harmonics)
        for block in self.blocks:
            features = block(features, edges)
        return features

    def edge_context(
        self,
        vectors: Tensor,
        edge_index: Tensor,
        edge_scalars: Tensor | None = None,
        envelope: Tensor | None = None,
        harmonics: Tensor | None = None,
    ) -> EdgeContext:
        """Edges as all blocks see them; arguments as in `forward`."""
        if harmonics is None:
            harmonics = spherical_harmonics(vectors, self.highest_order)
        if harmonics.shape != (len(vectors), (self.highest_order + 1) ** 2):
            raise ValueError(
                f"harmonics have shape {tuple(harmonics.shape)}, not "
                f"{(len(vectors), (self.highest_order + 1) ** 2)} of order {self.highest_order}"
            )
        distances = vectors.norm(dim=1, keepdim=True)  # (e, 1)
        scalars = [distances] if edge_scalars is None else [distances, edge_scalars]
        return EdgeContext(
            centre=edge_index[0],
            neighbour=edge_index[1],
            scalars=torch.cat(scalars, dim=1),
            bases=kernel_bases(harmonics, self.shapes),
            envelope=envelope,
        )


def transformer_blocks(
    fiber_in: Fiber,
    fiber_hidden: Fiber,
    layers: int,
    heads: int,
    division: float,
    options: KernelOptions,
    nonlinearity: Callable[[Fiber], nn.Module],
) -> list[nn.Module]:
    """`layers` times attention and non-linearity, from `fiber_in` to `fiber_hidden`."""
    blocks: list[nn.Module] = []
    for layer in range(layers):
        fiber = fiber_hidden if layer else fiber_in
        blocks += [
            AttentionBlock(fiber, fiber_hidden, heads, division, options),
            nonlinearity(fiber_hidden),
        ]
    return blocks
