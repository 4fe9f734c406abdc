"""Energy zero of a potential: a bias b that depends on composition alone.

b never sees positions, so ∂b/∂R = 0: whatever is done to it, forces, stress and Hessian of the
potential stay the same, bit for bit. It is kept and added in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ase_biasgrad import bias_errors, bias_fits
from ase_biasgrad.bias_errors import FitErrors
from ase_biasgrad.units import N_ELEMENTS

EnergyZero = Literal["none", "scalar", "per-element", "per-composition"]
BiasMethod = Literal["mean", "median", "efwt", "least-squares", "least-absolute-deviation"]
ELEMENT_METHODS = {
    "least-squares": bias_fits.least_squares,
    "least-absolute-deviation": bias_fits.least_absolute_deviation,
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
    isolated: Tensor  # (k,) int64, 1 for an atom without neighbours
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
        return bool(self._spanned(np.asarray(counts, np.int64)[None])[0])

    def standard_error(self, counts: Tensor | np.ndarray) -> Tensor:
        """Standard error of b as the energy zero of compositions `(b, N_ELEMENTS)`, `(b,)` eV.

        For the k-fold of a composition of the fit, k times its own. For other combinations n,
        √(nᵀ C n + s·misfit²), the error of prediction of a composition that the fit has not seen;
        s = max(1, atoms / most atoms of the fit) lets larger ones vary as independent parts. It is
        that of the mean over geometries: single ones vary by the noise besides. NaN where the data
        does not determine b, or shows no spread to judge by.
        """
        n = np.asarray(torch.as_tensor(counts).cpu(), np.int64)
        known = self._spanned(n) if self.zero in ("scalar", "per-element") else np.zeros(len(n))
        covariance, fresh = self.covariance.cpu().numpy(), self._fresh_variance(n)
        variance = np.einsum("be,ef,bf->b", n, covariance, n) + fresh
        found = np.where(known, np.sqrt(np.maximum(variance, 0.0)), np.nan)
        row, fold = self._rows_of(n)
        if len(self.errors):
            found = np.where(row >= 0, fold * self.errors.cpu().numpy()[row], found)
        return torch.from_numpy(found).to(self.errors.device)

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

    def _spanned(self, counts: np.ndarray) -> np.ndarray:
        """Compositions `(b, N_ELEMENTS)` that those of the fit combine to, `(b,)` bool.

        Isolated atoms take part where the fit leaves them within 0.1 eV.
        """
        rows, anchors = self.compositions.cpu().numpy(), self.isolated.cpu().numpy() == 1
        close = np.abs(self.residuals.cpu().numpy()) <= KNOWN_WITHIN * rows.sum(axis=1)
        return bias_fits.spanned(rows[~anchors | close], counts)

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
        atoms = np.zeros(len(counts), bool) if isolated is None else np.asarray(isolated, bool)
        elements = np.flatnonzero(counts.any(axis=0))
        # one row for each composition, isolated atoms apart
        rows, row_of = np.unique(
            np.column_stack([counts[:, elements], atoms]), axis=0, return_inverse=True
        )
        row_of, rows, single = row_of.ravel(), rows[:, :-1].copy(), rows[:, -1].copy()
        fitted = (single == 0) | bool(single.all())  # rows of the fit, the others are anchors
        data = fitted[row_of]
        within = None if forces_within is None else np.asarray(forces_within)[data]
        place = np.cumsum(fitted) - 1
        found = _fitted(residuals[data], place[row_of[data]], rows[fitted], method, within)
        values, covariance = found.values, found.errors.covariance
        if not data.all():
            values, map_ = bias_fits.anchored(
                values, found.axes, residuals[~data], rows[row_of[~data]]
            )
            covariance = map_ @ covariance @ map_.T

        offsets, own = np.zeros(len(rows)), np.full(len(rows), np.nan)
        offsets[fitted], own[fitted] = found.offsets, found.errors.own
        self.per_element.zero_()
        self.per_element[torch.from_numpy(elements)] = torch.from_numpy(values).to(
            self.per_element.device
        )
        whole = np.full((N_ELEMENTS, N_ELEMENTS), np.nan if np.isnan(covariance).any() else 0.0)
        whole[np.ix_(elements, elements)] = covariance
        compositions = np.zeros((len(rows), N_ELEMENTS), np.int64)
        compositions[:, elements] = rows
        self._set_rows(compositions, offsets, single)
        self._set_errors(whole, found.errors.misfit)
        self.errors.copy_(torch.from_numpy(own))
        self.zero = "per-composition" if offsets.any() else "per-element"
        means = np.bincount(row_of, weights=residuals) / np.bincount(row_of)
        left = means - rows @ values - offsets
        self.residuals.copy_(torch.from_numpy(left))
        close = fitted | (np.abs(left) <= KNOWN_WITHIN)
        rank = len(bias_fits.row_space(rows[close]))
        if rank == found.units == 1:
            self.zero = "scalar"
        self.fit_report = {
            "method": method,
            "frames": len(residuals),
            "compositions": int((single == 0).sum()),
            "isolated_atoms": int(single.sum()),
            "rank": rank,
            "elements": len(elements),
            **self._reported_errors(rows[fitted], found.errors),
        }

    def _reported_errors(self, rows: np.ndarray, errors: FitErrors) -> dict[str, Any]:
        """Errors as JSON values in eV, by symbol where by element; None for what is not known."""
        single = np.eye(N_ELEMENTS, dtype=np.int64)[self.compositions.any(dim=0).cpu().numpy()]
        deviations = np.sqrt(self.covariance.diagonal().cpu().numpy())
        deviations[single[~self._spanned(single)].any(axis=0)] = np.nan
        by_atom = errors.left_out / rows.sum(axis=1)
        told = np.isfinite(by_atom)
        return {
            "noise": _known(errors.noise),
            "misfit": _known(errors.misfit),
            "spare_compositions": errors.spare,
            "standard_errors": {
                chemical_symbols[z]: _known(deviations[z])
                for z in np.flatnonzero(single.any(axis=0))
            },
            "leave_one_composition_out": {
                "compositions": int(told.sum()),
                "rmse": _known(np.sqrt(np.mean(errors.left_out[told] ** 2)))
                if told.any()
                else None,
                "rmse_per_atom": _known(np.sqrt(np.mean(by_atom[told] ** 2)))
                if told.any()
                else None,
            },
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
    ) -> None:
        k = len(compositions)
        columns = {
            "compositions": compositions,
            "offsets": np.zeros(k) if offsets is None else offsets,
            "residuals": np.zeros(k),
            "isolated": np.zeros(k, np.int64) if isolated is None else isolated,
            "errors": np.full(k, np.nan),
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


def _formula_units(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Formula units `(m, N_ELEMENTS)` of compositions, and how many of them each holds `(m,)`."""
    multiples = np.maximum(np.gcd.reduce(counts, axis=1), 1)
    return counts // multiples[:, None], multiples


@dataclass(frozen=True)
class _Fit:
    """Energies per element `(elements,)`, offsets of rows `(k,)`, and what they rest on."""

    values: np.ndarray
    offsets: np.ndarray
    axes: np.ndarray  # (rank, elements), of the row space
    units: int  # different formula units
    errors: FitErrors


def _fitted(
    residuals: np.ndarray,
    row_of: np.ndarray,
    rows: np.ndarray,
    method: str,
    within: np.ndarray | None,
) -> _Fit:
    """Fit of residuals `(m,)` of frames whose compositions are `rows (k, elements)[row_of]`."""
    axes = bias_fits.row_space(rows)
    units, multiples = _formula_units(rows)
    _, unit_of = np.unique(units, axis=0, return_inverse=True)
    by_row = bias_errors.row_means(residuals, row_of)
    n_units = int(unit_of.max()) + 1
    if method in ELEMENT_METHODS:
        values = ELEMENT_METHODS[method](residuals, rows[row_of]).values
        left = residuals - (rows @ values)[row_of]
        effective = None
        if method == "least-absolute-deviation":
            effective = bias_errors.row_means(bias_errors.median_influence(left), row_of)
        errors = bias_errors.element_errors(rows, by_row, values, axes, effective)
        return _Fit(values, np.zeros(len(rows)), axes, n_units, errors)
    of_frames, m = unit_of.ravel()[row_of], multiples[row_of]
    numbers, variances = np.empty(n_units), np.empty(n_units)
    frame_variances = by_row.variances[row_of]
    for k, mine in enumerate(_members(of_frames)):
        given = residuals[mine], m[mine], None if within is None else within[mine]
        numbers[k], variances[k] = bias_errors.unit_energy(method, *given, frame_variances[mine])
    energies = multiples * numbers[unit_of.ravel()]  # (k,)
    values = bias_fits.least_squares(energies[row_of], rows[row_of]).values
    own2 = multiples**2 * variances[unit_of.ravel()]
    errors = bias_errors.composition_errors(rows, by_row, axes, own2)
    offsets = energies - rows @ values
    return _Fit(values, offsets if len(axes) < n_units else 0 * offsets, axes, n_units, errors)


def _members(group_of: np.ndarray) -> list[np.ndarray]:
    """Places `(…,)` of each group of `(m,)`, in order."""
    order = np.argsort(group_of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)


def _known(number: float) -> float | None:
    """A number as JSON holds it: None for NaN."""
    return float(number) if np.isfinite(number) else None


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
