"""Backbones by their name in configurations and checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ase_biasgrad.architectures import Architecture, Shapes, check_arguments
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
    "architecture_of",
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

    Raises `ValueError` if there is no such backbone; the message lists those there are.
    """
    for cls in BACKBONES:
        if cls.name == name:
            return cls
    names = ", ".join(cls.name for cls in BACKBONES)
    raise ValueError(f"there is no backbone {name!r}; choose one of: {names}")


def build_backbone(name: str, arguments: dict[str, Any]) -> Backbone:
    """Build a backbone with random weights; arguments left out have their defaults.

    Raises
    ------
    ValueError
        If an argument is unknown, or not of its type or within its bounds.
    """
    cls = backbone_class(name)
    check_arguments(name, backbone_arguments(cls), arguments)
    return cls(**arguments)


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


def architecture_of(name: str) -> Architecture:
    """The architecture of backbone `name`, whose shapes are found by building it without memory.

    Errors are those of `backbone_class`.
    """
    cls = backbone_class(name)

    def shapes(arguments: Mapping[str, Any]) -> Shapes:
        with torch.inference_mode(False), torch.device("meta"):
            backbone = build_backbone(name, dict(arguments))
        return {key: list(tensor.shape) for key, tensor in backbone.state_dict().items()}

    return Architecture(name, backbone_arguments(cls), cls.depths, cls.largest_number, shapes)
