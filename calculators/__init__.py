"""Potentials as ASE calculators. Importing this package loads no torch; making one does."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_biasgrad.calculators.calculator import BiasGradCalculator
    from ase_biasgrad.calculators.dense_calculator import DenseCalculator

__all__ = ["BiasGradCalculator", "DenseCalculator"]


def __getattr__(name: str) -> Any:
    if name == "BiasGradCalculator":
        from ase_biasgrad.calculators.calculator import BiasGradCalculator

        return BiasGradCalculator
    if name == "DenseCalculator":
        from ase_biasgrad.calculators.dense_calculator import DenseCalculator

        return DenseCalculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
