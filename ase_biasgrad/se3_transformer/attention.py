"""Equivariant attention over neighbours, with one convolution for keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ase_biasgrad.se3_transformer.convolution import Convolution, KernelOptions
from ase_biasgrad.se3_transformer.edges import EdgeContext, edge_softmax
from ase_biasgrad.se3_transformer.fibers import Features, Fiber, Group, concatenated, features_of
from ase_biasgrad.se3_transformer.self_interaction import (
    AttentiveSelfInteraction,
    LinearSelfInteraction,
)


class AttentionBlock(nn.Module):
    """Multi-head attention, the input concatenated to its result, and a projection.

    α_ij = softmax_j(q_i · k_ij / √dim) per head; keys and queries have only degrees of the
    input, values all degrees of the output.

    Parameters
    ----------
    fiber_in, fiber_out
        Features that come in and go out.
    heads
        Number of heads.
    division
        Keys and values have 1/`division` of the output's channels.
    options
        What the kernels have in common.
    attentive
        Project by attentive instead of linear self-interaction.

    Raises
    ------
    ValueError
        If the channels of keys and values cannot be shared out among the heads, or no degree
        out is a degree in.
    """

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        heads: int,
        division: float,
        options: KernelOptions,
        attentive: bool = False,
    ) -> None:
        super().__init__()
        self.fiber_in, self.fiber_out = dict(fiber_in), dict(fiber_out)
        self.heads, self.division, self.attentive = heads, division, attentive
        self.fiber_values = {degree: int(c // division) for degree, c in fiber_out.items()}
        self.fiber_keys = {d: c for d, c in self.fiber_values.items() if d in fiber_in}
        self._check()
        self.groups = _groups(self.fiber_values, self.fiber_keys)
        self.convolution = Convolution(fiber_in, [both for both, _ in self.groups], options)
        self.queries = LinearSelfInteraction(fiber_in, self.fiber_keys)
        # per head, so that scores have unit variance for any number of heads
        self.scale = 1 / math.sqrt(features_of(self.fiber_keys) / heads)
        self.fiber_joined = concatenated(self.fiber_values, fiber_in)
        projection = AttentiveSelfInteraction if attentive else LinearSelfInteraction
        self.projection = projection(self.fiber_joined, fiber_out)

    def _check(self) -> None:
        if not self.fiber_keys:
            raise ValueError(
                f"attention needs a degree that is both in {sorted(self.fiber_in)} and "
                f"{sorted(self.fiber_out)}"
            )
        for degree, channels in self.fiber_values.items():
            if channels == 0 or channels % self.heads:
                raise ValueError(
                    f"degree {degree}: {self.fiber_out[degree]} channels / {self.division:g} are "
                    f"{channels}, which {self.heads} heads cannot share"
                )

    def forward(self, features: Features, edges: EdgeContext) -> Features:
        """Features `fiber_out` of the points from features `fiber_in`."""
        points = len(next(iter(features.values())))
        keys, values = self.keys_and_values(features, edges)
        queries = self._queries(self.queries(features))
        asking = queries.index_select(0, edges.centre)  # (edges, heads, …)
        scores = self.scale * (asking * keys).sum(dim=2)  # (edges, heads)
        weights = edge_softmax(scores, edges, points)
        attended = values.new_zeros(points, *values.shape[1:]).index_add(
            0, edges.centre, weights[:, :, None] * values
        )
        return self.projection(self._joined(attended, features))

    def keys_and_values(self, features: Features, edges: EdgeContext) -> tuple[Tensor, Tensor]:
        """`(edges, heads, …)` of both: groups, channels of the head, components in order."""
        keys, values = [], []
        messages = self.convolution(features, edges)
        for message, (_, key_channels) in zip(messages, self.groups, strict=True):
            value, key = message.split([message.shape[1] - key_channels, key_channels], dim=1)
            values.append(self._by_head(value))
            if key_channels:
                keys.append(self._by_head(key))
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def _by_head(self, value: Tensor) -> Tensor:
        """`(…, channels, components)` as `(…, heads, channels of the head · components)`."""
        size = value.shape[1] // self.heads * value.shape[2]
        return value.reshape(len(value), self.heads, size)

    def _queries(self, features: Features) -> Tensor:
        """Queries `(points, heads, …)` in the order of the keys."""
        queries = []
        for group, key_channels in self.groups:
            if key_channels:
                value = torch.cat([features[degree] for degree in group.degrees], dim=1)
                queries.append(self._by_head(value.transpose(1, 2)))
        return torch.cat(queries, dim=2)

    def _joined(self, attended: Tensor, features: Features) -> Features:
        """Attended values by degree, with the input's channels beside them."""
        joined, start = {}, 0
        for group, key_channels in self.groups:
            channels = group.channels - key_channels
            size = channels * group.components // self.heads
            value = attended[:, :, start : start + size]
            value = value.reshape(len(attended), channels, group.components)
            start += size
            parts = value.transpose(1, 2).split([2 * d + 1 for d in group.degrees], dim=1)
            for degree, part in zip(group.degrees, parts, strict=True):
                own = [features[degree]] if degree in features else []
                joined[degree] = torch.cat([part, *own], dim=2)
        return joined


def _groups(values: Fiber, keys: Fiber) -> list[tuple[Group, int]]:
    """Degrees with equally many values and keys, and how many of their channels are keys."""
    members: dict[tuple[int, int], list[int]] = {}
    for degree, channels in values.items():
        members.setdefault((channels, keys.get(degree, 0)), []).append(degree)
    return [(Group(tuple(d), sum(counts)), counts[1]) for counts, d in members.items()]
