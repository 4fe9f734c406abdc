"""Expected errors of forces, as the spread of a committee tells them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols


def expected_errors(results: dict[str, Any]) -> np.ndarray:
    """Expected length of the error of each atom's force `(n,)` in eV/Å, from `forces_std`."""
    return np.sqrt(np.square(results["forces_std"]).sum(axis=1))


def too_uncertain(numbers: np.ndarray, results: dict[str, Any], limit: float) -> str | None:
    """Say which atom's force is expected to be off by more than `limit` eV/Å most, or None."""
    if "forces_std" not in results or not len(numbers):
        return None
    errors = expected_errors(results)
    k = int(np.argmax(errors))
    if errors[k] <= limit:
        return None
    return (
        f"the force on atom {k} ({chemical_symbols[numbers[k]]}) is expected to be off by "
        f"{errors[k]:.3f} eV/Å, more than {limit:g}"
    )
