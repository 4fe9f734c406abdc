"""Entry points by which ASE finds this package; importing this module loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ase.utils.plugins import ExternalIOFormat

if TYPE_CHECKING:
    from ase_biasgrad.calculators.calculator import BiasGradCalculator

NAME = "biasgrad"


def _calculator_class() -> type[BiasGradCalculator]:
    from ase_biasgrad.calculators.calculator import BiasGradCalculator

    return BiasGradCalculator


class LazyCalculatorClass:
    """Stands for `BiasGradCalculator` in ASE's table of classes until it is used."""

    def __call__(self, *args: Any, **kwargs: Any) -> BiasGradCalculator:
        return _calculator_class()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(_calculator_class(), name)


# loaded by ASE when it lists its formats, which is when our calculator becomes known, too
dataset_format = ExternalIOFormat(
    desc="ase-biasgrad dataset",
    code="+S",
    module="ase_biasgrad.data.dataset",
    glob="*.biasgrad.h5",
    magic=b"ase-biasgrad dataset",
)


def register() -> None:
    """Make `get_calculator_class("biasgrad")` and `ase run biasgrad` work; may be repeated."""
    from ase.calculators import calculator as table

    if NAME not in table.external_calculators:
        table.register_calculator_class(NAME, LazyCalculatorClass())


register()


def __getattr__(name: str) -> Any:
    # ASE's plugin collection reads this attribute; the import needs ASE 3.29
    if name == "__ase_plugins__":
        from ase._4.plugins.plugin import CalculatorPlugin

        return {CalculatorPlugin(NAME, implementation=_calculator_class)}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
