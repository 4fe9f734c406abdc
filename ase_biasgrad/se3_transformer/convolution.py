"""The fused equivariant convolution: messages along edges, in a few large matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ase_biasgrad.se3_transformer.couplings import KernelShape, frame_couplings
from ase_biasgrad.se3_transformer.edges import EdgeContext
from ase_biasgrad.se3_transformer.fibers import Features, Fiber, Group, groups_of, joined
from ase_biasgrad.se3_transformer.frames import MessageShape
from ase_biasgrad.se3_transformer.radial import RadialNetwork
from ase_biasgrad.se3_transformer.self_interaction import LinearSelfInteraction


@dataclass(frozen=True)
class KernelOptions:
    """Options that all kernels of a network have in common.

    Parameters
    ----------
    inputs
        Inputs of the radial networks: one for the distance, and the edge scalars.
    radial_hidden
        Width of the radial networks.
    activation
        Class of their activation.
    odd_paths
        Whether paths with l + k + J odd are there; without them the network is equivariant
        under reflections too.
    low_memory
        Compute kernels again in the backward pass instead of keeping them.
    """

    inputs: int = 1
    radial_hidden: int = 32
    activation: Callable[[], nn.Module] = nn.ReLU
    odd_paths: bool = True
    low_memory: bool = False


class Convolution(nn.Module):
    """Messages W(x_j − x_i) f_j along every edge, not yet summed.

    All kernels share one radial network. They are applied in the frames of the edges, where one
    batched product for each order m does the work of all degrees and paths; kernels are never
    built. What the radial network gives for paths is taken to the frame by its last weights, once
    for all edges.

    Parameters
    ----------
    fiber_in
        Features that come in.
    groups
        Degrees and channels that come out.
    options
        What the kernels have in common.
    """

    def __init__(self, fiber_in: Fiber, groups: Sequence[Group], options: KernelOptions) -> None:
        super().__init__()
        self.fiber_in, self.groups, self.options = dict(fiber_in), tuple(groups), options
        self.groups_in = groups_of(fiber_in)
        self.blocks = [
            (group, KernelShape(degree, group.degrees, options.odd_paths))
            for group in self.groups
            for degree in self.fiber_in
        ]
        sizes = [
            self.fiber_in[shape.degree_in] * len(shape.paths) * group.channels
            for group, shape in self.blocks
        ]
        self.radial = RadialNetwork(
            options.inputs, options.radial_hidden, sizes, options.activation
        )
        self.reset_parameters()

    @property
    def shapes(self) -> list[MessageShape]:
        """Shapes of its messages, from each group to each."""
        return [self._shape(one, two) for one in self.groups_in for two in self.groups]

    def _shape(self, before: Group, after: Group) -> MessageShape:
        return MessageShape(before.degrees, after.degrees, self.options.odd_paths)

    def reset_parameters(self) -> None:
        """Weights such that messages of features of unit variance have about unit variance."""
        for (group, shape), layer in zip(self.blocks, self.radial.outputs, strict=True):
            fan_in = {
                k: sum(
                    channels * len(KernelShape(degree, (k,), self.options.odd_paths).paths)
                    for degree, channels in self.fiber_in.items()
                )
                for k in group.degrees
            }
            # half of the hidden layer is zero behind a ReLU
            deviation = torch.tensor(
                [math.sqrt(2 / (self.options.radial_hidden * fan_in[k])) for k, _ in shape.paths]
            )
            channels = self.fiber_in[shape.degree_in]
            with torch.no_grad():
                weight = layer.weight.view(channels, len(shape.paths), group.channels, -1)
                weight.normal_().mul_(deviation[:, None, None])
                layer.bias.zero_()

    def forward(self, features: Features, edges: EdgeContext) -> list[Tensor]:
        """Messages of each group, `(edges, channels, components)`, for `features` of the points."""
        sent = [joined(features, group) for group in self.groups_in]
        if self.options.low_memory and torch.is_grad_enabled():
            return checkpoint(self._messages, sent, edges, use_reentrant=False)
        return self._messages(sent, edges)

    def _messages(self, sent: list[Tensor], edges: EdgeContext) -> list[Tensor]:
        hidden, layers = self.radial(edges.scalars), self.radial.last_layers()
        return [
            reduce(
                torch.add,
                (
                    edges.frames.messages(
                        features,
                        hidden,
                        self._kernels(before, after, layers),
                        self._shape(before, after),
                    )
                    for before, features in zip(self.groups_in, sent, strict=True)
                ),
            )
            for after in self.groups
        ]

    def _kernels(self, before: Group, after: Group, layers: list[Tensor]) -> list[Tensor]:
        """Kernels between two groups in the frame, for each order m, as `Frames` takes them."""
        parts: dict[tuple[int, bool], list[Tensor]] = {}
        for (group, shape), layer in zip(self.blocks, layers, strict=True):
            if group != after or shape.degree_in not in before.degrees:
                continue
            couplings = frame_couplings(shape, layer.dtype, layer.device)
            by_path = layer.view(before.channels, len(shape.paths), -1)
            numbers = (couplings @ by_path).split([len(k) for _, _, k in shape.numbers], dim=1)
            for (m, odd, _), part in zip(shape.numbers, numbers, strict=True):
                parts.setdefault((m, odd), []).append(part.reshape(-1, layer.shape[1]))
        return [
            torch.cat(parts[m, False] + parts.get((m, True), []))
            for m in range(self._shape(before, after).highest_order + 1)
        ]


class ConvolutionBlock(nn.Module):
    """A layer without attention: mean of the messages, and a linear self-interaction.

    Parameters
    ----------
    fiber_in, fiber_out
        Features that come in and go out.
    options
        What the kernels have in common.
    """

    def __init__(self, fiber_in: Fiber, fiber_out: Fiber, options: KernelOptions) -> None:
        super().__init__()
        self.fiber_out = dict(fiber_out)
        groups = [Group((degree,), channels) for degree, channels in self.fiber_out.items()]
        self.convolution = Convolution(fiber_in, groups, options)
        both = {degree: channels for degree, channels in fiber_out.items() if degree in fiber_in}
        self.self_interaction = LinearSelfInteraction(fiber_in, both) if both else None

    def forward(self, features: Features, edges: EdgeContext) -> Features:
        """Features `fiber_out` of the points from features `fiber_in`.

        Raises
        ------
        ValueError
            If edges fade out at a cutoff: their mean would not be continuous there.
        """
        if edges.envelope is not None:
            raise ValueError("a mean over neighbours cannot fade out at a cutoff; use attention")
        points = len(next(iter(features.values())))
        count = edges.scalars.new_zeros(points).index_add(
            0, edges.centre, edges.scalars.new_ones(len(edges.centre))
        )
        output = {}
        messages = self.convolution(features, edges)
        for group, message in zip(self.convolution.groups, messages, strict=True):
            total = message.new_zeros(points, *message.shape[1:])
            total = total.index_add(0, edges.centre, message)
            mean = total / count.clamp_min(1)[:, None, None]
            output[group.degrees[0]] = mean.transpose(1, 2)
        if self.self_interaction is not None:
            own = self.self_interaction(features)
            output |= {degree: output[degree] + value for degree, value in own.items()}
        return output
