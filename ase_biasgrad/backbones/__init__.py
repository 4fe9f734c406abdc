"""Backbones by their name in configurations and checkpoints."""

from __future__ import annotations

import inspect
from typing import Any

from ase_biasgrad.backbones.atomgraph import AtomGraphNet
from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.backbones.graph_convolution import GraphConvolution
from ase_biasgrad.backbones.schnetpack import PaiNN, SchNet
from ase_biasgrad.backbones.se3_transformer import SE3TransformerBackbone
from ase_biasgrad.backbones.tensornet import TensorNet

__all__ = [
    "AtomGraphNet",
    "Backbone",
    "GraphConvolution",
    "PaiNN",
    "SE3TransformerBackbone",
    "SchNet",
    "TensorNet",
    "backbone_arguments",
    "backbone_class",
    "build_backbone",
]

BACKBONES: tuple[type[Backbone], ...] = (
    SchNet,
    PaiNN,
    GraphConvolution,
    AtomGraphNet,
    SE3TransformerBackbone,
    TensorNet,
)


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


def backbone_arguments(cls: type[Backbone]) -> dict[str, Any]:
    """Keyword arguments of a backbone and their defaults, those passed to a base class included."""
    arguments: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base) and issubclass(base, Backbone) and base is not Backbone:
            arguments |= {
                name: parameter.default
                for name, parameter in inspect.signature(base.__init__).parameters.items()
                if parameter.kind is not parameter.VAR_KEYWORD and name != "self"
            }
    return arguments
