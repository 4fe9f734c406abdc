"""Expected errors of forces, as the spread of a committee tells them."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols


def expected_errors(forces_std: np.ndarray) -> np.ndarray:
    """Expected length of the error of each atom's force `(n,)` in eV/Å; `forces_std (n, 3)`."""
    return np.sqrt(np.square(forces_std).sum(axis=1))


def too_uncertain(numbers: np.ndarray, forces_std: np.ndarray, limit: float) -> str | None:
    """Say which atom's force is expected to be off by more than `limit` eV/Å most, or None."""
    if not len(numbers):
        return None
    errors = expected_errors(forces_std)
    k = int(np.argmax(errors))
    return None if errors[k] <= limit else off_by(k, numbers[k], errors[k], limit)


def off_by(atom: int, number: int, error: float, limit: float) -> str:
    """Say that the force on an atom is expected to be off by more than a limit, both in eV/Å."""
    return (
        f"the force on atom {atom} ({chemical_symbols[number]}) is expected to be off by "
        f"{error:.3f} eV/Å, more than {limit:g}"
    )
