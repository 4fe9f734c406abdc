"""A trained dense network as a potential of molecules, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.dense.coulomb_matrix import PaddedMolecules, padded
from ase_biasgrad.dense.inputs import Centre, CoulombMatrix, Input, NormOrder, TanhExpansion
from ase_biasgrad.dense.modules import Linear, Module, Output, Sequential, Standardise, Tanh
from ase_biasgrad.tensor_file import checked_metadata, write_tensors

FORMAT, VERSION = "ase-biasgrad dense network", 2  # 2: with a digest
MODULES: tuple[type[Module], ...] = (
    Centre,
    CoulombMatrix,
    Input,
    Linear,
    NormOrder,
    Output,
    Standardise,
    Tanh,
    TanhExpansion,
)


@dataclass(frozen=True)
class DensePotential:
    """E = network + Σ_elements count·per_element, in eV, for molecules of at most `size` atoms.

    `network` takes `PaddedMolecules`. With random orders in it (`NormOrder` with noise), energies
    and forces are means over `draws` of them, the same ones at every call.
    """

    network: Sequential
    size: int
    elements: tuple[int, ...]  # atomic numbers that it was trained for
    per_element: dict[int, float] = field(default_factory=dict)  # eV, the composition bias
    draws: int = 1
    training: dict[str, Any] = field(default_factory=dict)  # how it came about, JSON values

    def energy(self, numbers: np.ndarray, positions: np.ndarray) -> float:
        """E in eV, for numbers `(n,)` and positions `(n, 3)` Å; nothing is differentiated.

        Raises
        ------
        ValueError
            If there are more than `size` atoms.
        """
        energies = self.network.forward(self._copies(numbers, positions))
        return float(energies.mean()) + self.bias(numbers)

    def energy_and_forces(
        self, numbers: np.ndarray, positions: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """E in eV and F = −dE/dR `(n, 3)` in eV/Å; errors as in `energy`."""
        energy = self.energy(numbers, positions)
        gradient = self.network.backward(np.full(self.draws, 1 / self.draws))  # (draws, size, 3)
        return energy, -gradient.sum(axis=0)[: len(numbers)]

    def bias(self, numbers: np.ndarray) -> float:
        """b in eV: it depends on the numbers `(n,)` alone, so no force comes from it."""
        return float(sum(self.per_element.get(int(number), 0.0) for number in numbers))

    def _copies(self, numbers: np.ndarray, positions: np.ndarray) -> PaddedMolecules:
        for module in flat(self.network.modules):
            if isinstance(module, NormOrder):
                module.reseed()
        return padded([(numbers, positions)] * self.draws, self.size)


def save_dense(path: str | Path, potential: DensePotential) -> None:
    """Write to `path` (`*.safetensors`), whole or not at all."""
    from safetensors.numpy import save

    modules, arrays = flat(potential.network.modules), {}
    for k, module in enumerate(modules):
        for name, values in module.state().items():
            arrays[f"{k}.{name}"] = np.array(values, order="C")
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "modules": [type(module).__name__ for module in modules],
        "size": potential.size,
        "elements": list(potential.elements),
        "per_element": {str(z): energy for z, energy in potential.per_element.items()},
        "draws": potential.draws,
        "units": {"energy": "eV", "length": "Å"},
        "training": potential.training,
    }
    write_tensors(path, save, arrays, metadata)


def load_dense(path: str | Path) -> DensePotential:
    """Read what `save_dense` wrote; no code from the file is run.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no dense network of ours, is damaged, or comes from a newer version.
    """
    from safetensors.numpy import load

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such dense network")
    try:
        content = path.read_bytes()
        return _rebuilt(checked_metadata(content, FORMAT, VERSION), load(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(f"{path}: the network cannot be rebuilt: {error!r}") from error


def _rebuilt(metadata: dict[str, Any], arrays: dict[str, np.ndarray]) -> DensePotential:
    known = {cls.__name__: cls for cls in MODULES}
    modules = []
    for k, name in enumerate(metadata["modules"]):
        prefix = f"{k}."
        state = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        modules.append(known[name].from_state(**state))
    return DensePotential(
        Sequential(modules),
        int(metadata["size"]),
        tuple(metadata["elements"]),
        {int(z): float(energy) for z, energy in metadata["per_element"].items()},
        int(metadata["draws"]),
        metadata.get("training", {}),
    )


def flat(modules: Sequence[Module]) -> list[Module]:
    """Modules without the brackets of `Sequential`s within."""
    every: list[Module] = []
    for module in modules:
        every += flat(module.modules) if isinstance(module, Sequential) else [module]
    return every
