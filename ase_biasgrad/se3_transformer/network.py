"""The network: blocks in a row that share the frames of the edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ase_biasgrad.se3_transformer.attention import AttentionBlock
from ase_biasgrad.se3_transformer.compiled import CompiledFrames
from ase_biasgrad.se3_transformer.convolution import Convolution, KernelOptions
from ase_biasgrad.se3_transformer.edges import EdgeContext
from ase_biasgrad.se3_transformer.fibers import Features, Fiber, check_features
from ase_biasgrad.se3_transformer.frames import Frames, MessageShape


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
    def shapes(self) -> list[MessageShape]:
        """Shapes of all messages of the blocks, each once."""
        convolutions = [m for m in self.modules() if isinstance(m, Convolution)]
        return list(dict.fromkeys(shape for conv in convolutions for shape in conv.shapes))

    def forward(
        self,
        features: Features,
        vectors: Tensor,
        edge_index: Tensor,
        edge_scalars: Tensor | None = None,
        envelope: Tensor | None = None,
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

        Raises
        ------
        ValueError
            If features or edge scalars have other shapes than the network takes.
        """
        check_features(features, self.fiber_in)
        edges = self.edge_context(vectors, edge_index, edge_scalars, envelope)
        for block in self.blocks:
            features = block(features, edges)
        return features

    def edge_context(
        self,
        vectors: Tensor,
        edge_index: Tensor,
        edge_scalars: Tensor | None = None,
        envelope: Tensor | None = None,
    ) -> EdgeContext:
        """Edges as all blocks see them; arguments as in `forward`."""
        distances = vectors.norm(dim=1, keepdim=True)  # (e, 1)
        scalars = [distances] if edge_scalars is None else [distances, edge_scalars]
        return EdgeContext(
            centre=edge_index[0],
            scalars=torch.cat(scalars, dim=1),
            frames=self._frames(vectors, edge_index[1]),
            envelope=envelope,
        )

    def _frames(self, vectors: Tensor, neighbour: Tensor) -> Frames | CompiledFrames:
        """Frames of the edges; compiled where no derivatives by positions are wanted."""
        if vectors.requires_grad or vectors.device.type != "cpu":
            return Frames.of(vectors, neighbour, self.shapes)
        degrees = (shape.degrees_in + shape.degrees_out for shape in self.shapes)
        return CompiledFrames.of(vectors, neighbour, max(max(both) for both in degrees))


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
