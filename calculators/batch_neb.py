"""ASE's nudged elastic band, all of whose images are evaluated in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.mep import NEB

from ase_biasgrad.calculators.calculator import BiasGradCalculator


class BatchNEB(NEB):
    """A nudged elastic band whose images are evaluated together, by `evaluate_many`.

    Everything else is ASE's `NEB`: methods, climbing image, preconditioners, and any of ASE's
    optimizers move it. Energies and forces are the same as with `NEB`, up to rounding.

    Parameters
    ----------
    images
        Structures from one end to the other. Each gets a copy of the calculator.
    calculator
        Evaluates the images; its own state does not change.
    arguments
        Those of `ase.mep.NEB`. The images share no calculator and use no processes.

    Raises
    ------
    TypeError
        If the calculator is no `BiasGradCalculator`.
    ValueError
        On `parallel` or `allow_shared_calculator`, which have no use here.
    """

    def __init__(
        self, images: Sequence[Atoms], calculator: BiasGradCalculator, **arguments: Any
    ) -> None:
        if not isinstance(calculator, BiasGradCalculator):
            raise TypeError(f"BatchNEB needs a BiasGradCalculator, not {type(calculator).__name__}")
        for name in ("parallel", "allow_shared_calculator"):
            if arguments.get(name):
                raise ValueError(f"{name} has no use here: all images are evaluated in one call")
        super().__init__(images, **arguments)
        self.calculator = calculator
        for image in images:
            image.calc = calculator.copy()

    def get_forces(self) -> np.ndarray:
        """Forces on the images between the ends `(atoms of all of them, 3)`, in eV/Å."""
        turn: bool = self.remove_rotation_and_translation  # type: ignore[has-type]
        self.remove_rotation_and_translation = False
        try:
            if turn:  # before they are evaluated
                for before, image in zip(self.images, self.images[1:], strict=False):
                    minimize_rotation_and_translation(before, image)
            moved = [image for image in self.images if image.calc.check_state(image)]
            for image, results in zip(moved, self.calculator.evaluate_many(moved), strict=True):
                image.calc.take(image, results)
            return super().get_forces()
        finally:
            self.remove_rotation_and_translation = turn
