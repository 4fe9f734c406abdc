"""`Backbone`: a network that gives per-atom energies without their zero."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.units import N_ELEMENTS

M = TypeVar("M", bound=nn.Module)


class Backbone(nn.Module, ABC):
    """Per-atom energies ε_i(R) of a batch of structures.

    A subclass stores in `arguments` the keyword arguments that rebuild it (JSON values only),
    in `cutoff` the range in Å of its edges and in `scale` the unit of its output in eV (all by
    `keep_arguments`), and names its architecture in `name`. `depths` are the arguments that count
    layers, each of which has tensors of its own. `radial` names the submodules that are functions
    of a distance.
    """

    name: ClassVar[str]
    depths: ClassVar[tuple[str, ...]] = ("interactions",)
    radial: ClassVar[tuple[str, ...]] = ()
    largest_number: ClassVar[int] = N_ELEMENTS - 1  # atomic number
    cutoff: float
    scale: float
    arguments: dict[str, Any]

    def keep_arguments(self, given: dict[str, Any]) -> None:
        """Store the arguments of the constructor, its `locals()`; `cutoff` and `scale` are two."""
        self.arguments = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
            if name not in ("self", "__class__")
        }
        self.cutoff, self.scale = float(given["cutoff"]), float(given["scale"])

    @abstractmethod
    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV, differentiable in `graph.positions` and `graph.cell`."""

    def energy_shifts(self) -> list[nn.Parameter]:
        """Parameters that shift every atom's energy by a constant and nothing else.

        The force stage freezes them at zero: they have no gradient there, and what they could
        learn belongs to the bias.
        """
        return []

    def take_energy_shift(self) -> float:
        """Set `energy_shifts` to zero and return what they added to each atom's energy, in eV."""
        return 0.0


class ReadoutBackbone(Backbone):
    """A backbone whose last layer, `readout[-1]`, gives each atom's energy in units of `scale`.

    Its bias is all that shifts the energy.
    """

    readout: nn.Sequential | nn.ModuleList

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that gives energies, from `in_features` numbers of each atom."""
        last = self.readout[-1]
        assert isinstance(last, nn.Linear)
        return last

    def energy_shifts(self) -> list[nn.Parameter]:
        return [self._shift]

    def take_energy_shift(self) -> float:
        shift = self.scale * float(self._shift.detach())
        nn.init.zeros_(self._shift)
        return shift

    def with_last_layer(self, weights: Tensor) -> ReadoutBackbone:
        """The same network with other last layers, which gives energies `(n, k)` of each.

        weights: `(k, width)`, k of at least 2; there is no bias. All other layers are shared.
        """
        last = self.last_layer
        layer = nn.Linear(last.in_features, len(weights), bias=False, device="meta")
        layer.weight = nn.Parameter(weights.to(last.weight), requires_grad=False)
        readout = _with_modules(self.readout, {str(len(self.readout) - 1): layer})
        return _with_modules(self, {"readout": readout})

    @property
    def _shift(self) -> nn.Parameter:
        return self.last_layer.bias


def _with_modules(module: M, others: dict[str, nn.Module]) -> M:
    """A copy that shares everything but some of its modules."""
    found = copy.copy(module)
    found._modules = {**module._modules, **others}
    return found
