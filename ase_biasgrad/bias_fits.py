"""Closed forms that fit the bias b to energy residuals r = E_ref − E_model, in float64.

`mean`, `median` and `efwt_window` give one number b to the formula unit of a composition, of which
frame i holds m_i units; `least_squares` and `least_absolute_deviation` give one number to each
element, and the rank tells how many combinations of elements the data determines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ENERGY_WITHIN = 0.02  # eV, energy half of EFwT (Open Catalyst Project, Chanussot et al. 2021)
FORCE_WITHIN = 0.03  # eV/Å, force half of EFwT
HUBER = 1.345  # of the scale; 95 % of the efficiency of least squares on normal residuals


def mean(residuals: np.ndarray, multiples: npt.ArrayLike = 1) -> float:
    """Least squares, argmin_b Σ_i (r_i − m_i b)², for residuals `(k,)` in eV."""
    residuals = checked(residuals)
    m = np.broadcast_to(np.asarray(multiples, float), residuals.shape)
    return float(np.mean(m * residuals) / np.mean(m * m))


def median(residuals: np.ndarray, multiples: npt.ArrayLike = 1) -> float:
    """Least absolute deviation, argmin_b Σ_i |r_i − m_i b|: the median of r/m of weights m.

    Where every b of an interval is a minimum, its middle is taken.
    """
    residuals = checked(residuals)
    m = np.broadcast_to(np.asarray(multiples, float), residuals.shape)
    ratios, order = residuals / m, np.argsort(residuals / m)
    below = np.cumsum(m[order])  # whole numbers: exact
    ends = [np.searchsorted(below, below[-1] / 2, side) for side in ("left", "right")]
    return float(np.mean(ratios[order][ends]))


def efwt_window(
    residuals: np.ndarray,  # (k,) in eV
    multiples: npt.ArrayLike = 1,  # formula units of each frame, m `(k,)`
    # (k,) bool, True where every force component of a frame is within 0.03 eV/Å; without it every
    # frame counts
    forces_within: np.ndarray | None = None,
) -> float:
    """Energy that brings the most frames within the thresholds of EFwT.

    argmax_b of the number of frames with |r_i − m_i b| < 0.02 eV whose forces are within
    0.03 eV/Å. A count is constant over whole intervals of b. Of all b that hold equally many such
    frames, those are taken that hold the most frames whatever their forces (the energy half of
    EFwT), and of these the one nearest to the median. So b is the EFwT optimum where it is well
    determined, and all frames decide where few or none pass the force half.
    """
    residuals = checked(residuals)
    m = np.broadcast_to(np.asarray(multiples, float), residuals.shape)
    passing = np.ones(len(residuals), bool) if forces_within is None else np.asarray(forces_within)
    centre = median(residuals, m)
    offsets = residuals / m - centre
    # strict inequality: the window is open, and rounding must not close it
    reach = (ENERGY_WITHIN - 1e-11 - 4 * np.spacing(np.abs(residuals).max())) / m
    low, high = offsets - reach, offsets + reach
    ends = np.unique(np.concatenate([low, high]))
    middle = 0.5 * (ends[:-1] + ends[1:])  # (intervals,)
    held, held_whatever = (
        np.searchsorted(np.sort(low[frames]), middle, "right")
        - np.searchsorted(np.sort(high[frames]), middle, "left")
        for frames in (passing, slice(None))
    )
    nearest = np.clip(0.0, ends[:-1], ends[1:])
    best = np.lexsort((np.abs(nearest), -held_whatever, -held))[0]
    return centre + float(nearest[best])


@dataclass(frozen=True)
class ElementFit:
    """Energies per element, and the rank of the data that determined them.

    `values (elements,)` in eV; `rank` of the counts matrix: below the number of elements some
    combinations of the values are not determined by the data, and the smallest values (minimum
    norm) were taken.
    """

    values: np.ndarray
    rank: int


def least_squares(residuals: np.ndarray, counts: np.ndarray) -> ElementFit:
    """argmin_b Σ (r − counts·b)² of minimum norm; residuals `(m,)` eV, counts `(m, elements)`."""
    residuals, counts = checked(residuals), np.asarray(counts, float)
    # frames share few compositions: solve on their means, weighted
    unique, inverse, repeats = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    means = np.bincount(inverse.ravel(), weights=residuals) / repeats
    return least_squares_of_means(means, unique, repeats)


def least_squares_of_means(means: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> ElementFit:
    """argmin_b Σ w (mean − rows·b)² of minimum norm; means and weights `(k,)`, rows `(k, e)`."""
    root = np.sqrt(weights)
    values, _, rank, _ = np.linalg.lstsq(rows * root[:, None], means * root, rcond=None)
    return ElementFit(values, int(rank))


def huber(residuals: np.ndarray, rows: np.ndarray, row_of: np.ndarray) -> tuple[np.ndarray, float]:
    """Energies per element `(e,)` of Huber's loss, of minimum norm, and the scale of the residuals.

    argmin_b Σ ρ((r − n·b)/s), quadratic within 1.345 s and linear beyond (Huber 1964), with s from
    `robust_scale`, by iteratively weighted least squares. Frames `(m,)` have the compositions
    rows `(k, e)[row_of]`.
    """
    weights = np.ones(len(residuals))
    values, scale = np.zeros(rows.shape[1]), 0.0
    for _ in range(200):
        by_row = np.bincount(row_of, weights=weights)
        means = np.bincount(row_of, weights=weights * residuals) / by_row
        previous, values = values, least_squares_of_means(means, rows, by_row).values
        left = residuals - (rows @ values)[row_of]
        scale = robust_scale(left)
        change = np.abs(rows @ (values - previous)).max()
        if scale == 0 or change < 1e-9 * scale:
            break
        weights = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(left), 1e-300))
    return values, scale


def huber_influence(
    left: np.ndarray, scale: float, row_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals `(m,)` that weighted least squares would need for the errors of Huber's fit.

    ψ/p with the share p of frames within 1.345 s, by row and drawn toward that of all as if four
    more frames had shown it; and the weights of rows, p times their frames `(k,)`.
    """
    reach = HUBER * scale
    inside, frames = np.abs(left) <= reach, np.bincount(row_of)
    share = (np.bincount(row_of, weights=inside) + 4 * inside.mean()) / (frames + 4)
    share = np.maximum(share, 1 / len(left))
    return np.clip(left, -reach, reach) / share[row_of], share * frames


def robust_scale(left: np.ndarray) -> float:
    """Standard deviation of normal residuals, from the median of their sizes (MAD about zero)."""
    return float(1.4826 * np.median(np.abs(left)))


@dataclass(frozen=True)
class RidgeFit:
    """Energies per element `(e,)`, posterior covariance `(e, e)`, leverages, left-out errors."""

    values: np.ndarray
    covariance: np.ndarray
    leverage: np.ndarray  # (k,)
    left_out: np.ndarray  # (k,) eV, e/(1 − h): exact for a quadratic penalty


def ridge(
    means: np.ndarray,
    rows: np.ndarray,
    variances: np.ndarray,
    known: np.ndarray,
    energies: np.ndarray,
    deviations: np.ndarray,
) -> RidgeFit:
    """argmin_b Σ (mean − rows·b)²/variance + Σ (energy − known·b)²/deviation².

    The posterior mean and covariance of normal data and a normal prior (Hoerl and Kennard 1970;
    Lindley and Smith 1972). Means `(k,)`, rows `(k, e)`, variances `(k,)`; the prior's compositions
    `(a, e)`, energies and deviations `(a,)`.
    """
    axes = row_space(np.concatenate([rows, known]))
    x, p = rows @ axes.T, known @ axes.T
    precision = (x / variances[:, None]).T @ x + (p / deviations[:, None] ** 2).T @ p
    covariance = np.linalg.inv(precision)
    pull = x.T @ (means / variances) + p.T @ (energies / deviations**2)
    values = axes.T @ (covariance @ pull)
    leverage = np.einsum("kr,rs,ks->k", x, covariance, x) / variances
    left_out = (means - rows @ values) / np.maximum(1 - leverage, 1e-12)
    return RidgeFit(values, axes.T @ covariance @ axes, leverage, left_out)


def solved(known: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies per element `(e,)` of least norm with known·b = energies, and the open directions.

    These are orthonormal columns `(e, free)`. Raises `ValueError` if no energies per element hold
    all the known ones `(a,)`.
    """
    if not len(known):
        return np.zeros(known.shape[1]), np.eye(known.shape[1])
    values = np.linalg.lstsq(known, energies, rcond=None)[0]
    if np.abs(known @ values - energies).max() > 1e-6 * max(1.0, np.abs(energies).max()):
        raise ValueError("the exact anchors contradict each other: no energies per element fit")
    return values, _axes(known)[len(row_space(known)) :].T


def least_absolute_deviation(residuals: np.ndarray, counts: np.ndarray) -> ElementFit:
    """argmin_b Σ |r − counts·b| by linear programming, its undetermined combinations zero.

    The unknowns are coordinates y in the row space of `counts (m, elements)`. HiGHS solves the
    dual, max_λ r·λ with countsᵀλ = 0 and |λ| ≤ 1, whose multipliers are y.
    """
    from scipy.optimize import linprog

    residuals, counts = checked(residuals), np.asarray(counts, float)
    start = least_squares(residuals, counts)
    basis = _axes(counts)[: start.rank]  # (rank, elements), orthonormal
    # r' = r − start is small, whatever the size of the energies: HiGHS works to 1e-7
    remainder = residuals - counts @ start.values
    solution = linprog(
        -remainder, A_eq=basis @ counts.T, b_eq=np.zeros(start.rank), bounds=(-1, 1), method="highs"
    )
    if not solution.success:
        raise RuntimeError(f"the least-absolute-deviation fit failed: {solution.message}")
    return ElementFit(start.values - solution.eqlin.marginals @ basis, start.rank)


def anchored(
    values: np.ndarray,
    axes: np.ndarray,
    energies: np.ndarray,
    known: np.ndarray,
    deviations: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies per element that anchors fix as far as the fit leaves them open.

    With N the directions orthogonal to `axes (rank, e)` of what is fitted, these are values + N·y,
    and y minimises Σ (energy − known·values)²/deviation² over the anchors `(a, e)`. What the fit
    gives to its own compositions stays. Returned with the derivatives by the values `(e, e)` and
    by the energies `(e, a)`.
    """
    open_axes = np.linalg.svd(axes, full_matrices=True)[2][len(axes) :]
    weighted = (known @ open_axes.T) / deviations[:, None]
    gain = open_axes.T @ (np.linalg.pinv(weighted) / deviations)  # (e, a)
    return values + gain @ (energies - known @ values), np.eye(len(values)) - gain @ known, gain


def spanned(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compositions `(b, elements)` that are linear combinations of rows `(k, elements)`, bool."""
    wanted = counts.astype(float)
    if not len(rows):
        return np.asarray(~wanted.any(axis=1))
    used = np.flatnonzero(rows.any(axis=0))
    axes = row_space(rows[:, used])
    outside = wanted.copy()
    outside[:, used] -= wanted[:, used] @ axes.T @ axes
    size = np.maximum(1.0, np.abs(wanted).max(axis=1))
    return np.asarray(np.abs(outside).max(axis=1) <= 1e-8 * size)


def row_space(counts: np.ndarray) -> np.ndarray:
    """Orthonormal axes of the row space of `counts (m, elements)`, `(rank, elements)`."""
    unique = np.unique(counts, axis=0).astype(float)
    return _axes(unique)[: np.linalg.matrix_rank(unique)] if len(unique) else unique


def checked(residuals: np.ndarray) -> np.ndarray:
    """Residuals as float64 `(m,)`.

    Raises `ValueError` if there are none, or one is not finite.
    """
    residuals = np.asarray(residuals, np.float64).ravel()
    if len(residuals) == 0:
        raise ValueError("no energy residuals to fit the bias to: the data has no energies")
    if not np.isfinite(residuals).all():
        frame = int(np.argmin(np.isfinite(residuals)))
        raise ValueError(f"the energy residual of frame {frame} is {residuals[frame]}")
    return residuals


def _axes(counts: np.ndarray) -> np.ndarray:
    """Orthonormal axes `(elements, elements)`: the row space of `counts` first, then the rest."""
    unique = np.unique(counts, axis=0)
    return np.linalg.svd(np.linalg.qr(unique, mode="r"), full_matrices=True)[2]
