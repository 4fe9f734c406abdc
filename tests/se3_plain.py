"""The reference that the fused layers are checked and timed against.

As in the original: a kernel with a radial network of its own for each pair of degrees, built
for each edge and then applied, and separate convolutions for keys and for values. Slow.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ase_biasgrad.se3_transformer.attention import AttentionBlock
from ase_biasgrad.se3_transformer.convolution import KernelOptions
from ase_biasgrad.se3_transformer.couplings import KernelShape, clebsch_gordan
from ase_biasgrad.se3_transformer.edges import EdgeContext
from ase_biasgrad.se3_transformer.fibers import Features, Fiber
from ase_biasgrad.se3_transformer.network import SE3Transformer
from ase_biasgrad.se3_transformer.radial import RadialNetwork


def spherical_harmonics(vectors: Tensor, highest_order: int) -> Tensor:
    """e3nn's real harmonics of unit vectors with Σ_M Y_{JM}² = 2J + 1, `(edges, …)`."""
    from e3nn.o3 import spherical_harmonics

    orders = list(range(highest_order + 1))
    return spherical_harmonics(orders, vectors, normalize=True, normalization="component")


def kernel_basis(vectors: Tensor, shape: KernelShape) -> Tensor:
    """Σ_M Y_{JM} Q_{JM} of each path of one pair of degrees, `(edges, 2k + 1, 2l + 1, paths)`."""
    harmonics = spherical_harmonics(vectors, max(J for _, J in shape.paths))
    parts = [
        torch.einsum(
            "em,mab->eba",
            harmonics[:, J**2 : (J + 1) ** 2],
            clebsch_gordan(J, shape.degree_in, k).to(harmonics),
        )
        for k, J in shape.paths
    ]
    return torch.stack(parts, dim=-1)


@dataclass(frozen=True)
class Bases:
    """Harmonics and couplings of edges that send from `neighbour`, in place of frames."""

    of: dict[KernelShape, Tensor]
    neighbour: Tensor


class PairwiseKernel(nn.Module):
    """Kernels W^{lk} of all edges as matrices."""

    def __init__(
        self, shape: KernelShape, channels_in: int, channels_out: int, options: KernelOptions
    ) -> None:
        super().__init__()
        self.shape, self.channels_in, self.channels_out = shape, channels_in, channels_out
        size = channels_out * channels_in * len(shape.paths)
        self.radial = RadialNetwork(
            options.inputs, options.radial_hidden, [size], options.activation
        )

    def forward(self, edges: EdgeContext) -> Tensor:
        """`(edges, channels out · (2k + 1), channels in · (2l + 1))`."""
        weight = self.radial.outputs[0](self.radial.trunk(edges.scalars))
        paths, (degree_out,) = len(self.shape.paths), self.shape.degrees_out
        weight = weight.view(-1, self.channels_out, 1, self.channels_in, 1, paths)
        kernel = (weight * edges.frames.of[self.shape][:, None, :, None]).sum(dim=-1)
        return kernel.view(len(kernel), self.channels_out * (2 * degree_out + 1), -1)


class PlainConvolution(nn.Module):
    """Messages along every edge, pair by pair of degrees."""

    def __init__(self, fiber_in: Fiber, fiber_out: Fiber, options: KernelOptions) -> None:
        super().__init__()
        self.fiber_in, self.fiber_out = dict(fiber_in), dict(fiber_out)
        self.kernels = nn.ModuleDict(
            {
                f"{degree},{k}": PairwiseKernel(
                    KernelShape(degree, (k,), options.odd_paths), channels_in, channels_out, options
                )
                for degree, channels_in in fiber_in.items()
                for k, channels_out in fiber_out.items()
            }
        )

    def forward(self, features: Features, edges: EdgeContext) -> Features:
        """Degree k → `(edges, channels, 2k + 1)`."""
        messages = {}
        for k, channels_out in self.fiber_out.items():
            total: Tensor | float = 0.0
            for degree in self.fiber_in:
                sent = features[degree][edges.frames.neighbour]  # (edges, 2l + 1, channels)
                flat = sent.transpose(1, 2).reshape(len(sent), -1, 1)
                total = total + self.kernels[f"{degree},{k}"](edges) @ flat
            assert isinstance(total, Tensor)
            messages[k] = total.view(len(edges.centre), channels_out, 2 * k + 1)
        return messages


class PlainAttentionBlock(AttentionBlock):
    """The attention block with a convolution for keys and one for values."""

    def __init__(self, fused: AttentionBlock) -> None:
        options = fused.convolution.options
        fibers = (fused.fiber_in, fused.fiber_out)
        super().__init__(*fibers, fused.heads, fused.division, options, fused.attentive)
        del self.convolution
        self.keys = PlainConvolution(fused.fiber_in, fused.fiber_keys, options)
        self.values = PlainConvolution(fused.fiber_in, fused.fiber_values, options)
        self.to(dtype=next(fused.parameters()).dtype)
        self.queries.load_state_dict(fused.queries.state_dict())
        self.projection.load_state_dict(fused.projection.state_dict())
        self._take_kernels(fused)

    def keys_and_values(self, features: Features, edges: EdgeContext) -> tuple[Tensor, Tensor]:
        """Keys and values of the fused block."""
        keys, values = self.keys(features, edges), self.values(features, edges)
        return self._joined_by_head(keys), self._joined_by_head(values)

    def _joined_by_head(self, messages: Features) -> Tensor:
        parts = []
        for group, _ in self.groups:
            members = [messages[degree] for degree in group.degrees if degree in messages]
            if members:
                parts.append(self._by_head(torch.cat(members, dim=2)))
        return torch.cat(parts, dim=2)

    @torch.no_grad()
    def _take_kernels(self, fused: AttentionBlock) -> None:
        """Set the kernels to those of the fused convolution."""
        convolution = fused.convolution
        keys_of = {group: key_channels for group, key_channels in fused.groups}
        for (group, shape), layer in zip(
            convolution.blocks, convolution.radial.outputs, strict=True
        ):
            assert isinstance(layer, nn.Linear)
            size = (fused.fiber_in[shape.degree_in], len(shape.paths), group.channels)
            split = group.channels - keys_of[group]
            for k in group.degrees:
                paths = [index for index, (degree, _) in enumerate(shape.paths) if degree == k]
                for plain, channels in (
                    (self.values, slice(0, split)),
                    (self.keys, slice(split, None)),
                ):
                    if k not in plain.fiber_out:
                        continue
                    radial = plain.kernels[f"{shape.degree_in},{k}"].radial
                    radial.trunk.load_state_dict(convolution.radial.trunk.state_dict())
                    weight = layer.weight.view(*size, -1)[:, paths, channels]
                    bias = layer.bias.view(size)[:, paths, channels]
                    # to (channels out, channels in, paths)
                    last = radial.outputs[0]
                    last.weight.copy_(weight.permute(2, 0, 1, 3).reshape(last.weight.shape))
                    last.bias.copy_(bias.permute(2, 0, 1).reshape(-1))


class PlainSE3Transformer(SE3Transformer):
    """The same function as a network of fused attention blocks, computed pair by pair."""

    def __init__(self, fused: SE3Transformer) -> None:
        super().__init__(
            fused.fiber_in,
            [
                PlainAttentionBlock(block)
                if isinstance(block, AttentionBlock)
                else copy.deepcopy(block)
                for block in fused.blocks
            ],
        )

    @property
    def shapes(self) -> list[KernelShape]:
        """One shape for each pair of degrees."""
        kernels = [m for m in self.modules() if isinstance(m, PairwiseKernel)]
        return list(dict.fromkeys(kernel.shape for kernel in kernels))

    def _frames(self, vectors: Tensor, neighbour: Tensor) -> Any:
        """Bases of the kernels instead of frames."""
        return Bases({shape: kernel_basis(vectors, shape) for shape in self.shapes}, neighbour)
