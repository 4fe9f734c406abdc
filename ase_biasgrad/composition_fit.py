"""Fit of a bias: frames are gathered by composition, a method fits them, anchors fix the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ase_biasgrad import bias_errors, bias_fits
from ase_biasgrad.bias_errors import FitErrors, RowMeans
from ase_biasgrad.units import N_ELEMENTS

KNOWN_WITHIN = 0.1  # eV per atom; a fit further off does not know the zero of a composition
DATA, ISOLATED, ANCHOR = 0, 1, 2  # kinds of rows
ELEMENT_METHODS = ("least-squares", "least-absolute-deviation", "huber", "ridge")


@dataclass(frozen=True)
class Anchors:
    """Energies b of compositions known from elsewhere: elemental solids, another code's table.

    Attributes
    ----------
    counts
        `(a, N_ELEMENTS)`; a row with one atom stands for the energy of an element.
    energies
        `(a,)` eV, of b there: E_ref − E_model.
    deviations
        `(a,)` eV, their standard deviations. 0 is exact. The others are a prior: `ridge` draws the
        fit toward it everywhere, other methods take it for what the frames leave open.
    """

    counts: np.ndarray
    energies: np.ndarray
    deviations: np.ndarray

    def __post_init__(self) -> None:
        shapes = self.counts.shape, self.energies.shape, self.deviations.shape
        a = len(self.energies)
        if shapes != ((a, N_ELEMENTS), (a,), (a,)):
            raise ValueError(f"anchors: counts, energies and deviations of shapes {shapes}")
        if not (np.isfinite(self.energies).all() and (self.deviations >= 0).all()):
            raise ValueError("anchors: energies must be finite and deviations not negative")
        if not (self.counts.sum(axis=1) > 0).all() or (self.counts < 0).any():
            raise ValueError("anchors: each needs a composition")

    @classmethod
    def of_elements(cls, energies: dict[int, float], deviation: float = 0.0) -> Anchors:
        """Anchors from a table of energies per atom (eV) by atomic number."""
        numbers = sorted(energies)
        values = np.array([energies[z] for z in numbers], float)
        counts = np.eye(N_ELEMENTS, dtype=np.int64)[numbers]
        return cls(counts, values, np.full(len(numbers), float(deviation)))


@dataclass(frozen=True)
class CompositionFit:
    """Everything that a bias keeps of its fit, over the elements that occur."""

    elements: np.ndarray  # atomic numbers `(e,)` of the columns
    # values, covariance: energies per element `(e,)` eV and their covariance `(e, e)`
    values: np.ndarray
    covariance: np.ndarray
    # rows, kinds: compositions `(k, e)`, and whether they are data, isolated atoms or anchors
    # `(k,)`
    rows: np.ndarray
    kinds: np.ndarray
    # offsets, residuals, own: `(k,)` eV: energy beyond that of the elements, what the fit leaves,
    # standard error
    offsets: np.ndarray
    residuals: np.ndarray
    own: np.ndarray
    units: int  # different formula units of the data
    errors: FitErrors  # of the rows of the data
    choices: dict[str, float]  # numbers that the method chose, for the report


@dataclass(frozen=True)
class _Method:
    """Result of a method: energies per element `(e,)`, and offsets of rows `(k,)`."""

    values: np.ndarray
    offsets: np.ndarray
    errors: FitErrors
    choices: dict[str, float] = field(default_factory=dict)


def fit_compositions(
    residuals: np.ndarray,
    counts: np.ndarray,
    method: str,
    forces_within: np.ndarray | None,
    isolated: np.ndarray,
    anchors: Anchors | None,
) -> CompositionFit:
    """Fit residuals `(m,)` of frames of compositions `(m, N_ELEMENTS)`; see `Bias.fit`."""
    if anchors is None:
        anchors = Anchors.of_elements({})
    elements = np.flatnonzero(counts.any(axis=0) | anchors.counts.any(axis=0))
    rows, row_of = np.unique(
        np.column_stack([counts[:, elements], isolated]), axis=0, return_inverse=True
    )
    row_of, rows, kinds = row_of.ravel(), rows[:, :-1].copy(), rows[:, -1].astype(np.int64)
    fitted = (kinds == DATA) | bool(kinds.all())  # isolated atoms alone are the data
    of_data = fitted[row_of]
    by_row = (np.cumsum(fitted) - 1)[row_of[of_data]]
    within = None if forces_within is None else np.asarray(forces_within)[of_data]
    given = residuals[of_data], by_row, rows[fitted]
    known = anchors.counts[:, elements].astype(float)
    exact = anchors.deviations == 0
    if method in ELEMENT_METHODS:
        found = _constrained(*given, method, known, anchors, exact)
        used = known if method == "ridge" else known[exact]
    else:
        found, used = _by_composition(*given, method, within), known[:0]
    values, covariance = found.values, found.errors.covariance

    # isolated atoms and anchors fix what is still open
    axes = bias_fits.row_space(np.concatenate([rows[fitted], used]))
    single = rows[row_of[~of_data]]
    deviations = np.concatenate([np.full(len(single), KNOWN_WITHIN), anchors.deviations])
    values, change, gain = bias_fits.anchored(
        values,
        axes,
        np.concatenate([residuals[~of_data], anchors.energies]),
        np.concatenate([single, known]),
        np.maximum(deviations, 1e-3 * KNOWN_WITHIN),
    )
    covariance = change @ covariance @ change.T + (gain * deviations**2) @ gain.T

    own, offsets = np.full(len(rows), np.nan), np.zeros(len(rows))
    own[fitted], offsets[fitted] = found.errors.own, found.offsets
    means = np.bincount(row_of, weights=residuals) / np.bincount(row_of)
    every = np.concatenate([rows, anchors.counts[:, elements]])
    offsets = np.append(offsets, np.zeros(len(known)))
    return CompositionFit(
        elements,
        values,
        covariance,
        every,
        np.append(kinds, np.full(len(known), ANCHOR)),
        offsets,
        np.append(means, anchors.energies) - every @ values - offsets,
        np.append(own, anchors.deviations),
        len(np.unique(formula_units(rows[fitted])[0], axis=0)),
        found.errors,
        found.choices,
    )


def _constrained(
    residuals: np.ndarray,
    row_of: np.ndarray,
    rows: np.ndarray,
    method: str,
    known: np.ndarray,
    anchors: Anchors,
    exact: np.ndarray,
) -> _Method:
    """Fit energies per element with those of exact anchors given: β = β₀ + Z z, fitted in z."""
    start, free = bias_fits.solved(known[exact], anchors.energies[exact])
    reduced = rows @ free  # (k, free directions)
    prior = None
    if method == "ridge" and not exact.all():
        soft = known[~exact]
        prior = (soft @ free, anchors.energies[~exact] - soft @ start, anchors.deviations[~exact])
    found = _by_element(residuals - (rows @ start)[row_of], row_of, reduced, method, prior)
    covariance = free @ found.errors.covariance @ free.T
    errors = replace(found.errors, covariance=covariance)
    return _Method(start + free @ found.values, found.offsets, errors, found.choices)


def _by_element(
    residuals: np.ndarray,
    row_of: np.ndarray,
    rows: np.ndarray,
    method: str,
    prior: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> _Method:
    means = bias_errors.row_means(residuals, row_of)
    axes, none = bias_fits.row_space(rows), np.zeros(len(rows))
    if method in ("least-squares", "ridge"):
        values = bias_fits.least_squares_of_means(means.means, rows, means.frames).values
        errors = bias_errors.element_errors(rows, means, values, axes)
        if method == "ridge":
            return _ridge(rows, means, errors, prior)
        return _Method(values, none, errors)
    if method == "huber":
        values, scale = bias_fits.huber(residuals, rows, row_of)
        choices = {"huber_scale": scale}
    else:
        values = bias_fits.least_absolute_deviation(residuals, rows[row_of]).values
        scale, choices = 0.0, {}
    predicted = (rows @ values)[row_of]
    left = residuals - predicted
    typical = bias_errors.row_means(predicted + bias_errors.without_outliers(left, row_of), row_of)
    weights = None
    if method == "huber":
        influence, weights = bias_fits.huber_influence(left, scale, row_of)
    else:
        influence = bias_errors.median_influence(left)
    effective = bias_errors.row_means(influence, row_of)
    errors = bias_errors.element_errors(rows, typical, values, axes, effective, weights)
    return _Method(values, none, errors, choices)


def _ridge(
    rows: np.ndarray,
    means: RowMeans,
    errors: FitErrors,
    prior: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> _Method:
    """Least squares drawn toward a prior, or toward zero as far as left-out compositions like it.

    Compositions weigh by the variances that ordinary least squares shows. Where it shows none, the
    data stands as it is.
    """
    judged = np.isfinite(errors.left_out)
    misfit2, noise2 = np.nan_to_num(errors.misfit) ** 2, np.nan_to_num(means.of_means)
    choices: dict[str, float] = {}
    for _ in range(3):  # the misfit weighs compositions, and these weights show another misfit
        variances = noise2 + misfit2
        variances = np.maximum(variances, 1e-12 + 1e-6 * variances.max())
        if prior is None:
            fit, choices["ridge_width"] = _shrunk(rows, means.means, variances, judged)
        else:
            fit = bias_fits.ridge(means.means, rows, variances, *prior)
        if judged.any():
            left, leverage = means.means - rows @ fit.values, np.minimum(fit.leverage, 1.0)
            misfit2 = bias_errors.moment_misfit2(means, left, leverage, judged)
    carried = np.einsum("ke,ef,kf->k", rows, fit.covariance, rows)
    told = np.where(judged, fit.left_out, np.nan)
    misfit2 = bias_errors.calibrated_misfit2(misfit2, told, carried + noise2)
    own = np.sqrt(np.maximum(carried + misfit2 * (1 - 2 * fit.leverage), 0.0))
    found = FitErrors(
        fit.covariance,
        errors.noise,
        float(np.sqrt(misfit2)) if judged.any() else np.nan,
        errors.spare,
        own,
        fit.left_out,
    )
    return _Method(fit.values, np.zeros(len(rows)), found, choices)


def _shrunk(
    rows: np.ndarray, means: np.ndarray, variances: np.ndarray, judged: np.ndarray
) -> tuple[bias_fits.RidgeFit, float]:
    """Ridge toward zero, and its width in eV: the widest as good as any for left-out rows.

    Only those that others determine are `judged`; without them it is least squares.
    """
    axes = bias_fits.row_space(rows)
    none, one = np.zeros(len(axes)), np.ones(len(axes))
    widths = np.geomspace(1e6, 1e-3, 55)
    trials = [bias_fits.ridge(means, rows, variances, axes, none, w * one) for w in widths]
    scores = [float(np.sum(trial.left_out[judged] ** 2)) for trial in trials]
    best = next(k for k, score in enumerate(scores) if score <= min(scores) * (1 + 1e-6))
    return trials[best], float(widths[best])


def _by_composition(
    residuals: np.ndarray,
    row_of: np.ndarray,
    rows: np.ndarray,
    method: str,
    within: np.ndarray | None,
) -> _Method:
    """One number for each formula unit; what energies per element cannot hold of it is offset."""
    means = bias_errors.row_means(residuals, row_of)
    axes = bias_fits.row_space(rows)
    units, multiples = formula_units(rows)
    kinds, unit_of = np.unique(units, axis=0, return_inverse=True)
    unit_of = unit_of.ravel()
    numbers, variances = np.empty(len(kinds)), np.empty(len(kinds))
    for k, mine in enumerate(members(unit_of[row_of])):
        numbers[k], variances[k] = bias_errors.unit_energy(
            method,
            residuals[mine],
            multiples[row_of[mine]],
            None if within is None else within[mine],
            means.variances[row_of[mine]],
            resamples=max(4, min(50, 20_000 // len(kinds))),
        )
    energies = multiples * numbers[unit_of]  # (k,)
    values = bias_fits.least_squares_of_means(energies, rows, means.frames).values
    errors = bias_errors.composition_errors(rows, means, axes, multiples**2 * variances[unit_of])
    offsets = energies - rows @ values
    return _Method(values, offsets if len(axes) < len(kinds) else 0 * offsets, errors)


def formula_units(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Formula units `(k, e)` of compositions, and how many of them each holds `(k,)`."""
    multiples = np.maximum(np.gcd.reduce(counts, axis=1), 1)
    return counts // multiples[:, None], multiples


def members(group_of: np.ndarray) -> list[np.ndarray]:
    """Places `(…,)` of each group of `(m,)`, in order."""
    order = np.argsort(group_of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1)


def reported(fit: CompositionFit, spanned: np.ndarray | bool) -> dict[str, Any]:
    """Errors of a fit as JSON values in eV, None for what is not known.

    `spanned (e,)` bool tells the elements whose energies the rows determine; False: none.
    """
    left_out, data = fit.errors.left_out, fit.kinds != ANCHOR
    if (fit.kinds == DATA).any():
        data = fit.kinds == DATA
    told = np.isfinite(left_out)
    by_atom = left_out[told] / fit.rows[data].sum(axis=1)[told]
    deviations = np.where(spanned, np.sqrt(np.diag(fit.covariance)), np.nan)
    symbols = [chemical_symbols[z] for z in fit.elements]
    return {
        "noise": _known(fit.errors.noise),
        "misfit": _known(fit.errors.misfit),
        "spare_compositions": fit.errors.spare,
        "standard_errors": dict(zip(symbols, map(_known, deviations), strict=True)),
        "leave_one_composition_out": {
            "compositions": int(told.sum()),
            "rmse": _root_mean_square(left_out[told]),
            "rmse_per_atom": _root_mean_square(by_atom),
        },
        "dissociation": {
            symbols[int(np.argmax(row))]: float(left)
            for row, kind, left in zip(fit.rows, fit.kinds, fit.residuals, strict=True)
            if kind == ISOLATED
        },
        **fit.choices,
    }


def _root_mean_square(values: np.ndarray) -> float | None:
    return float(np.sqrt(np.mean(values**2))) if len(values) else None


def _known(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
