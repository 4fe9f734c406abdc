"""Elastic constants of a crystal from exact second derivatives of its energy."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError, InputError

from ase_biasgrad.calculators.biased import BiasedCalculator
from ase_biasgrad.calculators.calculator import BiasGradCalculator
from ase_biasgrad.numerics.rigid_motions import shifts

LARGEST_FORCE = 0.01  # eV/Å
LARGEST_STRESS = 2e-3  # eV/Å³, 0.3 GPa: what it would leave open in the constants
SOFTEST = 1e-6  # curvature of a stable crystal relative to the mean of all, eV/Å²


def elastic_constants(atoms: Atoms) -> np.ndarray:
    """Elastic constants `(6, 6)` of a relaxed crystal in eV/Å³, its atoms free to follow a strain.

    C = (∂²E/∂ε∂ε − Λ Φ⁻¹ Λᵀ) / V with Φ = ∂²E/∂r∂r without translations and Λ = ∂²E/∂ε∂r (Born and
    Huang 1954), in the order xx yy zz yz xz xy of ASE's stress, a shear strain being 2 ε: stress
    changes by C ε. Divided by `ase.units.GPa` they are in GPa. Constraints are not applied.

    Raises
    ------
    ase.calculators.calculator.CalculatorSetupError
        If `atoms.calc` is neither a `BiasGradCalculator` nor one in a `BiasedCalculator`.
    ase.calculators.calculator.InputError
        If the structure is not periodic in three directions, not relaxed, or not stable.
    """
    calc = atoms.calc.calc if isinstance(atoms.calc, BiasedCalculator) else atoms.calc
    if not isinstance(calc, BiasGradCalculator):
        raise CalculatorSetupError(
            f"elastic constants need a BiasGradCalculator as atoms.calc, not {atoms.calc!r}"
        )
    _check_relaxed(atoms)
    m = 3 * len(atoms)
    second = calc.get_hessian(atoms, strain=True)
    # translations cost nothing and couple to no strain; given a curvature, Φ can be inverted
    translations = shifts(len(atoms)) / np.sqrt(len(atoms))
    mean = np.trace(second[:m, :m]) / m
    curvature = second[:m, :m] + max(mean, 1.0) * translations @ translations.T
    lowest = np.linalg.eigvalsh(curvature)[0]
    if lowest <= SOFTEST * max(mean, 1.0):
        raise InputError(
            f"the crystal is not stable: along some displacement the curvature of its energy is "
            f"{lowest:.1e} eV/Å²; move its atoms off their sites and relax it again (PaiNN has "
            "kinks at sites of high symmetry: take another network there)"
        )
    followed = second[m:, :m] @ np.linalg.solve(curvature, second[:m, m:])
    return (second[m:, m:] - 0.5 * (followed + followed.T)) / atoms.get_volume()


def _check_relaxed(atoms: Atoms) -> None:
    if not atoms.pbc.all():
        raise InputError(f"elastic constants are those of crystals, but pbc={atoms.pbc.tolist()}")
    force = float(np.abs(atoms.get_forces(apply_constraint=False)).max())
    stress = float(np.abs(atoms.get_stress(apply_constraint=False)).max())
    if force > LARGEST_FORCE or stress > LARGEST_STRESS:
        raise InputError(
            f"the crystal is not relaxed: largest force {force:.2g} eV/Å (limit {LARGEST_FORCE}), "
            f"stress {stress:.2g} eV/Å³ (limit {LARGEST_STRESS}); relax positions and cell, say by "
            "BFGS(FrechetCellFilter(atoms)).run(fmax=1e-3)"
        )
