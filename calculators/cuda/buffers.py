"""Memory on the device that stays where it is, so that a captured graph finds it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ase_biasgrad.calculators.cuda.pairs import EdgeRows
    from ase_biasgrad.calculators.engine import Structure

ENERGY_COLUMNS, ALL_COLUMNS = 1, 13


class Buffers:
    """What goes into an evaluation and what comes out, for up to `capacity` edges.

    Attributes
    ----------
    numbers, structure, first, neighbour, shift
        As in `EdgeRows`; places behind the last edge belong to no row.
    positions, cells
        `(atoms, 3)` and `(structures, 3, 3)`, float64, Å.
    result
        `(members, atoms, columns)`, float64: energy (eV), and with derivatives force (eV/Å) and
        the atom's part of ∂E/∂ε (eV, 9 columns).
    """

    def __init__(
        self,
        atoms: int,
        structures: int,
        capacity: int,
        members: int,
        columns: int,
        device: torch.device,
    ) -> None:
        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.numbers = empty(atoms, dtype=torch.int64)
        self.structure = empty(atoms, dtype=torch.int32)
        self.first = empty(atoms + 1, dtype=torch.int32)
        self.neighbour = empty(capacity, dtype=torch.int32)
        self.shift = empty(3, capacity, dtype=torch.int32)
        self._input = empty(3 * atoms + 9 * structures, dtype=torch.float64)
        self.positions = self._input[: 3 * atoms].view(atoms, 3)
        self.cells = self._input[3 * atoms :].view(structures, 3, 3)
        self.result = empty(members, atoms, columns, dtype=torch.float64)
        # page-locked memory is copied without a detour
        pinned = device.type == "cuda"
        self._host_input = torch.zeros(self._input.shape, dtype=torch.float64, pin_memory=pinned)
        self._host_result = torch.empty(self.result.shape, dtype=torch.float64, pin_memory=pinned)
        self._rows: EdgeRows | None = None

    def holds(self, rows: EdgeRows) -> bool:
        """Whether edges of this number fit in."""
        return len(rows.neighbour) <= len(self.neighbour)

    def load_edges(self, rows: EdgeRows) -> None:
        """Copy edges to the device, unless they are there already."""
        if self._rows is rows:
            return
        self._rows = None  # should a copy fail
        edges = len(rows.neighbour)
        self.numbers.copy_(torch.from_numpy(rows.numbers))
        self.structure.copy_(torch.from_numpy(rows.structure))
        self.first.copy_(torch.from_numpy(rows.first))
        self.neighbour[:edges].copy_(torch.from_numpy(rows.neighbour))
        self.shift[:, :edges].copy_(torch.from_numpy(rows.shift))
        self._rows = rows

    def load_positions(self, structures: Sequence[Structure]) -> None:
        """Copy positions and cells to the device, in one transfer."""
        host, start = self._host_input.numpy(), 0
        for s in structures:
            host[start : start + s.positions.size] = s.positions.ravel()
            start += s.positions.size
        cells = host[3 * len(self.numbers) :].reshape(-1, 3, 3)
        for k, s in enumerate(structures):
            cells[k] = s.cell
        self._input.copy_(self._host_input, non_blocking=True)

    def fetch(self) -> np.ndarray:
        """Wait for the result; a copy of it, `(members, atoms, columns)`."""
        self._host_result.copy_(self.result, non_blocking=True)
        if self.result.device.type == "cuda":
            torch.cuda.current_stream(self.result.device).synchronize()
        return self._host_result.numpy().copy()
