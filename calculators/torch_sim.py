"""`TorchSimModel`: a potential as a model of TorchSim, for batches of relaxations and dynamics.

Needs the package `torch-sim-atomistic` (extra `torch-sim`, Python 3.12 and newer).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from ase_biasgrad.calculators.calculator import EnergyZeroWarning, unknown_zero
from ase_biasgrad.calculators.checks import unknown_elements
from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.graph import AtomGraph, collate, forward_edges, graph_from_arrays
from ase_biasgrad.machine import torch_device
from ase_biasgrad.neighbours import Edges, Structure, VerletList, is_isolated
from ase_biasgrad.potential import Potential
from ase_biasgrad.units import N_ELEMENTS

if TYPE_CHECKING:
    from torch_sim.state import SimState

# what no potential of ours has as an input, and its values for a neutral singlet
NEUTRAL = {"charge": (0,), "total_charge": (0,), "spin": (0, 1), "spin_multiplicity": (1,)}


class TorchSimModel(ModelInterface):
    """A potential that TorchSim relaxes and moves many systems with at once.

    The plain backbone runs in torch, on any device that it has; forces and stress are by autograd.
    Energies `(systems,)` are float64 eV, also beside positions in float32; forces `(atoms, 3)` eV/Å
    and stress `(systems, 3, 3)` eV/Å³, tension positive, have the precision of the state. A system
    without volume has a stress of NaN. Neighbours are searched on the CPU, for each system when an
    atom could have come in. Unlike `BiasGradCalculator`, it looks for no close pairs and adds no
    repulsion.

    Parameters
    ----------
    checkpoint
        A checkpoint file, or a `Potential`.
    device
        `cpu`, `cuda`, … or `auto`: CUDA where there is one.
    dtype
        Of the network and of the states that it takes.
    reference
        Reference energies that the bias leads to; by default those it was trained with.
    skin
        Neighbour lists reach this far (Å) beyond the cutoff. Results do not depend on it.
    """

    def __init__(
        self,
        checkpoint: str | Path | Potential,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float64,
        reference: str | None = None,
        skin: float = 1.0,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype} is neither torch.float32 nor torch.float64")
        if isinstance(checkpoint, Potential):
            potential = checkpoint
        else:
            potential = load_checkpoint(checkpoint).potential
        if potential.baseline is not None:
            raise ValueError(
                f"the potential was trained on the difference to {potential.baseline['calculator']}"
                ", which TorchSim cannot add; use BiasGradCalculator"
            )
        potential = Potential.from_arrays(potential.of_reference(reference).arrays())
        potential.backbone.to(dtype)
        self._device = torch.device(torch_device(str(device)))
        self.potential = potential.to(self._device).eval().requires_grad_(False)
        self._dtype = dtype
        self._compute_stress = self._compute_forces = True
        self.skin = float(skin)
        self._lists: list[VerletList] = []  # of the systems, by their places
        self._edges: list[Edges] = []
        self._graph: AtomGraph | None = None
        self._numbers = b""
        self._warned = False

    @ModelInterface.compute_stress.setter  # type: ignore[attr-defined]
    def compute_stress(self, wanted: bool) -> None:
        self._compute_stress = wanted

    @ModelInterface.compute_forces.setter  # type: ignore[attr-defined]
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = wanted

    def forward(self, state: SimState, **_: Any) -> dict[str, Tensor]:
        """Energy, and forces and stress where they are computed, of a state.

        Raises `TypeError` if the precision of the state is another, and `ValueError` on elements
        that the potential does not know, charges or spins, positions or cells that are not finite,
        or periodic cells without volume.
        """
        if state.dtype != self._dtype:
            raise TypeError(
                f"the state is in {state.dtype}, the model in {self._dtype}: make one of them "
                f"anew, say with state.to(dtype={self._dtype})"
            )
        self._check_neutral(state)
        wanted = ["energy"]
        wanted += ["forces"] * self._compute_forces + ["stress"] * self._compute_stress
        with torch.inference_mode(False):  # autograd does not work in it, nor on what is made in it
            positions = state.positions.detach().to(torch.float64, copy=True)
            cells = state.row_vector_cell.detach().to(torch.float64, copy=True)  # (b, 3, 3)
            graph = self._with_edges(state, positions, cells).with_geometry(positions, cells)
            found = self.potential.evaluate(graph, wanted)
        results = {"energy": found["energy"]}
        if self._compute_forces:
            results["forces"] = found["forces"].to(self._dtype)
        if self._compute_stress:
            rows = torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]], device=self._device)
            results["stress"] = found["stress"][:, rows].to(self._dtype)  # (b, 3, 3) of Voigt's 6
        return results

    def _with_edges(self, state: SimState, positions: Tensor, cells: Tensor) -> AtomGraph:
        """Graph of all systems; the last one while no list has changed."""
        sizes = torch.bincount(state.system_idx, minlength=state.n_systems).tolist()
        numbers = state.atomic_numbers.cpu().numpy().astype(np.int64)
        pbc = np.broadcast_to(state.pbc.cpu().numpy(), 3)
        ends = np.cumsum(sizes)[:-1]
        parts = (
            np.split(numbers, ends),
            np.split(positions.cpu().numpy(), ends),
            cells.cpu().numpy(),
        )
        systems = [Structure(z, r, cell, pbc) for z, r, cell in zip(*parts, strict=True)]
        if numbers.tobytes() != self._numbers or len(systems) != len(self._edges):
            if message := unknown_elements(numbers, self.potential.elements):
                raise ValueError(message)
            self._check_zero(systems)
        while len(self._lists) < len(systems):
            self._lists.append(VerletList(self.potential.cutoff, self.skin))
        edges = [each.candidates(s) for each, s in zip(self._lists, systems, strict=False)]
        changed = len(edges) != len(self._edges) or any(
            new is not old for new, old in zip(edges, self._edges, strict=True)
        )
        if changed or self._graph is None:
            cutoff = self.potential.cutoff
            graph = collate(
                [
                    graph_from_arrays(s.numbers, s.positions, cutoff, s.cell, pbc, edges=own)
                    for s, own in zip(systems, edges, strict=True)
                ]
            )
            forward = forward_edges(graph.edge_index, graph.edge_shift, bool(pbc.any()))
            self._graph = replace(graph, forward=forward).to(self._device)
            self._edges, self._numbers = edges, numbers.tobytes()
        return self._graph

    def _check_neutral(self, state: SimState) -> None:
        for name, neutral in NEUTRAL.items():
            values = getattr(state, name, None)
            if isinstance(values, Tensor) and not bool(
                torch.isin(values.detach().cpu().round(), torch.tensor(neutral)).all()
            ):
                raise ValueError(
                    f"the {name} of the state is {values.tolist()}: the potential has no such "
                    "input and describes the neutral singlet alone"
                )

    def _check_zero(self, systems: Sequence[Structure]) -> None:
        """Warn once of an energy whose zero is not known."""
        for s in systems:
            counts = np.bincount(s.numbers, minlength=N_ELEMENTS)
            isolated = is_isolated(s.positions, s.cell, s.pbc, self.potential.cutoff)
            if not self._warned and not self.potential.bias.knows(counts, isolated):
                message = unknown_zero({self.potential.bias.zero}, s.numbers)
                warnings.warn(message, EnergyZeroWarning, stacklevel=4)
                self._warned = True
