"""SchNet and PaiNN: SchNetPack's own representations behind the `Backbone` interface."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ase_biasgrad.backbones.base import ReadoutBackbone, require_positive
from ase_biasgrad.graph import AtomGraph


class SchNetPackBackbone(ReadoutBackbone):
    """A SchNetPack representation and its atomwise readout.

    Parameters
    ----------
    features
        Width of the atom features.
    interactions
        Number of interaction blocks.
    cutoff
        Range of the filters in Å.
    radial_functions
        Number of radial basis functions.
    radial_basis
        `gaussian` (equidistant, width = spacing) or `bessel` (DimeNet).
    cutoff_function
        `cosine` (Behler) or `mollifier`.
    readout_layers
        Dense layers of the readout; each halves the width.
    scale
        Energy unit of the readout in eV: the network's output is multiplied by it. The force
        stage sets it to the root mean square force × 1 Å, so that outputs are of order one.
    """

    _per_bessel: ClassVar[int] = 2  # Gaussians that are as narrow as the features of filters

    def __init__(
        self,
        features: int = 128,
        interactions: int = 3,
        cutoff: float = 5.0,
        radial_functions: int = 20,
        radial_basis: str = "gaussian",
        cutoff_function: str = "cosine",
        readout_layers: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.arguments = {
            "features": features,
            "interactions": interactions,
            "cutoff": cutoff,
            "radial_functions": radial_functions,
            "radial_basis": radial_basis,
            "cutoff_function": cutoff_function,
            "readout_layers": readout_layers,
            "scale": scale,
        }
        require_positive(
            self.arguments,
            ("features", "interactions", "cutoff", "radial_functions", "readout_layers"),
        )
        import_schnetpack()
        import schnetpack.nn as spk

        radial = {"gaussian": spk.GaussianRBF, "bessel": spk.BesselRBF}
        envelope = {"cosine": spk.CosineCutoff, "mollifier": spk.MollifierCutoff}
        self.cutoff = float(cutoff)
        self.scale = float(scale)
        self.representation = self._representation(
            features,
            interactions,
            _choose("radial_basis", radial_basis, radial)(radial_functions, cutoff=cutoff),
            _choose("cutoff_function", cutoff_function, envelope)(cutoff),
        )
        self.readout = spk.build_mlp(
            n_in=features, n_out=1, n_layers=readout_layers, activation=torch.nn.functional.silu
        )
        nn.init.zeros_(self.readout[-1].bias)

    @property
    def sampled_functions(self) -> int:
        """Number of evenly spaced Gaussians up to the cutoff that are as narrow as the filters."""
        count = self.arguments["radial_functions"]
        return self._per_bessel * count if self.arguments["radial_basis"] == "bessel" else count

    def _representation(
        self, features: int, interactions: int, radial_basis: nn.Module, envelope: nn.Module
    ) -> nn.Module:
        raise NotImplementedError

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        import schnetpack.properties as keys

        centre, neighbour = graph.edge_index
        dtype = self.readout[-1].weight.dtype
        output = self.representation(
            {
                keys.Z: graph.numbers,
                keys.Rij: graph.edge_vectors().to(dtype),
                keys.idx_i: centre,
                keys.idx_j: neighbour,
            }
        )
        return self.scale * self.readout(output["scalar_representation"]).squeeze(-1)

    def __reduce__(self) -> tuple[Any, ...]:
        # unpickling loads SchNetPack's modules: import it in our own way before
        return _blank, (type(self),), self.__dict__


class SchNet(SchNetPackBackbone):
    """Continuous-filter convolutions (Schütt et al. 2018, J. Chem. Phys. 148, 241722)."""

    name: ClassVar[str] = "schnet"
    _per_bessel: ClassVar[int] = 4  # its filter networks make overtones of the basis

    def __init__(self, interactions: int = 6, radial_functions: int = 50, **arguments: Any) -> None:
        super().__init__(interactions=interactions, radial_functions=radial_functions, **arguments)

    def _representation(
        self, features: int, interactions: int, radial_basis: nn.Module, envelope: nn.Module
    ) -> nn.Module:
        import schnetpack.representation as spk

        return spk.SchNet(
            n_atom_basis=features,
            n_interactions=interactions,
            radial_basis=radial_basis,
            cutoff_fn=envelope,
        )


class PaiNN(SchNetPackBackbone):
    """Equivariant message passing with vectors (Schütt, Unke, Gastegger 2021, ICML)."""

    name: ClassVar[str] = "painn"

    def _representation(
        self, features: int, interactions: int, radial_basis: nn.Module, envelope: nn.Module
    ) -> nn.Module:
        import schnetpack.representation as spk

        return spk.PaiNN(
            n_atom_basis=features,
            n_interactions=interactions,
            radial_basis=radial_basis,
            cutoff_fn=envelope,
        )


def _choose(argument: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is unknown; choose from {sorted(choices)}")
    return choices[value]


def _blank(cls: type[SchNetPackBackbone]) -> SchNetPackBackbone:
    """A backbone that waits for its state."""
    import_schnetpack()
    return cls.__new__(cls)


def import_schnetpack() -> None:
    """Import SchNetPack, and undo what its import does to the process.

    SchNetPack 2.1 sets up the root logger, and Lightning, which it loads, an environment variable.
    """
    if "schnetpack" in sys.modules:
        return
    root, environment = logging.getLogger(), dict(os.environ)
    handlers, level = list(root.handlers), root.level
    try:
        import schnetpack  # noqa: F401 (for its side effects, here and not later)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
