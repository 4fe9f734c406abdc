"""The fused equivariant convolution: messages along edges, in a few large matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ase_biasgrad.se3_transformer.bases import BasisShape, KernelBases
from ase_biasgrad.se3_transformer.edges import EdgeContext
from ase_biasgrad.se3_transformer.fibers import Features, Fiber, Group
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

    All kernels share one radial network. For each group of degrees out and each degree l in,
    two batched products do the work of all their paths: features with weights over channels,
    then the result with the bases over paths and components.

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
        self.blocks = [
            (group, BasisShape(degree, group.degrees, options.odd_paths))
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
    def shapes(self) -> list[BasisShape]:
        """Shapes of the bases that it needs."""
        return [shape for _, shape in self.blocks]

    def reset_parameters(self) -> None:
        """Weights such that messages of features of unit variance have about unit variance."""
        for (group, shape), layer in zip(self.blocks, self.radial.outputs, strict=True):
            fan_in = {
                k: sum(
                    channels * len(BasisShape(degree, (k,), self.options.odd_paths).paths)
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
        sent = [features[degree].index_select(0, edges.neighbour) for degree in self.fiber_in]
        arguments = (sent, edges.scalars, edges.bases)
        if self.options.low_memory and torch.is_grad_enabled():
            return checkpoint(self._messages, *arguments, use_reentrant=False)
        return self._messages(*arguments)

    def _messages(self, sent: list[Tensor], scalars: Tensor, bases: KernelBases) -> list[Tensor]:
        features_of = dict(zip(self.fiber_in, sent, strict=True))
        messages: dict[Group, Tensor] = {}
        for (group, shape), weight in zip(self.blocks, self.radial(scalars), strict=True):
            features = features_of[shape.degree_in]
            sizes = (features.shape[2], len(shape.paths) * group.channels)
            weight = weight.view(len(scalars), *sizes)
            # (edges, 2l + 1, channels in) · (edges, channels in, paths · channels out)
            mixed = torch.bmm(features, weight).view(len(scalars), shape.rows, group.channels)
            mixed = mixed.transpose(1, 2)  # (edges, channels out, (2l + 1) · paths)
            if group in messages:
                messages[group] = torch.baddbmm(messages[group], mixed, bases[shape])
            else:
                messages[group] = torch.bmm(mixed, bases[shape])
        return list(messages.values())


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
