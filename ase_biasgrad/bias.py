"""Energy zero of a potential: a bias b that depends on composition alone.

b never sees positions, so ∂b/∂R = 0: whatever is done to it, forces, stress and Hessian of the
potential stay the same, bit for bit. It is kept and added in float64.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ase_biasgrad import bias_fits
from ase_biasgrad.units import N_ELEMENTS

EnergyZero = Literal["none", "scalar", "per-element", "per-composition"]
BiasMethod = Literal["mean", "median", "efwt", "least-squares", "least-absolute-deviation"]
ELEMENT_METHODS = {
    "least-squares": bias_fits.least_squares,
    "least-absolute-deviation": bias_fits.least_absolute_deviation,
}
COMPOSITION_METHODS = {
    "mean": bias_fits.mean,
    "median": bias_fits.median,
    "efwt": bias_fits.efwt_window,
}
KNOWN_WITHIN = 0.1  # eV per atom; a fit further off does not know the zero of a composition


class Bias(nn.Module):
    """Bias b(n) = Σ_e n_e·per_element_e + offset(n) of a composition n, in eV.

    The energies per element lie in the row space of the compositions of the fit (minimum norm).
    Where numbers per element cannot hold what a method gives to each composition, the rest is
    the offset of that composition, and k times it for k times the composition. So
    b(k·n) = k·b(n): a supercell has the multiple of its cell's bias.

    `zero` is the state of the fit: `none`, `scalar` (one composition and its multiples),
    `per-element` (every linear combination of the compositions), or `per-composition` (these and
    their multiples alone). `fit_report` tells as JSON values how it was made.
    """

    per_element: Tensor  # (N_ELEMENTS,) float64
    # one row for each composition of the fit
    compositions: Tensor  # (k, N_ELEMENTS) int64
    offsets: Tensor  # (k,) float64
    residuals: Tensor  # (k,) float64, mean E_ref − E that the fit leaves
    isolated: Tensor  # (k,) int64, 1 for an atom without neighbours

    def __init__(self) -> None:
        super().__init__()
        self.zero: EnergyZero = "none"
        self.fit_report: dict[str, Any] = {}
        self.register_buffer("per_element", torch.zeros(N_ELEMENTS, dtype=torch.float64))
        self._set_rows(np.zeros((0, N_ELEMENTS), np.int64))

    def forward(self, numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
        """Bias of each structure `(b,)` float64 eV; numbers `(n,)`, batch `(n,)`."""
        return self._of(composition_counts(numbers, batch, n_structures))

    def per_atom(self, numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
        """Parts of b by atom, `(n,)` float64 eV; atoms share an offset evenly."""
        counts = composition_counts(numbers, batch, n_structures)
        return self.per_element[numbers] + self._offset_per_atom(counts)[batch]

    def _of(self, counts: Tensor) -> Tensor:
        """Bias of compositions `(b, N_ELEMENTS)`, `(b,)`."""
        energy = counts.to(torch.float64) @ self.per_element
        return energy + counts.sum(dim=1) * self._offset_per_atom(counts)

    def _offset_per_atom(self, counts: Tensor) -> Tensor:
        if self.zero != "per-composition" or not len(self.compositions):
            return self.offsets.new_zeros(len(counts))
        # of the same composition, or else of one that it is a multiple of
        same = self._multiples_of(counts)
        exact = counts.sum(dim=1)[:, None] == self.compositions.sum(dim=1)
        likeness, row = (same.long() + (same & exact)).max(dim=1)
        per_atom = self.offsets / self.compositions.sum(dim=1)
        return torch.where(likeness > 0, per_atom[row], 0.0)

    def _multiples_of(self, counts: Tensor) -> Tensor:
        """Rows (isolated atoms apart) that compositions are multiples of, `(b, k)` bool."""
        used = self.compositions.any(dim=0)
        size, fitted = counts.sum(dim=1)[:, None], self.compositions.sum(dim=1)  # (b, 1), (k,)
        left = counts[:, None, used] * fitted[:, None]
        same = (left == self.compositions[:, used] * size[..., None]).all(dim=2)
        return same & (self.isolated == 0) & (fitted > 0) & (size > 0)

    def knows(self, counts: np.ndarray, isolated: bool = False) -> bool:
        """True if b of a composition `(N_ELEMENTS,)` follows from the data of the fit.

        These are multiples of the compositions of the fit and, unless the bias is
        `per-composition`, their linear combinations; but none of those that the fit leaves more
        than 0.1 eV per atom off. `isolated` asks for an atom without neighbours: where the data
        holds it, its own residual decides.
        """
        if self.zero == "none" or len(self.compositions) == 0:
            return False
        rows, anchors = self.compositions.cpu().numpy(), self.isolated.cpu().numpy() == 1
        close = np.abs(self.residuals.cpu().numpy()) <= KNOWN_WITHIN * rows.sum(axis=1)
        anchor = np.flatnonzero(anchors & (rows == counts).all(axis=1))
        if isolated and len(anchor):
            return bool(close[anchor[0]])
        asked = torch.from_numpy(np.asarray(counts, np.int64)[None]).to(self.compositions.device)
        if (same := self._multiples_of(asked)[0].cpu().numpy()).any():
            return bool(close[same].all())
        if self.zero == "per-composition":
            return False
        return bias_fits.spans(rows[~anchors | close], counts)

    def fit(
        self,
        residuals: np.ndarray,
        counts: np.ndarray,
        method: BiasMethod = "mean",
        forces_within: np.ndarray | None = None,
        isolated: np.ndarray | None = None,
    ) -> None:
        """Fit to r = E_ref − E_model, where E_model is the energy *without* this bias.

        Parameters
        ----------
        residuals
            `(m,)` eV.
        counts
            Compositions of the frames, `(m, N_ELEMENTS)`.
        method
            `mean`, `median` and `efwt` give one number to the formula unit of each composition;
            `least-squares` and `least-absolute-deviation` give one to each element.
        forces_within
            `(m,)` bool for `efwt`: frames with every force component within 0.03 eV/Å.
        isolated
            `(m,)` bool, atoms without neighbours. They are no data of the fit, but fix (by least
            squares) what the other frames leave open.

        Raises
        ------
        ValueError
            On empty or non-finite residuals, or an unknown method.
        """
        residuals, counts = np.asarray(residuals, np.float64), np.asarray(counts, np.int64)
        if method not in get_args(BiasMethod):
            raise ValueError(f"bias method {method!r} is unknown; use {get_args(BiasMethod)}")
        if counts.shape != (len(residuals), N_ELEMENTS):
            raise ValueError(
                f"{len(residuals)} residuals need compositions of shape "
                f"({len(residuals)}, {N_ELEMENTS}), not {counts.shape}"
            )
        residuals = bias_fits.checked(residuals)
        anchors = np.zeros(len(counts), bool) if isolated is None else np.asarray(isolated, bool)
        data = np.ones(len(counts), bool) if anchors.all() else ~anchors
        elements = np.flatnonzero(counts.any(axis=0))
        used = counts[:, elements].astype(float)
        fitted, units = residuals, np.unique(_formula_units(counts[data])[0], axis=0)
        if method not in ELEMENT_METHODS:
            within = None if forces_within is None else np.asarray(forces_within)[data]
            fitted = residuals.copy()
            fitted[data] = _by_composition(residuals[data], counts[data], method, within)
        solution = ELEMENT_METHODS.get(method, bias_fits.least_squares)(fitted[data], used[data])
        values = solution.values
        offsets = fitted - used @ values
        if method in ELEMENT_METHODS or solution.rank == len(units):
            offsets[:] = 0.0
        offsets[~data] = 0.0
        if not data.all():
            values = bias_fits.anchored(solution, used[data], residuals[~data], used[~data])

        rows, first, row_of = np.unique(
            np.column_stack([counts, anchors]), axis=0, return_index=True, return_inverse=True
        )
        self.per_element.zero_()
        self.per_element[torch.from_numpy(elements)] = torch.from_numpy(values).to(
            self.per_element.device
        )
        self._set_rows(rows[:, :-1].copy(), offsets[first], isolated=rows[:, -1].copy())
        self.zero = "per-composition" if offsets.any() else "per-element"
        left = residuals - self._of(torch.from_numpy(counts).to(self.offsets.device)).cpu().numpy()
        means = np.bincount(row_of.ravel(), weights=left) / np.bincount(row_of.ravel())
        self.residuals.copy_(torch.from_numpy(means))
        close = (rows[:, -1] == 0) | (np.abs(means) <= KNOWN_WITHIN)
        rank = int(np.linalg.matrix_rank(rows[close, :-1].astype(float)))
        if rank == len(units) == 1:
            self.zero = "scalar"
        self.fit_report = {
            "method": method,
            "frames": len(residuals),
            "compositions": int((rows[:, -1] == 0).sum()),
            "isolated_atoms": int((rows[:, -1] == 1).sum()),
            "rank": rank,
            "elements": len(elements),
        }

    def add_per_element(self, energies: dict[int, float]) -> None:
        """Add fixed energies per atom (eV, by atomic number), such as atomic references.

        They make the zero of every composition of these elements known: `zero` becomes
        `per-element` where nothing was fitted yet.
        """
        for number, energy in energies.items():
            self.per_element[number] += energy
        if self.zero == "none":
            self.zero = "per-element"
            self._set_rows(np.eye(N_ELEMENTS, dtype=np.int64)[sorted(energies)])

    def upgraded(self, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Tensors of a checkpoint, those of format version 1 in the form of today.

        A scalar was one number for a structure, and an offset the whole energy of a composition;
        both become energies per element of minimum norm, with the same b for each composition of
        the fit and the right multiples of it.
        """
        tensors = dict(tensors)
        if (constant := tensors.pop(f"{prefix}constant", None)) is None:
            return tensors
        rows = tensors[f"{prefix}compositions"]
        counts, offsets = rows.numpy().astype(float), tensors[f"{prefix}offsets"].numpy()
        if self.zero in ("scalar", "per-composition") and len(rows):
            offsets = offsets + float(constant)
            found = bias_fits.least_squares(offsets, counts)
            tensors[f"{prefix}per_element"] = tensors[f"{prefix}per_element"] + torch.from_numpy(
                found.values
            )
            offsets = (
                offsets - counts @ found.values if self.zero == "per-composition" else 0 * offsets
            )
        tensors[f"{prefix}offsets"] = torch.from_numpy(offsets)
        tensors[f"{prefix}residuals"] = torch.zeros(len(rows), dtype=torch.float64)
        tensors[f"{prefix}isolated"] = torch.zeros(len(rows), dtype=torch.int64)
        return tensors

    def _set_rows(
        self,
        compositions: np.ndarray,
        offsets: np.ndarray | None = None,
        isolated: np.ndarray | None = None,
    ) -> None:
        k = len(compositions)
        columns = {
            "compositions": compositions,
            "offsets": np.zeros(k) if offsets is None else offsets,
            "residuals": np.zeros(k),
            "isolated": np.zeros(k, np.int64) if isolated is None else isolated,
        }
        for name, values in columns.items():
            self.register_buffer(name, torch.from_numpy(values).to(self.per_element.device))

    def _apply(self, fn: Any, recurse: bool = True) -> Bias:
        """Move between devices, but stay float64 under `.float()` or `.to(torch.float32)`."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def _formula_units(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Formula units `(m, N_ELEMENTS)` of compositions, and how many of them each holds `(m,)`."""
    multiples = np.maximum(np.gcd.reduce(counts, axis=1), 1)
    return counts // multiples[:, None], multiples


def _by_composition(
    residuals: np.ndarray, counts: np.ndarray, method: str, within: np.ndarray | None
) -> np.ndarray:
    """Energy `(m,)` that a method gives to each frame: one number for each formula unit."""
    units, multiples = _formula_units(counts)
    _, unit_of = np.unique(units, axis=0, return_inverse=True)
    fitted = np.empty(len(residuals))
    for k in range(unit_of.max() + 1):
        mine = unit_of.ravel() == k
        more = () if method != "efwt" or within is None else (within[mine],)
        per_unit = COMPOSITION_METHODS[method](residuals[mine], multiples[mine], *more)
        fitted[mine] = multiples[mine] * per_unit
    return fitted


def composition_counts(numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
    """Atoms of each element in each structure, `(b, N_ELEMENTS)` int64."""
    if n_structures is None:
        n_structures = int(batch.max()) + 1 if len(batch) else 0
    counts = torch.zeros(n_structures * N_ELEMENTS, dtype=torch.int64, device=numbers.device)
    counts.index_add_(0, batch * N_ELEMENTS + numbers, torch.ones_like(numbers))
    return counts.reshape(n_structures, N_ELEMENTS)
