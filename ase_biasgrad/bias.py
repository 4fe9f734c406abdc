"""Energy zero of a potential: a bias b that depends on composition alone.

b never sees positions, so ∂b/∂R = 0: whatever is done to it, forces, stress and Hessian of the
potential stay the same, bit for bit. It is kept and added in float64.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ase_biasgrad import bias_fits
from ase_biasgrad.composition_fit import (
    ANCHOR,
    DATA,
    ISOLATED,
    KNOWN_WITHIN,
    Anchors,
    fit_compositions,
    reported,
)
from ase_biasgrad.units import N_ELEMENTS

EnergyZero = Literal["none", "scalar", "per-element", "per-composition"]
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
        self.zero: EnergyZero = "none"
        self.fit_report: dict[str, Any] = {}
        self.register_buffer("per_element", torch.zeros(N_ELEMENTS, dtype=torch.float64))
        self._set_errors(np.full((N_ELEMENTS, N_ELEMENTS), np.nan), np.nan)
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
        likeness, row = self._nearest(counts, self._multiples_of(counts))
        per_atom = self.offsets / self.compositions.sum(dim=1)
        return torch.where(likeness > 0, per_atom[row], 0.0)

    def _nearest(self, counts: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """Likeness `(b,)`, 0 for none, and the row: the same composition, or a part of it."""
        exact = counts.sum(dim=1)[:, None] == self.compositions.sum(dim=1)
        likeness, row = (same.long() + (same & exact)).max(dim=1)
        return likeness, row

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
        than 0.1 eV per atom off, nor what rests on anchors less sure than that. `isolated` asks for
        an atom without neighbours: where the data holds it, its own residual decides.
        """
        if self.zero == "none" or len(self.compositions) == 0:
            return False
        rows, atoms = self.compositions.cpu().numpy(), self.isolated.cpu().numpy() == ISOLATED
        close = np.abs(self.residuals.cpu().numpy()) <= KNOWN_WITHIN * rows.sum(axis=1)
        atom = np.flatnonzero(atoms & (rows == counts).all(axis=1))
        if isolated and len(atom):
            return bool(close[atom[0]])
        asked = torch.from_numpy(np.asarray(counts, np.int64)[None]).to(self.compositions.device)
        if (same := self._multiples_of(asked)[0].cpu().numpy()).any():
            return bool(close[same].all())
        if self.zero == "per-composition":
            return False
        return bool(self._spanned(np.asarray(counts, np.int64)[None], tight=True)[0])

    def standard_error(self, counts: Tensor | np.ndarray) -> Tensor:
        """Standard error of b as the energy zero of compositions `(b, N_ELEMENTS)`, `(b,)` eV.

        For the k-fold of a composition of the fit, k times its own. For other combinations n,
        √(nᵀ C n + s·misfit²), the error of prediction of a composition that the fit has not seen;
        s = max(1, atoms / most atoms of the fit) lets larger ones vary as independent parts. It is
        that of the mean over geometries: single ones vary by the noise besides. NaN where the data
        does not determine b, or shows no spread to judge by.
        """
        given = np.asarray(torch.as_tensor(counts).cpu(), np.int64)
        n, kind_of = np.unique(given, axis=0, return_inverse=True)  # frames share compositions
        known = self._spanned(n) if self.zero in ("scalar", "per-element") else np.zeros(len(n))
        covariance, fresh = self.covariance.cpu().numpy(), self._fresh_variance(n)
        variance = np.einsum("be,ef,bf->b", n, covariance, n) + fresh
        found = np.where(known, np.sqrt(np.maximum(variance, 0.0)), np.nan)
        row, fold = self._rows_of(n)
        if len(self.errors):
            found = np.where(row >= 0, fold * self.errors.cpu().numpy()[row], found)
        return torch.from_numpy(found[kind_of.ravel()]).to(self.errors.device)

    def reaction(
        self, counts: np.ndarray, coefficients: np.ndarray | None = None
    ) -> tuple[float, float]:
        """Bias of a reaction, Σ_s ν_s b(n_s), and its standard error, in eV.

        Energies per element enter by the difference Σ ν_s n_s alone, so those of a balanced
        reaction leave no error; the misfit of each composition stays. Errors of the same
        composition cancel.

        Parameters
        ----------
        counts
            Compositions `(s, N_ELEMENTS)`, or without `coefficients` one difference `(N_ELEMENTS,)`
            of any signs, whose error is that of the energies per element alone.
        coefficients
            ν `(s,)`, negative for what reacts.

        Raises
        ------
        ValueError
            If the data of the fit does not determine a composition, or the difference.
        """
        n = np.atleast_2d(np.asarray(counts, np.int64))
        nu = np.ones(1) if coefficients is None else np.asarray(coefficients, float)
        row, fold = self._rows_of(n)
        spanned = self.zero in ("scalar", "per-element") and self._spanned(n)
        for k in np.flatnonzero(~(spanned | (row >= 0))):
            raise ValueError(
                f"the energy zero of {_formula(n[k])} is not determined by the data of the fit: "
                "add frames of it, or of compositions that combine to it"
            )
        value = float(nu @ self._of(torch.from_numpy(n).to(self.offsets.device)).cpu().numpy())
        covariance, errors = self.covariance.cpu().numpy(), self.errors.cpu().numpy()
        difference, rows = nu @ n, self.compositions.cpu().numpy()
        own2 = errors**2
        variance = 0.0
        if self.zero != "per-composition":
            variance = float(difference @ covariance @ difference) if difference.any() else 0.0
            own2 = np.maximum(own2 - np.einsum("ke,ef,kf->k", rows, covariance, rows), 0.0)
        shares = np.bincount(row[row >= 0], (nu * fold)[row >= 0], minlength=len(rows))
        variance += float(np.sum(shares**2 * own2, where=shares != 0))
        if coefficients is not None and (fresh := row < 0).any():
            kinds, of = np.unique(n[fresh], axis=0, return_inverse=True)
            shares = np.bincount(of.ravel(), nu[fresh])
            variance += float(np.sum(shares**2 * self._fresh_variance(kinds), where=shares != 0))
        return value, float(np.sqrt(max(variance, 0.0)))

    def _fresh_variance(self, counts: np.ndarray) -> np.ndarray:
        """misfit²·s of compositions that the fit has not seen, `(b,)` eV²."""
        largest = max(1, int(self.compositions.sum(dim=1).max())) if len(self.errors) else 1
        return float(self.misfit) ** 2 * np.maximum(1.0, counts.sum(axis=1) / largest)

    def _rows_of(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row that each composition `(b, N_ELEMENTS)` is a multiple of or −1, and its multiple."""
        if not len(self.compositions) or self.zero == "none":
            return np.full(len(counts), -1), np.ones(len(counts))
        n = torch.from_numpy(np.abs(counts)).to(self.compositions.device)
        same = self._multiples_of(n)
        likeness, row = self._nearest(n, same)
        fold = n.sum(dim=1) / self.compositions.sum(dim=1)[row].clamp(min=1)
        found = (likeness > 0).cpu().numpy() & (counts >= 0).all(axis=1)
        return np.where(found, row.cpu().numpy(), -1), fold.cpu().numpy()

    def _spanned(self, counts: np.ndarray, tight: bool = False) -> np.ndarray:
        """Compositions `(b, N_ELEMENTS)` that rows of the fit combine to, `(b,)` bool."""
        return bias_fits.spanned(self.compositions.cpu().numpy()[self._judged(tight)], counts)

    def _judged(self, tight: bool = False) -> np.ndarray:
        """Rows that determine the zero, `(k,)` bool: the data, isolated atoms that the fit leaves
        within 0.1 eV, and anchors, `tight` ones if they and the fit are as close by atom."""
        kinds = self.isolated.cpu().numpy()
        reach = KNOWN_WITHIN * self.compositions.sum(dim=1).cpu().numpy()
        close = np.abs(self.residuals.cpu().numpy()) <= reach
        sure = close & (self.errors.cpu().numpy() <= reach)
        anchors = (kinds == ANCHOR) & (sure if tight else True)
        return (
            (kinds == DATA)
            | bool((kinds == ISOLATED).all())
            | ((kinds == ISOLATED) & close)
            | anchors
        )

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
        self.per_element.zero_()
        self.per_element[torch.from_numpy(found.elements)] = torch.from_numpy(found.values).to(
            self.per_element.device
        )
        unknown = bool(np.isnan(found.covariance).any())
        covariance = np.full((N_ELEMENTS, N_ELEMENTS), np.nan if unknown else 0.0)
        covariance[np.ix_(found.elements, found.elements)] = found.covariance
        self._set_errors(covariance, found.errors.misfit)
        rows = np.zeros((len(found.rows), N_ELEMENTS), np.int64)
        rows[:, found.elements] = found.rows
        self._set_rows(rows, found.offsets, found.kinds, found.residuals, found.own)
        self.zero = "per-composition" if found.offsets.any() else "per-element"
        rank = len(bias_fits.row_space(found.rows[self._judged()]))
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
            **reported(found, self.zero != "per-composition" and self._spanned(of_elements)),
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
        """Tensors of a checkpoint, those of older format versions in the form of today.

        Standard errors that they lack are NaN. In version 1 a scalar was one number for a
        structure, and an offset the whole energy of a composition; both become energies per
        element of minimum norm, with the same b for each composition of the fit and the right
        multiples of it.
        """
        tensors = dict(tensors)
        rows = tensors[f"{prefix}compositions"]
        unknown = {"covariance": (N_ELEMENTS, N_ELEMENTS), "misfit": (), "errors": (len(rows),)}
        for name, shape in unknown.items():
            nan = torch.full(shape, torch.nan, dtype=torch.float64)
            tensors.setdefault(f"{prefix}{name}", nan)
        if (constant := tensors.pop(f"{prefix}constant", None)) is None:
            return tensors
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
        residuals: np.ndarray | None = None,
        errors: np.ndarray | None = None,
    ) -> None:
        k = len(compositions)
        columns = {
            "compositions": compositions,
            "offsets": np.zeros(k) if offsets is None else offsets,
            "residuals": np.zeros(k) if residuals is None else residuals,
            "isolated": np.zeros(k, np.int64) if isolated is None else isolated,
            "errors": np.full(k, np.nan) if errors is None else errors,
        }
        for name, values in columns.items():
            self.register_buffer(name, torch.from_numpy(values).to(self.per_element.device))

    def _set_errors(self, covariance: np.ndarray, misfit: float) -> None:
        device = self.per_element.device
        self.register_buffer("covariance", torch.from_numpy(covariance).to(device))
        self.register_buffer("misfit", torch.tensor(misfit, dtype=torch.float64, device=device))

    def _apply(self, fn: Any, recurse: bool = True) -> Bias:
        """Move between devices, but stay float64 under `.float()` or `.to(torch.float32)`."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def _formula(counts: np.ndarray) -> str:
    """Symbols and counts of a composition or a difference, such as C2H6O or C1H-2."""
    return "".join(f"{chemical_symbols[z]}{counts[z]}" for z in np.flatnonzero(counts)) or "nothing"


def composition_counts(numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
    """Atoms of each element in each structure, `(b, N_ELEMENTS)` int64."""
    if n_structures is None:
        n_structures = int(batch.max()) + 1 if len(batch) else 0
    counts = torch.zeros(n_structures * N_ELEMENTS, dtype=torch.int64, device=numbers.device)
    counts.index_add_(0, batch * N_ELEMENTS + numbers, torch.ones_like(numbers))
    return counts.reshape(n_structures, N_ELEMENTS)
