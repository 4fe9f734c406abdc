"""Imports when something is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(package: str, module_of: Mapping[str, str]) -> Callable[[str], Any]:
    """`__getattr__` of a package whose names are defined in the modules named beside them.

    Importing the package then costs nothing: what needs torch loads it on first use.
    """

    def attribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name]), name)

    return attribute


def required(package: str, purpose: str) -> ModuleType:
    """Import a package that not every installation has.

    Raises `ModuleNotFoundError` if it is missing; the message says what needs it, and what to
    install.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs the package {package}, which is not installed: `pip install "
            f"{package}`",
            name=package,
        ) from error
