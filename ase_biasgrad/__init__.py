"""Interatomic potentials trained on forces, given their energy by a bias, run in ASE.

Importing this package loads neither torch nor ASE's calculators; `BiasGradCalculator` is
resolved on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_biasgrad.calculators import BiasGradCalculator

__all__ = ["BiasGradCalculator", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "BiasGradCalculator":
        from ase_biasgrad.calculators import BiasGradCalculator

        return BiasGradCalculator
    if name == "__version__":
        from importlib.metadata import version

        return version("ase-biasgrad")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
