"""Potentials as ASE calculators. Importing this package loads no torch; making one does."""

from typing import TYPE_CHECKING

from ase_biasgrad.lazy import lazy_names

if TYPE_CHECKING:
    from ase_biasgrad.calculators.ase_plugin import register
    from ase_biasgrad.calculators.batch_neb import BatchNEB
    from ase_biasgrad.calculators.batch_relaxation import Relaxation, relax_many
    from ase_biasgrad.calculators.biased import BiasedCalculator
    from ase_biasgrad.calculators.calculator import BiasGradCalculator, EnergyZeroWarning
    from ase_biasgrad.calculators.charged_particles import ChargedParticles
    from ase_biasgrad.calculators.dense_calculator import DenseCalculator
    from ase_biasgrad.calculators.elastic import elastic_constants
    from ase_biasgrad.calculators.extrapolation import ExtrapolationError, ExtrapolationWarning

__all__ = [
    "BatchNEB",
    "BiasGradCalculator",
    "BiasedCalculator",
    "ChargedParticles",
    "DenseCalculator",
    "EnergyZeroWarning",
    "ExtrapolationError",
    "ExtrapolationWarning",
    "Relaxation",
    "elastic_constants",
    "register",
    "relax_many",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BatchNEB": "ase_biasgrad.calculators.batch_neb",
        "BiasGradCalculator": "ase_biasgrad.calculators.calculator",
        "BiasedCalculator": "ase_biasgrad.calculators.biased",
        "ChargedParticles": "ase_biasgrad.calculators.charged_particles",
        "DenseCalculator": "ase_biasgrad.calculators.dense_calculator",
        "EnergyZeroWarning": "ase_biasgrad.calculators.calculator",
        "ExtrapolationError": "ase_biasgrad.calculators.extrapolation",
        "ExtrapolationWarning": "ase_biasgrad.calculators.extrapolation",
        "Relaxation": "ase_biasgrad.calculators.batch_relaxation",
        "elastic_constants": "ase_biasgrad.calculators.elastic",
        "register": "ase_biasgrad.calculators.ase_plugin",
        "relax_many": "ase_biasgrad.calculators.batch_relaxation",
    },
)
