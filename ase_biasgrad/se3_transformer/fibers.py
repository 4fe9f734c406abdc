"""Fibers: how many channels a feature has of each degree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Fiber = Mapping[int, int]  # degree → channels
Features = dict[int, Tensor]  # degree l → (n, 2l + 1, channels)


@dataclass(frozen=True)
class Group:
    """Degrees that have equally many channels and are therefore computed together."""

    degrees: tuple[int, ...]
    channels: int

    @property
    def components(self) -> int:
        """Numbers per channel: Σ (2l + 1)."""
        return sum(2 * degree + 1 for degree in self.degrees)


def groups_of(fiber: Fiber) -> tuple[Group, ...]:
    """Degrees of the fiber by their number of channels."""
    members: dict[int, list[int]] = {}
    for degree, channels in fiber.items():
        members.setdefault(channels, []).append(degree)
    return tuple(Group(tuple(degrees), channels) for channels, degrees in members.items())


def joined(features: Features, group: Group) -> Tensor:
    """Components of all degrees of a group, `(n, components, channels)`."""
    parts = [features[degree] for degree in group.degrees]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def uniform_fiber(max_degree: int, channels: int) -> dict[int, int]:
    """`channels` of every degree from 0 to `max_degree`."""
    return dict.fromkeys(range(max_degree + 1), channels)


def concatenated(one: Fiber, two: Fiber) -> dict[int, int]:
    """Channels of `one`, and those of `two` beside them where the degree is in both."""
    return {degree: channels + two.get(degree, 0) for degree, channels in one.items()}


def features_of(fiber: Fiber) -> int:
    """Numbers altogether: Σ channels · (2l + 1)."""
    return sum(channels * (2 * degree + 1) for degree, channels in fiber.items())


def check_features(features: Features, fiber: Fiber) -> None:
    """Raise `ValueError` naming the degree whose features do not have the shape of the fiber."""
    if set(features) != set(fiber):
        raise ValueError(f"features have degrees {sorted(features)}, not {sorted(fiber)}")
    for degree, channels in fiber.items():
        shape = tuple(features[degree].shape)
        if shape[1:] != (2 * degree + 1, channels):
            raise ValueError(
                f"features of degree {degree} have shape {shape}, "
                f"not (points, {2 * degree + 1}, {channels})"
            )
