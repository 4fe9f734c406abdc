"""Potentials as ASE calculators. Importing this package loads no torch; making one does."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_biasgrad.calculators.calculator import BiasGradCalculator

__all__ = ["BiasGradCalculator"]


def __getattr__(name: str) -> Any:
    if name == "BiasGradCalculator":
        from ase_biasgrad.calculators.calculator import BiasGradCalculator

        return BiasGradCalculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
