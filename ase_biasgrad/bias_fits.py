"""Closed forms that fit the bias b to energy residuals r = E_ref − E_model, in float64.

One number for all frames of a composition (`mean`, `median`, `efwt_window`, `gradient_descent`),
or one number per element (`least_squares`, `least_absolute_deviation`), which also says what the
data leaves undetermined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ENERGY_WITHIN = 0.02  # eV, energy half of EFwT (Open Catalyst Project, Chanussot et al. 2021)
FORCE_WITHIN = 0.03  # eV/Å, force half of EFwT


def mean(residuals: np.ndarray) -> float:
    """argmin_b Σ (r − b)², for residuals `(m,)` in eV."""
    return float(np.mean(_checked(residuals)))


def median(residuals: np.ndarray) -> float:
    """argmin_b Σ abs(r − b), for residuals `(m,)` in eV."""
    return float(np.median(_checked(residuals)))


def efwt_window(residuals: np.ndarray, forces_within: np.ndarray | None = None) -> float:
    """argmax_b of the frames with abs(r − b) < 0.02 eV whose forces are within 0.03 eV/Å.

    A count is constant over whole intervals of b. Of all b that hold equally many such frames,
    those are taken that hold the most frames whatever their forces (the energy half of EFwT), and
    of these the one nearest to the median. So b is the EFwT optimum where it is well determined,
    and all frames decide where few or none pass the force half.

    Parameters
    ----------
    residuals
        `(m,)` in eV.
    forces_within
        `(m,)` bool, whether every force component of a frame is within 0.03 eV/Å; without it
        every frame counts.
    """
    residuals = _checked(residuals)
    centre = float(np.median(residuals))
    offsets = residuals - centre
    passing = np.sort(offsets if forces_within is None else offsets[np.asarray(forces_within)])
    offsets = np.sort(offsets)
    # strict inequality: the window is open, and rounding must not close it
    reach = ENERGY_WITHIN - 1e-11 - 4 * np.spacing(np.abs(residuals).max())
    ends = np.unique(np.concatenate([offsets - reach, offsets + reach]))
    middle = 0.5 * (ends[:-1] + ends[1:])  # (intervals,)
    held, held_whatever = (
        np.searchsorted(frames, middle + reach, "right")
        - np.searchsorted(frames, middle - reach, "left")
        for frames in (passing, offsets)
    )
    nearest = np.clip(0.0, ends[:-1], ends[1:])
    best = np.lexsort((np.abs(nearest), -held_whatever, -held))[0]
    return centre + float(nearest[best])


def gradient_descent(
    residuals: np.ndarray, start: float = 0.0, steps: int = 20_000, learning_rate: float = 1e-3
) -> float:
    """Minimise Σ abs(r − b) by Adam from `start`, as the original work trained its bias.

    Kept to be compared with: `median` is the exact minimum. With a bias that starts far from
    the residuals it moves by about `learning_rate` eV per step and stops on the way.
    """
    residuals = _checked(residuals)
    b, first, second = float(start), 0.0, 0.0
    for step in range(1, steps + 1):
        gradient = float(np.mean(np.sign(b - residuals)))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        b -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-12)
    return b


@dataclass(frozen=True)
class ElementFit:
    """Per-element biases and what determined them.

    `values (elements,)` in eV; `rank` of the counts matrix: below the number of elements some
    combinations of the values are not determined by the data, and the smallest values (minimum
    norm) were taken.
    """

    values: np.ndarray
    rank: int

    @property
    def is_determined(self) -> bool:
        return self.rank == len(self.values)


def least_squares(residuals: np.ndarray, counts: np.ndarray) -> ElementFit:
    """argmin_b Σ (r − counts·b)² of minimum norm; residuals `(m,)` eV, counts `(m, elements)`."""
    residuals, counts = _checked(residuals), np.asarray(counts, float)
    # frames share few compositions: solve on their means, weighted
    unique, inverse, repeats = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    means = np.bincount(inverse.ravel(), weights=residuals) / repeats
    weight = np.sqrt(repeats)
    values, _, rank, _ = np.linalg.lstsq(unique * weight[:, None], means * weight, rcond=None)
    return ElementFit(values, int(rank))


def least_absolute_deviation(residuals: np.ndarray, counts: np.ndarray) -> ElementFit:
    """argmin_b Σ abs(r − counts·b), by linear programming (HiGHS), free of undetermined parts.

    The unknowns are coordinates in the row space of `counts (m, elements)`, so that combinations
    of elements that no frame determines stay zero, as in `least_squares`.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix, hstack, identity

    residuals, counts = _checked(residuals), np.asarray(counts, float)
    start = least_squares(residuals, counts)
    _, _, rows = np.linalg.svd(np.unique(counts, axis=0), full_matrices=False)
    basis = rows[: start.rank]  # (rank, elements), orthonormal
    # r' = r − start is small, whatever the size of the energies: HiGHS works to 1e-7
    remainder = residuals - counts @ start.values
    m, design = len(residuals), counts @ basis.T  # (m, rank)
    # minimise Σ (p + q) subject to design·y + p − q = r', p, q ≥ 0
    solution = linprog(
        np.concatenate([np.zeros(start.rank), np.ones(2 * m)]),
        A_eq=hstack([csr_matrix(design), identity(m), -identity(m)], format="csr"),
        b_eq=remainder,
        bounds=[(None, None)] * start.rank + [(0, None)] * (2 * m),
        method="highs",
    )
    if not solution.success:
        raise RuntimeError(f"the least-absolute-deviation fit failed: {solution.message}")
    return ElementFit(start.values + solution.x[: start.rank] @ basis, start.rank)


def _checked(residuals: np.ndarray) -> np.ndarray:
    residuals = np.asarray(residuals, np.float64).ravel()
    if len(residuals) == 0:
        raise ValueError("no energy residuals to fit the bias to: the data has no energies")
    if not np.isfinite(residuals).all():
        frame = int(np.argmin(np.isfinite(residuals)))
        raise ValueError(f"the energy residual of frame {frame} is {residuals[frame]}")
    return residuals
