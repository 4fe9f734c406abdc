"""Backbones by their name in configurations and checkpoints."""

from __future__ import annotations

from typing import Any

from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.backbones.schnetpack import PaiNN, SchNet

__all__ = ["Backbone", "PaiNN", "SchNet", "backbone_class", "build_backbone"]

BACKBONES: tuple[type[Backbone], ...] = (SchNet, PaiNN)


def backbone_class(name: str) -> type[Backbone]:
    """The class of backbone `name`.

    Raises
    ------
    ValueError
        If there is no such backbone; the message lists those there are.
    """
    for cls in BACKBONES:
        if cls.name == name:
            return cls
    names = ", ".join(cls.name for cls in BACKBONES)
    raise ValueError(f"there is no backbone {name!r}; choose one of: {names}")


def build_backbone(name: str, arguments: dict[str, Any]) -> Backbone:
    """A new backbone with random weights."""
    return backbone_class(name)(**arguments)
