"""Readouts beside a network's own: the spread of one trained potential, a shallow ensemble.

Energies are E = Σᵢ w·h(i), h the features that the last layer of a network reads. Of its weights w
the training frames determine some directions well and others hardly: with J = ∂(Σᵢ h)/∂r of the
coordinates of the training frames, least squares of forces leave them the covariance

    C ∝ (Jᵀ J + λ)⁻¹

(last-layer prediction rigidity: Bigi et al. 2024, Mach. Learn.: Sci. Technol. 5, 045018). A readout
is a draw δ from it, and what it adds to energies and forces has mean 0:

    δE = Σᵢ (δ·h(i) − m(Zᵢ)),   δF = −∂(Σᵢ δ·h(i))/∂r

m(Z), the mean of δ·h over the training atoms of an element, is what the bias would take. The root
mean squares of δE and δF over several readouts are spreads (Kellner and Ceriotti 2024, Mach.
Learn.: Sci. Technol. 5, 035006), and a `Calibration` turns them into expected errors. All readouts
share the forward pass of the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_biasgrad.potential_arrays import NetworkArrays
from ase_biasgrad.units import N_ELEMENTS

TENSORS = "readouts."  # begins the names of tensors
LAST = re.compile(r"readout\.(\d+)\.weight")
LARGEST = 1e12


@dataclass(frozen=True)
class Readouts:
    """Several readouts of one network, in float64.

    Attributes
    ----------
    weights
        δ, `(k, width)`, in the units of the network's last layer.
    elements
        Atomic numbers of the training atoms, ascending.
    means
        m of each readout and element, `(k, len(elements))` in eV.
    """

    weights: np.ndarray
    elements: tuple[int, ...]
    means: np.ndarray

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> Readouts:
        """Read what `tensors` gives; raises `ValueError` if something is missing or too much."""
        found = {key.removeprefix(TENSORS): array for key, array in tensors.items()}
        if odd := sorted({"weights", "elements", "means"} ^ set(found)):
            raise ValueError(f"{TENSORS}{odd[0]}: missing, or no tensor of readouts")
        elements = tuple(np.ravel(found["elements"]).tolist())
        return cls(found["weights"], elements, found["means"])

    def tensors(self) -> dict[str, np.ndarray]:
        """Arrays by their names in a file."""
        elements = np.array(self.elements, np.int64)
        found = {"weights": self.weights, "elements": elements, "means": self.means}
        return {f"{TENSORS}{name}": array for name, array in found.items()}

    def check(self, network: NetworkArrays) -> None:
        """Raise `ValueError` if these cannot be readouts of `network`."""
        _, width = last_layer(network)
        integers = all(type(z) is int and 0 < z < N_ELEMENTS for z in self.elements)
        if not integers or sorted(set(self.elements)) != list(self.elements):
            raise ValueError(f"readouts.elements: {str(self.elements)[:80]} are no atomic numbers")
        expected = {"weights": width, "means": len(self.elements)}
        for name, columns in expected.items():
            array = getattr(self, name)
            if array.dtype != np.float64 or array.ndim != 2 or array.shape[1] != columns:
                raise ValueError(
                    f"readouts.{name}: {array.dtype} {array.shape}, must be float64 (k, {columns})"
                )
            if not (np.abs(array) < LARGEST).all():
                raise ValueError(f"readouts.{name}: holds NaN, infinity or values of {LARGEST:g}")
        if len(self.weights) < 2 or len(self.means) != len(self.weights):
            raise ValueError(
                f"readouts: {len(self.weights)} with weights and {len(self.means)} with means; "
                "there must be two or more"
            )

    def spreads(
        self, numbers: np.ndarray, energies: np.ndarray, forces: np.ndarray
    ) -> dict[str, Any]:
        """`energy_std` in eV and `forces_std (n, 3)` in eV/Å, not calibrated.

        numbers: atomic numbers `(n,)`. energies: δ·h of each atom `(k, n)` in eV. forces: δF,
        `(k, n, 3)` in eV/Å.
        """
        means = self.means[:, np.searchsorted(self.elements, numbers)]  # (k, n)
        change = (energies - means).sum(axis=1)
        return {
            "energy_std": float(np.sqrt(np.mean(change**2))),
            "forces_std": np.sqrt(np.mean(forces**2, axis=0)),
        }


def last_layer(network: NetworkArrays) -> tuple[str, int]:
    """Name and width of the last layer of a network's readout.

    Raises `ValueError` if it has none that gives one number.
    """
    found = [int(match[1]) for key in network.tensors if (match := LAST.fullmatch(key))]
    name = f"readout.{max(found, default=0)}"
    shape = network.tensors[f"{name}.weight"].shape if found else ()
    if len(shape) != 2 or shape[0] != 1:
        raise ValueError(f"the network {network.name} has no last layer, of which readouts are")
    return name, int(shape[1])
