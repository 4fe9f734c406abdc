"""Energy zero of a potential: a bias b that depends on composition alone.

b never sees positions, so ∂b/∂R = 0: whatever is done to it, forces, stress and Hessian of the
potential stay the same, bit for bit. It is kept and added in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ase_biasgrad import bias_fits
from ase_biasgrad.bias_arrays import BiasArrays, EnergyZero
from ase_biasgrad.composition_fit import ANCHOR, DATA, ISOLATED, Anchors, fit_compositions, reported
from ase_biasgrad.units import N_ELEMENTS

BiasMethod = Literal[
    "mean", "median", "efwt", "least-squares", "least-absolute-deviation", "huber", "ridge"
]


class Bias(nn.Module):
    """Bias b(n) = Σ_e n_e·per_element_e + offset(n) of a composition n, in eV.

    The energies per element lie in the row space of the compositions of the fit (minimum norm).
    Where numbers per element cannot hold what a method gives to each composition, the rest is
    the offset of that composition, and k times it for k times the composition. So
    b(k·n) = k·b(n): a supercell has the multiple of its cell's bias.

    `zero` is the state of the fit: `none`, `scalar` (one composition and its multiples),
    `per-element` (every linear combination of the compositions), or `per-composition` (these and
    their multiples alone). `fit_report` tells as JSON values how it was made.

    Errors are those of the model in `bias_errors`: frames vary around the mean of their
    composition (noise), and these means around any sum of energies per element (misfit).
    `covariance` is that of `per_element`, zero outside the row space: `standard_error` tells that
    from what is exact. NaN is an error that the data does not show.
    """

    per_element: Tensor  # (N_ELEMENTS,) float64
    covariance: Tensor  # (N_ELEMENTS, N_ELEMENTS) float64 eV²
    misfit: Tensor  # () float64 eV
    # one row for each composition of the fit
    compositions: Tensor  # (k, N_ELEMENTS) int64
    offsets: Tensor  # (k,) float64
    residuals: Tensor  # (k,) float64, mean E_ref − E that the fit leaves
    isolated: Tensor  # (k,) int64, 1 for an atom without neighbours, 2 for an anchor
    errors: Tensor  # (k,) float64, standard error of b

    def __init__(self) -> None:
        super().__init__()
        self.set_arrays(BiasArrays.unfitted())

    @classmethod
    def from_arrays(cls, arrays: BiasArrays) -> Bias:
        """The module of a bias on NumPy arrays, on the CPU; it shares no memory with them."""
        bias = cls()
        bias.set_arrays(arrays)
        return bias

    def set_arrays(self, arrays: BiasArrays) -> None:
        """Take over all of a bias, on the device where this one is."""
        device = self.per_element.device if "per_element" in self._buffers else None
        self.zero: EnergyZero = arrays.zero
        self.fit_report: dict[str, Any] = arrays.fit_report
        for name, values in arrays.tensors.items():
            self.register_buffer(name, torch.from_numpy(values.copy()).to(device))

    def arrays(self) -> BiasArrays:
        """The same bias on NumPy arrays; those of a bias on the CPU share their memory."""
        tensors = {name: tensor.cpu().numpy() for name, tensor in self.named_buffers()}
        return BiasArrays(self.zero, self.fit_report, **tensors)

    def forward(self, numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
        """Bias of each structure `(b,)` float64 eV; numbers `(n,)`, batch `(n,)`."""
        counts = composition_counts(numbers, batch, n_structures)
        energy = counts.to(torch.float64) @ self.per_element
        return energy + counts.sum(dim=1) * self._offset_per_atom(counts)

    def per_atom(self, numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
        """Parts of b by atom, `(n,)` float64 eV; atoms share an offset evenly."""
        counts = composition_counts(numbers, batch, n_structures)
        return self.per_element[numbers] + self._offset_per_atom(counts)[batch]

    def _offset_per_atom(self, counts: Tensor) -> Tensor:
        if self.zero != "per-composition" or not len(self.compositions):
            return self.offsets.new_zeros(len(counts))
        found = self.arrays().offset_per_atom(counts.cpu().numpy())
        return torch.from_numpy(found).to(counts.device)

    def knows(self, counts: np.ndarray, isolated: bool = False) -> bool:
        """True if b of a composition `(N_ELEMENTS,)` follows from the data of the fit.

        These are multiples of the compositions of the fit and, unless the bias is
        `per-composition`, their linear combinations; but none of those that the fit leaves more
        than 0.1 eV per atom off, nor what rests on anchors less sure than that. `isolated` asks for
        an atom without neighbours: where the data holds it, its own residual decides.
        """
        return self.arrays().knows(counts, isolated)

    def standard_error(self, counts: Tensor | np.ndarray) -> Tensor:
        """Standard error of b as the energy zero of compositions `(b, N_ELEMENTS)`, `(b,)` eV.

        For the k-fold of a composition of the fit, k times its own. For other combinations n,
        √(nᵀ C n + s·misfit²), the error of prediction of a composition that the fit has not seen;
        s = max(1, atoms / most atoms of the fit) lets larger ones vary as independent parts. It is
        that of the mean over geometries: single ones vary by the noise besides. NaN where the data
        does not determine b, or shows no spread to judge by.
        """
        given = torch.as_tensor(counts).cpu().numpy()
        return torch.from_numpy(self.arrays().standard_error(given)).to(self.errors.device)

    def reaction(
        self, counts: np.ndarray, coefficients: np.ndarray | None = None
    ) -> tuple[float, float]:
        """Bias of a reaction and its standard error, in eV; see `BiasArrays.reaction`."""
        return self.arrays().reaction(counts, coefficients)

    def fit(
        self,
        residuals: np.ndarray,
        counts: np.ndarray,
        method: BiasMethod = "mean",
        forces_within: np.ndarray | None = None,
        isolated: np.ndarray | None = None,
        anchors: Anchors | None = None,
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
            the others give one to each element.
        forces_within
            `(m,)` bool for `efwt`: frames with every force component within 0.03 eV/Å.
        isolated
            `(m,)` bool, atoms without neighbours. They are no data of the fit, but fix (by least
            squares) what the other frames leave open.
        anchors
            Energies known from elsewhere. Where exact, methods by element keep them; the rest is a
            prior, for `ridge` or for what frames leave open.

        Raises
        ------
        ValueError
            On empty or non-finite residuals, an unknown method, or contradicting anchors.
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
        atoms = np.zeros(len(counts), bool) if isolated is None else np.asarray(isolated, bool)
        found = fit_compositions(residuals, counts, method, forces_within, atoms, anchors)
        per_element = np.zeros(N_ELEMENTS)
        per_element[found.elements] = found.values
        unknown = bool(np.isnan(found.covariance).any())
        covariance = np.full((N_ELEMENTS, N_ELEMENTS), np.nan if unknown else 0.0)
        covariance[np.ix_(found.elements, found.elements)] = found.covariance
        rows = np.zeros((len(found.rows), N_ELEMENTS), np.int64)
        rows[:, found.elements] = found.rows
        fitted = replace(
            BiasArrays.unfitted(per_element),
            covariance=covariance,
            misfit=np.array(float(found.errors.misfit)),
        )
        columns = {"offsets": found.offsets, "isolated": found.kinds}
        columns |= {"residuals": found.residuals, "errors": found.own}
        self.set_arrays(fitted.with_rows(rows, **columns))
        self.zero = "per-composition" if found.offsets.any() else "per-element"
        rank = len(bias_fits.row_space(found.rows[self.arrays().judged()]))
        if rank == found.units == 1:
            self.zero = "scalar"
        of_elements = np.eye(N_ELEMENTS, dtype=np.int64)[found.elements]
        self.fit_report = {
            "method": method,
            "frames": len(residuals),
            "compositions": int((found.kinds == DATA).sum()),
            "isolated_atoms": int((found.kinds == ISOLATED).sum()),
            "anchors": int((found.kinds == ANCHOR).sum()),
            "rank": rank,
            "elements": len(found.elements),
            **reported(
                found, self.zero != "per-composition" and self.arrays().spanned(of_elements)
            ),
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
            rows = np.eye(N_ELEMENTS, dtype=np.int64)[sorted(energies)]
            self.set_arrays(self.arrays().with_rows(rows))

    def _apply(self, fn: Any, recurse: bool = True) -> Bias:
        """Move between devices, but stay float64 under `.float()` or `.to(torch.float32)`."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def composition_counts(numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
    """Atoms of each element in each structure, `(b, N_ELEMENTS)` int64."""
    if n_structures is None:
        n_structures = int(batch.max()) + 1 if len(batch) else 0
    counts = torch.zeros(n_structures * N_ELEMENTS, dtype=torch.int64, device=numbers.device)
    counts.index_add_(0, batch * N_ELEMENTS + numbers, torch.ones_like(numbers))
    return counts.reshape(n_structures, N_ELEMENTS)
