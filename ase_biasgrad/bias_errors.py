"""Standard errors of a bias: what the fit leaves, split between compositions and within them.

The model (random effects of compositions; Searle, Casella and McCulloch, Variance Components, 1992)
for frame i of composition c with counts n_c is

    r_i = n_c·β + u_c + ε_i,    Var(u_c) = misfit²,    Var(ε_i) = noise_c².

`noise` is the spread of frames around the mean of their composition, `misfit` the spread of these
means around every sum of energies per element. Frames and compositions count as independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ase_biasgrad import bias_fits

PRIOR_FRAMES = 4  # weight of the pooled noise beside a composition's own k − 1 degrees of freedom
CALIBRATED_FROM = 60  # compositions; of fewer, a quantile of 95 % is one of the last or none
OUTLIER = 5.0  # robust scales from which on a residual of a robust fit counts as wrong
UNDETERMINED = 1e-6  # 1 − leverage of a composition that alone determines a direction


@dataclass(frozen=True)
class RowMeans:
    """Residuals by composition."""

    frames: np.ndarray  # `(k,)`, frames of each composition
    means: np.ndarray  # `(k,)` eV
    # `(k,)` eV², of one frame of the composition around the mean of all: its own variance, drawn
    # toward the pooled one as if `PRIOR_FRAMES` more degrees of freedom had shown that. NaN where
    # no composition repeats
    variances: np.ndarray

    @property
    def of_means(self) -> np.ndarray:
        """Variances of the means `(k,)` eV²."""
        return self.variances / self.frames

    @property
    def noise(self) -> float:
        """Pooled standard deviation of frames around the mean of their composition, eV."""
        return float(np.sqrt(np.average(self.variances, weights=self.frames)))


@dataclass(frozen=True)
class FitErrors:
    """Errors of energies per element that are linear in the means of the residuals."""

    # `(elements, elements)` eV² of the energies per element, zero outside the row space. NaN where
    # the data shows no spread: no composition to spare and none that repeats
    covariance: np.ndarray
    # Pooled standard deviation of frames around the mean of their composition, eV; NaN where none
    # repeats
    noise: float
    # Standard deviation of the misfit u of a composition, eV. NaN without compositions to spare
    misfit: float
    spare: int  # compositions less the rank: degrees of freedom of the misfit
    own: np.ndarray  # `(k,)` eV, standard error of b of each composition of the fit
    # `(k,)` eV, mean residual of each composition in the fit to all others; NaN where these do not
    # determine it
    left_out: np.ndarray


def row_means(residuals: np.ndarray, row_of: np.ndarray) -> RowMeans:
    """Means and variances of residuals `(m,)` by row `(m,)`, each row with a frame or more."""
    frames = np.bincount(row_of)
    means = np.bincount(row_of, weights=residuals) / frames
    squares = np.bincount(row_of, weights=(residuals - means[row_of]) ** 2)
    spare = frames - 1
    if not spare.any():
        return RowMeans(frames, means, np.full(len(frames), np.nan))
    pooled = squares.sum() / spare.sum()
    return RowMeans(
        frames, means, (PRIOR_FRAMES * pooled + squares) / (PRIOR_FRAMES + np.maximum(spare, 0))
    )


def element_errors(
    counts: np.ndarray,  # compositions `(k, elements)`, each once
    rows: RowMeans,  # residuals by composition
    values: np.ndarray,  # the energies per element `(elements,)`
    axes: np.ndarray,  # orthonormal axes of the row space of `counts`, `(rank, elements)`
    # for other losses, what stands for the residuals in V of the covariance: their influence by
    # composition
    effective: RowMeans | None = None,
    weights: np.ndarray | None = None,  # of compositions in W, `(k,)`; their frames by default
) -> FitErrors:
    """Errors of energies per element, fitted by least squares over frames.

    With X the counts in coordinates of the row space, W the frames by composition,
    G = (XᵀWX)⁻¹XᵀW and leverages h = diag(XG), the covariance is G V Gᵀ with
    V = misfit² + noise²/frames. A composition that is left out of the fit is e/(1 − h) off it.
    misfit² is the mean over compositions (each counts once, those of h = 1 not at all) of
    e²/(1 − h) − noise²/frames, zero if negative, and then as in `calibrated_misfit2`. Composition k
    of the fit has the variance (G V Gᵀ)_kk + (1 − 2h) misfit², as the fit has seen its misfit.
    """
    x = counts @ axes.T
    weights = rows.frames if weights is None else weights
    gain = np.linalg.solve(x.T @ (x * weights[:, None]), (x * weights[:, None]).T)
    leverage = np.clip(np.einsum("kr,rk->k", x, gain), 0.0, 1.0)
    judged = 1 - leverage > UNDETERMINED  # the others determine it
    misfit2 = moment_misfit2(rows, rows.means - counts @ values, leverage, judged)
    spread2 = (
        misfit2
        if effective is None
        else moment_misfit2(effective, effective.means, leverage, judged)
    )
    noise2 = rows.of_means if effective is None else effective.of_means
    variances = np.nan_to_num(noise2) + np.nan_to_num(spread2)
    inner = (gain * variances) @ gain.T
    carried = np.einsum("kr,rs,ks->k", x, inner, x)
    left_out = np.full(len(counts), np.nan)
    left_out[judged] = (rows.means - counts @ values)[judged] / (1 - leverage[judged])
    misfit2 = calibrated_misfit2(misfit2, left_out, carried + np.nan_to_num(rows.of_means))
    if np.isfinite(rows.noise):
        own2 = np.maximum(carried + np.nan_to_num(misfit2) * (1 - 2 * leverage), 0.0)
    else:  # frames and compositions cannot be told apart: as if the fit had not seen them
        own2 = carried + misfit2
        inner = inner if np.isfinite(misfit2) else np.full_like(inner, np.nan)
    return FitErrors(
        axes.T @ inner @ axes,
        rows.noise,
        float(np.sqrt(misfit2)),
        len(counts) - len(axes),
        np.sqrt(own2),
        left_out,
    )


def moment_misfit2(
    rows: RowMeans, left: np.ndarray, leverage: np.ndarray, judged: np.ndarray
) -> float:
    """Variance of the misfit by the method of moments, NaN without compositions to spare."""
    if not judged.any():
        return float("nan")
    parts = left**2 / np.where(judged, 1 - leverage, 1.0) - np.nan_to_num(rows.of_means)
    return max(0.0, float(np.average(parts[judged], weights=1 - leverage[judged])))


def calibrated_misfit2(misfit2: float, left_out: np.ndarray, others2: np.ndarray) -> float:
    """Variance of the misfit, made larger where its intervals miss too many left-out compositions.

    With `CALIBRATED_FROM` compositions or more that the others determine, 95 % of them must lie
    within 1.96 √(misfit² + others²) of the fit without them (split conformal quantile, Vovk et al.
    2005), whatever the tails of their distribution. `others2 (k,)` is the rest of the variance.
    """
    judged = np.isfinite(left_out)
    k = int(judged.sum())
    if k < CALIBRATED_FROM:
        return misfit2
    needed = np.sort((left_out[judged] / 1.96) ** 2 - others2[judged])
    return max(misfit2, float(needed[min(k, math.ceil(0.95 * (k + 1))) - 1]))


def composition_errors(
    counts: np.ndarray, rows: RowMeans, axes: np.ndarray, own2: np.ndarray
) -> FitErrors:
    """Errors of a number for each composition, of variances `(k,)` eV²; arguments as above.

    The covariance is that of the least-squares energies per element of these numbers. No other
    composition tells of the misfit of one.
    """
    x = counts @ axes.T
    gain = np.linalg.solve(x.T @ (x * rows.frames[:, None]), (x * rows.frames[:, None]).T)
    unknown = np.full(len(counts), np.nan)
    covariance = axes.T @ ((gain * own2) @ gain.T) @ axes
    return FitErrors(covariance, rows.noise, np.nan, 0, np.sqrt(own2), unknown)


def median_influence(left: np.ndarray) -> np.ndarray:
    """Residuals `(m,)` that least squares would need for the error of least absolute deviations.

    sign(e)/(2 f(0)): to first order the fit is the mean of these (Koenker and Bassett 1978), with
    the density f at zero from frames within Silverman's width.
    """
    low, high = np.percentile(left, [25, 75])
    width = 1.06 * min(left.std(), (high - low) / 1.349) * len(left) ** -0.2
    if width == 0:
        return np.zeros(len(left))
    density = max(1, np.count_nonzero(np.abs(left) <= width)) / (2 * width * len(left))
    return np.sign(left) / (2 * density)


def without_outliers(left: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    """Residuals `(m,)` with wrong frames and wrong compositions brought nearer.

    Frames within `OUTLIER` robust scales of the median of their row, and then means of rows
    within as many of zero. Scales are those of rows of three frames or more, and of all rows.
    """
    order = np.lexsort((left, row_of))
    frames = np.bincount(row_of)
    first = np.cumsum(frames) - frames
    pair = left[order][first + (frames - 1) // 2], left[order][first + frames // 2]
    centre = (0.5 * (pair[0] + pair[1]))[row_of]
    inner = (left - centre)[frames[row_of] >= 3]
    reach = OUTLIER * bias_fits.robust_scale(inner) if len(inner) else np.inf
    near = centre + np.clip(left - centre, -reach, reach)
    means = np.bincount(row_of, weights=near) / frames
    reach = OUTLIER * bias_fits.robust_scale(means) or np.inf
    return near + (np.clip(means, -reach, reach) - means)[row_of]


def unit_energy(
    method: str,
    residuals: np.ndarray,
    multiples: np.ndarray,
    within: np.ndarray | None,
    variances: np.ndarray,
    resamples: int,
) -> tuple[float, float]:
    """Energy of a formula unit by `mean`, `median` or `efwt`, and its variance, eV and eV².

    The variance of a mean follows from that of its frames `(m,)`; those of the others are found by
    drawing sets of frames anew (bootstrap), where there are two frames or more.
    """
    m = multiples.astype(float)
    if method == "mean":
        gain = m / (m @ m)
        return bias_fits.mean(residuals, m), float(gain**2 @ variances)

    def fitted(frames: np.ndarray) -> float:
        if method == "median":
            return bias_fits.median(residuals[frames], m[frames])
        passing = None if within is None else within[frames]
        return bias_fits.efwt_window(residuals[frames], m[frames], passing)

    k = len(residuals)
    if k == 1:
        return fitted(np.arange(1)), float(variances[0] / m[0] ** 2)
    random = np.random.default_rng(0)
    drawn = [fitted(random.integers(0, k, k)) for _ in range(resamples)]
    return fitted(np.arange(k)), float(np.var(drawn, ddof=1))
