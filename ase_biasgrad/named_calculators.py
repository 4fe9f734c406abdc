"""Calculators of ASE by name: GFN2-xTB and its kin, ASE's own, or a class of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

TBLITE_METHODS = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB", "ipea1-xtb": "IPEA1-xTB"}


def labelling_calculator(name: str, arguments: dict[str, Any] | None = None) -> Calculator:
    """A calculator by name.

    Raises `ImportError` if a package is missing (the message says what to install), and
    `ValueError` if there is no such calculator, or it has other arguments.

    Parameters
    ----------
    name
        `gfn2-xtb`, `gfn1-xtb`, `ipea1-xtb` (tblite, extra `xtb`); a calculator that ASE knows,
        such as `emt`; or `module:Class` of your own.
    arguments
        Keyword arguments of the calculator.
    """
    arguments = dict(arguments or {})
    try:
        return _made(name, arguments)
    except TypeError as error:
        raise ValueError(f"calculator {name!r}, made with {arguments}: {error}") from error


def _made(name: str, arguments: dict[str, Any]) -> Calculator:
    if name.lower() in TBLITE_METHODS:
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise ImportError(_why_no_tblite(name, error)) from error
        return TBLite(**{"method": TBLITE_METHODS[name.lower()], "verbosity": 0, **arguments})
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)(**arguments)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"calculator {name!r}: {error}") from error
    import ase.io.formats  # noqa: F401  loads plugins, which make their calculators known
    from ase.calculators.calculator import get_calculator_class

    try:
        return get_calculator_class(name)(**arguments)
    except (ImportError, AttributeError) as error:
        known = ", ".join(TBLITE_METHODS)
        raise ValueError(
            f"there is no calculator {name!r}; use {known}, one that ASE knows (emt, lj, …), or "
            "module:Class"
        ) from error


def class_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _why_no_tblite(name: str, error: ImportError) -> str:
    if importlib.util.find_spec("tblite") is None:
        return f"{name} needs tblite; install it with: pip install 'ase-biasgrad[xtb]'"
    if "torch" in sys.modules:
        return (
            f"{name}: tblite does not load after this torch, which brings an older OpenMP; put "
            "`import tblite.ase` before everything that imports torch"
        )
    return f"{name}: tblite is installed but does not load: {error.__cause__ or error}"
