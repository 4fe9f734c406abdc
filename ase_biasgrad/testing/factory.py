"""A factory of calculators by its name, `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Factory:
    """A function that makes calculators, and structures to try them on where it brings some."""

    name: str
    make: Callable[[], Any]
    structures: Sequence[Atoms] | None = None


def found_factory(name: str) -> Factory:
    """Import the factory `module:function`, or a class that is made without arguments.

    Raises
    ------
    ValueError
        If there is none of this name; the message says how to write it.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{name!r}: write module:function, such as mypackage:make")
    try:
        make = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{name!r}: the module {module} cannot be imported: {error}") from error
    for part in attribute.split("."):
        make = getattr(make, part, None)  # type: ignore[assignment]
    if not callable(make):
        raise ValueError(f"{name!r}: {module} has no function or class {attribute!r}")
    return Factory(name, make, getattr(make, "structures", None))
