"""Potentials on NumPy arrays: what a checkpoint holds and engines start from, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_biasgrad.bias_arrays import BiasArrays

REFERENCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")  # no dot, which parts names of tensors
ROUNDING = 1e-8  # of second derivatives, relative to the largest


@dataclass(frozen=True)
class NetworkArrays:
    """A backbone as its name, the arguments that build it, and its tensors by name."""

    name: str
    arguments: dict[str, Any]
    tensors: dict[str, np.ndarray]  # float32 or float64
    cutoff: float  # Å
    digest: str | None = None  # of the checkpoint that it came from
    module: Any = None  # the backbone itself, where it is none that a name builds


@dataclass(frozen=True)
class PotentialArrays:
    """A backbone and its biases; `Potential` is the same as a module of torch."""

    network: NetworkArrays
    elements: tuple[int, ...]
    reference: str
    biases: dict[str, BiasArrays]  # by the names of their references, that of `reference` first
    # record of the baseline to which the network learned the difference, if any; see `Baseline`
    baseline: dict[str, Any] | None = None

    def bias_of(self, reference: str | None = None) -> BiasArrays:
        """Bias of a reference, by default that of `reference`.

        Raises `ValueError` if there is no reference of this name.
        """
        if (name := reference or self.reference) not in self.biases:
            known = ", ".join(self.biases)
            raise ValueError(f"reference={name!r} is unknown; there are {known}")
        return self.biases[name]

    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays by their names in a checkpoint, those of `Potential.state_dict()`."""
        found = {f"backbone.{key}": array for key, array in self.network.tensors.items()}
        for name, bias in self.biases.items():
            prefix = bias_prefix(name, self.reference)
            found |= {f"{prefix}{key}": array for key, array in bias.tensors.items()}
        return found


def symmetric(second: np.ndarray, what: str) -> np.ndarray:
    """Second derivatives `(m, m)` of an energy without their rounding.

    Raises `ArithmeticError` if they are not symmetric; the message names `what` they are of.
    """
    asymmetry, largest = (np.abs(m).max(initial=0.0) for m in (second - second.T, second))
    if asymmetry > ROUNDING * max(largest, 1e-3):
        raise ArithmeticError(
            f"the second derivatives of {what} are not symmetric: off by {asymmetry:.1e} where the "
            f"largest is {largest:.1e}; it is not smooth at these positions"
        )
    return np.asarray(0.5 * (second + second.T))


def bias_prefix(name: str, reference: str) -> str:
    """Beginning of the names of a bias's tensors; `reference` is the potential's own."""
    return "bias." if name == reference else f"references.{name}."


def checked_name(reference: str) -> str:
    """The name of a reference.

    Raises `ValueError` if it cannot be one.
    """
    if not REFERENCE_NAME.fullmatch(reference):
        raise ValueError(
            f"reference={reference[:80]!r} cannot be a name: use letters, digits, _, + and -, "
            "such as r2scan"
        )
    return reference
