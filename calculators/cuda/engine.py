"""The CUDA engine: fused kernels with written-out derivatives, replayed as one CUDA graph."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ase_biasgrad.backbones import Backbone, SchNet
from ase_biasgrad.calculators.cuda.buffers import ALL_COLUMNS, ENERGY_COLUMNS, Buffers
from ase_biasgrad.calculators.cuda.pairs import EdgeRows, edge_rows, joined
from ase_biasgrad.calculators.engine import Evaluation, Structure
from ase_biasgrad.calculators.per_search import PerSearch
from ase_biasgrad.cuda_graphs import Recordings, bucket, captured
from ase_biasgrad.neighbours import neighbour_list

if TYPE_CHECKING:
    from ase_biasgrad.calculators.cuda.painn import CudaPaiNN
    from ase_biasgrad.calculators.cuda.schnet import CudaSchNet

OLDEST = (7, 0)  # compute capability that Triton compiles for
# batches are filled up to multiples of these, so that their shapes come again
FEWEST_ATOMS, FEWEST_STRUCTURES, FEWEST_EDGES = 64, 8, 256


def obstacle(device: torch.device) -> str | None:
    """Why `CudaEngine` cannot run on this device, if so."""
    if device.type != "cuda":
        return f"it works on CUDA devices, not on {device}"
    if importlib.util.find_spec("triton") is None:
        return "it needs Triton, which is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        return f"it needs compute capability {OLDEST[0]}.{OLDEST[1]}"
    return None


class CudaEngine:
    """Evaluates SchNet or PaiNN, or a committee of them, in float32 on a CUDA device.

    Radial filters are sampled when the engine is made (`model.table` says how accurately). The
    networks run in float32; positions, distances, forces of pairs and energy sums are float64.
    Dense layers follow torch's global choice of float32 precision, which is full precision
    unless `torch.backends.cuda.matmul.allow_tf32` has been set.

    Neighbour lists are made on the host with a skin; which of their edges lie within the cutoff
    is decided on the device in every step. A shape (atoms, structures, derivatives) that comes
    again is replayed as a CUDA graph; `recordings.captures` counts these.
    """

    name = "cuda"

    def __init__(self, backbones: list[Backbone], device: torch.device, skin: float) -> None:
        self.backbones = [backbone.requires_grad_(False) for backbone in backbones]
        self.cutoff = float(backbones[0].cutoff)
        self.device = _numbered(device)
        with self._on_device():
            self.model = _model(backbones, self.device)
        self.list = PerSearch(self.cutoff, skin, lambda edges, s: edge_rows(edges, s.numbers))
        self.recordings = self._recordings()

    def __getstate__(self) -> dict[str, Any]:
        skin = self.list.list.skin
        return {"backbones": self.backbones, "device": self.device, "skin": skin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __copy__(self) -> CudaEngine:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def reset(self) -> None:
        """Forget the neighbour list, the graphs and their memory."""
        self.list.reset()
        self.recordings = self._recordings()

    def fresh(self) -> CudaEngine:
        """Another engine without neighbour list and graphs that shares the weights."""
        other = copy.copy(self)
        other.list = self.list.fresh()
        other.recordings = other._recordings()
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        rows = self.list.of(structure)
        result = self._run(rows, [structure], 1, derivatives)
        if not derivatives:
            return Evaluation(result[:, :, 0])
        return _evaluation(result)

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """All of several structures in one pass, with derivatives."""
        parts = [
            edge_rows(neighbour_list(s.positions, s.cell, s.pbc, self.cutoff), s.numbers)
            for s in structures
        ]
        sizes = [len(s.numbers) for s in structures]
        rows = joined(parts, bucket(sum(sizes), FEWEST_ATOMS))
        cells = bucket(len(structures), FEWEST_STRUCTURES)
        result = self._run(rows, structures, cells, derivatives=True)
        ends = np.cumsum(sizes)
        return [_evaluation(part) for part in np.split(result, ends, axis=1)[:-1]]

    def _run(
        self, rows: EdgeRows, structures: Sequence[Structure], cells: int, derivatives: bool
    ) -> np.ndarray:
        """Result `(members, n, columns)` of `Buffers`."""
        atoms = len(rows.numbers)
        with self._on_device(), torch.no_grad():
            recording = self.recordings.find(
                (atoms, cells, derivatives),
                lambda buffers: buffers.holds(rows),
                lambda: Buffers(
                    atoms,
                    cells,
                    bucket(len(rows.neighbour), FEWEST_EDGES),
                    self.model.members,
                    ALL_COLUMNS if derivatives else ENERGY_COLUMNS,
                    self.device,
                ),
            )
            recording.buffers.load_edges(rows)
            recording.buffers.load_positions(structures)
            buffers = recording.buffers
            self.recordings.run(recording, lambda: self.model.step(buffers, derivatives))
            return buffers.fetch()

    def _recordings(self) -> Recordings[Buffers]:
        return Recordings(functools.partial(captured, device=self.device))

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the current device."""
        if self.device.type == "cuda":
            return torch.cuda.device(self.device)
        return contextlib.nullcontext()


def _numbered(device: torch.device) -> torch.device:
    """The current CUDA device by its number, so that it stays the same one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _model(backbones: Sequence[Any], device: torch.device) -> CudaSchNet | CudaPaiNN:
    # both import Triton
    if isinstance(backbones[0], SchNet):
        from ase_biasgrad.calculators.cuda.schnet import CudaSchNet

        return CudaSchNet(backbones, device)
    from ase_biasgrad.calculators.cuda.painn import CudaPaiNN

    return CudaPaiNN(backbones, device)


def _evaluation(result: np.ndarray) -> Evaluation:
    """Of `(members, n, 13)`; the atoms' parts of ∂E/∂ε are summed up."""
    strain = result[:, :, 4:].sum(axis=1).reshape(-1, 3, 3)
    return Evaluation(result[:, :, 0], result[:, :, 1:4], strain)
