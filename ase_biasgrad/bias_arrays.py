"""Bias of a composition on NumPy arrays: what calculators evaluate and checkpoints hold.

`bias.Bias` is the same as a module of torch, which fits; the mathematics of what is fitted is here,
so that energies are the same, bit for bit, with torch and without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from ase.data import chemical_symbols

from ase_biasgrad import bias_fits
from ase_biasgrad.composition_fit import ANCHOR, DATA, ISOLATED, KNOWN_WITHIN
from ase_biasgrad.units import N_ELEMENTS

EnergyZero = Literal["none", "scalar", "per-element", "per-composition"]


@dataclass(frozen=True)
class BiasArrays:
    """A fitted bias b; `Bias` says what its numbers mean."""

    zero: EnergyZero
    fit_report: dict[str, Any]
    per_element: np.ndarray  # (N_ELEMENTS,)
    covariance: np.ndarray  # (N_ELEMENTS, N_ELEMENTS) eV²
    misfit: np.ndarray  # () eV
    # one row for each composition of the fit
    compositions: np.ndarray  # (k, N_ELEMENTS) int64
    offsets: np.ndarray  # (k,)
    residuals: np.ndarray  # (k,)
    isolated: np.ndarray  # (k,) int64
    errors: np.ndarray  # (k,)

    @classmethod
    def unfitted(cls, energies: np.ndarray | None = None) -> BiasArrays:
        """A bias of nothing but energies per element, by default of zero."""
        unknown = np.full((N_ELEMENTS, N_ELEMENTS), np.nan), np.array(np.nan)
        rows = np.zeros((0, N_ELEMENTS), np.int64), np.zeros(0), np.zeros(0)
        of_elements = np.zeros(N_ELEMENTS) if energies is None else energies
        return cls("none", {}, of_elements, *unknown, *rows, np.zeros(0, np.int64), np.zeros(0))

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}

    def with_rows(self, compositions: np.ndarray, **columns: np.ndarray) -> BiasArrays:
        """Another one with a row for each of `compositions`; columns left out are not known."""
        k = len(compositions)
        rows: dict[str, Any] = {"offsets": np.zeros(k), "residuals": np.zeros(k)}
        rows |= {"errors": np.full(k, np.nan), "isolated": np.zeros(k, np.int64), **columns}
        return replace(self, compositions=compositions, **rows)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Bias of compositions `(b, N_ELEMENTS)`, `(b,)` eV."""
        energy = counts.astype(np.float64) @ self.per_element
        return np.asarray(energy + counts.sum(axis=1) * self.offset_per_atom(counts))

    def per_atom(self, numbers: np.ndarray) -> np.ndarray:
        """Parts of b of one structure by atom, `(n,)` eV; atoms share an offset evenly."""
        counts = np.bincount(numbers, minlength=N_ELEMENTS)[None]
        return np.asarray(self.per_element[numbers] + self.offset_per_atom(counts)[0])

    def offset_per_atom(self, counts: np.ndarray) -> np.ndarray:
        """Offset of compositions `(b, N_ELEMENTS)` divided by their atoms, `(b,)` eV.

        That of the same composition, or else of one that it is a multiple of.
        """
        if self.zero != "per-composition" or not len(self.compositions):
            return np.zeros(len(counts))
        likeness, row = self._nearest(counts)
        per_atom = self.offsets / self.compositions.sum(axis=1)
        return np.where(likeness > 0, per_atom[row], 0.0)

    def _nearest(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Likeness `(b,)`, 0 for none, and the row: the same composition, or a part of it."""
        same = self._multiples_of(counts)
        exact = counts.sum(axis=1)[:, None] == self.compositions.sum(axis=1)
        likeness = same.astype(int) + (same & exact)
        row = likeness.argmax(axis=1)
        return likeness[np.arange(len(counts)), row], row

    def _multiples_of(self, counts: np.ndarray) -> np.ndarray:
        """Rows (isolated atoms apart) that compositions are multiples of, `(b, k)` bool."""
        used = self.compositions.any(axis=0)
        size, fitted = counts.sum(axis=1)[:, None], self.compositions.sum(axis=1)  # (b, 1), (k,)
        left = counts[:, None, used] * fitted[:, None]
        same = (left == self.compositions[:, used] * size[..., None]).all(axis=2)
        return np.asarray(same & (self.isolated == 0) & (fitted > 0) & (size > 0))

    def knows(self, counts: np.ndarray, isolated: bool = False) -> bool:
        """True if b of a composition `(N_ELEMENTS,)` follows from the data of the fit.

        See `Bias.knows`.
        """
        if self.zero == "none" or len(self.compositions) == 0:
            return False
        rows, atoms = self.compositions, self.isolated == ISOLATED
        close = np.abs(self.residuals) <= KNOWN_WITHIN * rows.sum(axis=1)
        atom = np.flatnonzero(atoms & (rows == counts).all(axis=1))
        if isolated and len(atom):
            return bool(close[atom[0]])
        asked = np.asarray(counts, np.int64)[None]
        if (same := self._multiples_of(asked)[0]).any():
            return bool(close[same].all())
        if self.zero == "per-composition":
            return False
        return bool(self.spanned(asked, tight=True)[0])

    def standard_error(self, counts: np.ndarray) -> np.ndarray:
        """Standard error of b of compositions `(b, N_ELEMENTS)`, `(b,)` eV.

        See `Bias.standard_error`.
        """
        given = np.asarray(counts, np.int64)
        n, kind_of = np.unique(given, axis=0, return_inverse=True)  # frames share compositions
        known = self.spanned(n) if self.zero in ("scalar", "per-element") else np.zeros(len(n))
        variance = np.einsum("be,ef,bf->b", n, self.covariance, n) + self._fresh_variance(n)
        found = np.where(known, np.sqrt(np.maximum(variance, 0.0)), np.nan)
        row, fold = self._rows_of(n)
        if len(self.errors):
            found = np.where(row >= 0, fold * self.errors[row], found)
        return np.asarray(found[kind_of.ravel()])

    def reaction(
        self, counts: np.ndarray, coefficients: np.ndarray | None = None
    ) -> tuple[float, float]:
        """Bias of a reaction, Σ_s ν_s b(n_s), and its standard error, in eV.

        Energies per element enter by the difference Σ ν_s n_s alone, so those of a balanced
        reaction leave no error; the misfit of each composition stays. Errors of the same
        composition cancel. Raises `ValueError` if the data of the fit does not determine a
        composition, or the difference.

        Parameters
        ----------
        counts
            Compositions `(s, N_ELEMENTS)`, or without `coefficients` one difference `(N_ELEMENTS,)`
            of any signs, whose error is that of the energies per element alone.
        coefficients
            ν `(s,)`, negative for what reacts.
        """
        n = np.atleast_2d(np.asarray(counts, np.int64))
        nu = np.ones(1) if coefficients is None else np.asarray(coefficients, float)
        row, fold = self._rows_of(n)
        spanned = self.zero in ("scalar", "per-element") and self.spanned(n)
        for k in np.flatnonzero(~(spanned | (row >= 0))):
            raise ValueError(
                f"the energy zero of {_formula(n[k])} is not determined by the data of the fit: "
                "add frames of it, or of compositions that combine to it"
            )
        value = float(nu @ self(n))
        difference, rows = nu @ n, self.compositions
        own2 = self.errors**2
        variance = 0.0
        if self.zero != "per-composition":
            own = difference @ self.covariance @ difference if difference.any() else 0.0
            variance = float(own)
            of_elements = np.einsum("ke,ef,kf->k", rows, self.covariance, rows)
            own2 = np.maximum(own2 - of_elements, 0.0)
        shares = np.bincount(row[row >= 0], (nu * fold)[row >= 0], minlength=len(rows))
        variance += float(np.sum(shares**2 * own2, where=shares != 0))
        if coefficients is not None and (fresh := row < 0).any():
            kinds, of = np.unique(n[fresh], axis=0, return_inverse=True)
            shares = np.bincount(of.ravel(), nu[fresh])
            variance += float(np.sum(shares**2 * self._fresh_variance(kinds), where=shares != 0))
        return value, float(np.sqrt(max(variance, 0.0)))

    def _fresh_variance(self, counts: np.ndarray) -> np.ndarray:
        """misfit²·s of compositions that the fit has not seen, `(b,)` eV²."""
        largest = max(1, int(self.compositions.sum(axis=1).max())) if len(self.errors) else 1
        return np.asarray(float(self.misfit) ** 2 * np.maximum(1.0, counts.sum(axis=1) / largest))

    def _rows_of(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row that each composition `(b, N_ELEMENTS)` is a multiple of or −1, and its multiple."""
        if not len(self.compositions) or self.zero == "none":
            return np.full(len(counts), -1), np.ones(len(counts))
        n = np.abs(counts)
        likeness, row = self._nearest(n)
        fold = n.sum(axis=1) / np.maximum(self.compositions.sum(axis=1)[row], 1)
        found = (likeness > 0) & (counts >= 0).all(axis=1)
        return np.where(found, row, -1), fold

    def spanned(self, counts: np.ndarray, tight: bool = False) -> np.ndarray:
        """Compositions `(b, N_ELEMENTS)` that rows of the fit combine to, `(b,)` bool.

        `tight` leaves out anchors that are not close (see `judged`).
        """
        return bias_fits.spanned(self.compositions[self.judged(tight)], counts)

    def judged(self, tight: bool = False) -> np.ndarray:
        """Rows that determine the zero, `(k,)` bool: the data, isolated atoms that the fit leaves
        within 0.1 eV, and anchors, `tight` ones if they and the fit are as close by atom."""
        kinds, reach = self.isolated, KNOWN_WITHIN * self.compositions.sum(axis=1)
        close = np.abs(self.residuals) <= reach
        sure = close & (self.errors <= reach)
        anchors = (kinds == ANCHOR) & (sure if tight else True)
        return np.asarray(
            (kinds == DATA)
            | bool((kinds == ISOLATED).all())
            | ((kinds == ISOLATED) & close)
            | anchors
        )


def of_version_1(tensors: dict[str, np.ndarray], zero: EnergyZero) -> dict[str, np.ndarray]:
    """Arrays of a bias of format version 1 in the form of today, with its `constant`.

    A scalar was one number for a structure, and an offset the whole energy of a composition; both
    become energies per element of minimum norm, with the same b for each composition of the fit and
    the right multiples of it.
    """
    tensors = dict(tensors)
    rows, constant = tensors["compositions"], float(tensors.pop("constant"))
    if zero in ("scalar", "per-composition") and len(rows):
        counts, offsets = rows.astype(float), tensors["offsets"] + constant
        found = bias_fits.least_squares(offsets, counts)
        tensors["per_element"] = tensors["per_element"] + found.values
        left = offsets - counts @ found.values
        tensors["offsets"] = left if zero == "per-composition" else 0 * offsets
    tensors["residuals"] = np.zeros(len(rows))
    tensors["isolated"] = np.zeros(len(rows), np.int64)
    return tensors


def _formula(counts: np.ndarray) -> str:
    """Symbols and counts of a composition or a difference, such as C2H6O or C1H-2."""
    return "".join(f"{chemical_symbols[z]}{counts[z]}" for z in np.flatnonzero(counts)) or "nothing"
