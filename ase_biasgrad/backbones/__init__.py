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

MAX_ARGUMENT = 100_000  # of a size, a range in Å, or a unit in eV

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
    """Build a backbone with random weights; arguments left out have their defaults.

    Raises
    ------
    ValueError
        If an argument is unknown, or not of its type or within its bounds.
    """
    cls = backbone_class(name)
    known = backbone_arguments(cls)
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}; choose from {sorted(known)}")
        if not _alike(value, known[key]):
            raise ValueError(
                f"{key}={str(value)[:80]} must be like {known[key]!r}: {_expected(known[key])}"
            )
    return cls(**arguments)


def _expected(default: Any) -> str:
    """Name what an argument with this default may be."""
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return f"a whole number from 0 to {MAX_ARGUMENT:g}"
    if isinstance(default, float):
        return f"a number from {-MAX_ARGUMENT:g} to {MAX_ARGUMENT:g}"
    return "a word" if isinstance(default, str) else "a list of words"


def _alike(value: Any, default: Any) -> bool:
    """Tell whether an argument has the type of its default, and is no number out of bounds."""
    if isinstance(default, (bool, str)):
        return type(value) is type(default)
    if isinstance(default, (int, float)):
        kinds = (int, float) if isinstance(default, float) else int
        least = -MAX_ARGUMENT if isinstance(default, float) else 0
        return (
            not isinstance(value, bool)
            and isinstance(value, kinds)
            and (least <= value <= MAX_ARGUMENT)
        )
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)


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
