"""Interface of engines, by which a calculator evaluates the backbones of its potentials.

Engines know nothing of biases: the calculator adds these in float64, so no engine can let a
bias touch a force.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from ase_biasgrad.neighbours import Structure


@dataclass(frozen=True)
class Evaluation:
    """Backbone energies and derivatives, float64; the first axis runs over the committee."""

    energies: np.ndarray  # (members, n) eV, per atom, without bias
    forces: np.ndarray | None = None  # (members, n, 3) eV/Å
    strain_gradient: np.ndarray | None = None  # (members, 3, 3) eV, ∂E/∂ε, symmetric


def split(
    energies: np.ndarray, forces: np.ndarray, strain: np.ndarray, sizes: Sequence[int]
) -> list[Evaluation]:
    """Split the evaluation of several structures at once into theirs, with `sizes` atoms.

    energies `(members, n)`, forces `(members, n, 3)`, strain `(members, structures, 3, 3)`.
    """
    ends = accumulate(sizes, initial=0)
    atoms = [slice(a, b) for a, b in pairwise(ends)]
    return [Evaluation(energies[:, a], forces[:, a], strain[:, k]) for k, a in enumerate(atoms)]


class Engine(Protocol):
    """Evaluates one or several potentials of one architecture family on one device.

    Engines own their neighbour lists (with a skin), hold no open handles and no compiled
    graphs when pickled, and never change the structure they are given.
    """

    name: str
    cutoff: float

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        ...

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives, at once; each has at least one atom."""
        ...

    def readouts(self, structure: Structure, weights: np.ndarray) -> Evaluation:
        """Energies and forces with other last layers, `weights (k, width)` without a bias.

        Of the first potential, whose backbone is a `ReadoutBackbone`; the first axis of the result
        runs over the k readouts.
        """
        ...

    def second_derivatives(self, structure: Structure, strain: bool) -> np.ndarray:
        """Second derivatives in all coordinates, float64, of a committee the mean.

        Coordinates and their order are those of `BiasGradCalculator.get_hessian`. Raises
        `ArithmeticError` if they are not symmetric: the network is not smooth at these positions.
        """
        ...

    def reset(self) -> None:
        """Forget neighbour lists and everything else that depends on earlier structures."""
        ...

    def fresh(self) -> Engine:
        """Another engine without state that shares the weights."""
        ...
