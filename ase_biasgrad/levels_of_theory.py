"""Sets of mixed levels of theory: do two differ by composition alone?

The residuals r = E_ref − E_model of one model to two levels differ by E_ref,1 − E_ref,2, and the
model's own error is in both. Where levels differ by composition alone, what is left after a bias
for each depends on the geometry in the same way; so frames of both may train one potential.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ase_biasgrad.bias import Bias, BiasMethod
from ase_biasgrad.composition_fit import members

SIGNIFICANT = 0.01  # probability below which two levels are said to differ
MATTERS = 1e-3  # eV per atom; a dependence on the geometry below this is none in practice
PRIOR_FRAMES = 2  # by which the spread of a composition leans on that of all
PERMUTATIONS = (199, 999)  # fewest and most
PRODUCTS = 5 * 10**8  # of features in all permutations, unless those are the fewest
LABEL = 50  # products that cost as much as drawing a label
BLOCK = 10**7  # numbers held at once


@dataclass(frozen=True)
class FTest:
    """F-test of more parameters against fewer: F, its degrees of freedom and probability.

    NaN where the data leaves no degrees of freedom; the probability also where it is that of
    permutations, and they are too few.
    """

    f: float
    degrees: tuple[int, int]
    probability: float


@dataclass(frozen=True)
class LevelComparison:
    """Two or more levels of theory seen through one model."""

    biases: dict[str, Bias]  # by level, fitted to its own frames
    shared: Bias  # one bias for all
    # Test of energies per element for each level against shared ones, on the means of compositions,
    # each counted once
    elements: FTest
    # Test of a dependence on the geometry that is not the same for all levels, on frames around the
    # mean of their composition, by permutation of the levels within compositions
    geometry: FTest
    # How far such a dependence moves energies, root mean square in eV per atom, less what noise
    # alone would explain
    geometry_rms: float
    dependence: dict[str, float]  # the same by feature, each taken alone

    def summary(self) -> dict[str, Any]:
        """The tests as JSON values; NaN is None."""

        def known(value: float) -> float | None:
            return None if np.isnan(value) else value

        tests = {
            name: {"F": known(test.f), "degrees": list(test.degrees), "p": known(test.probability)}
            for name, test in (("elements", self.elements), ("geometry", self.geometry))
        }
        return {
            "names": list(self.biases),
            "by_composition_alone": self.by_composition_alone,
            **tests,
            "geometry_rms": known(self.geometry_rms),
            "dependence": {name: known(size) for name, size in self.dependence.items()},
        }

    @property
    def by_composition_alone(self) -> bool | None:
        """True where levels do not differ in their dependence on the geometry; None if unknown."""
        if np.isnan(self.geometry.probability):
            return None
        return bool(self.geometry.probability > SIGNIFICANT or self.geometry_rms < MATTERS)


def compare_levels(
    residuals: np.ndarray,  # (m,) eV, E_ref − E_model of frames
    counts: np.ndarray,  # (m, N_ELEMENTS)
    levels: np.ndarray,  # (m,), the name of each frame's level
    features: np.ndarray,  # (m, f), descriptors of the geometry such as sums over pairs
    names: list[str],  # of the features
    method: BiasMethod = "least-squares",  # of the biases
    # (m,) bool, as in `Bias.fit`; isolated atoms take no part in the tests
    isolated: np.ndarray | None = None,
) -> LevelComparison:
    """Fit a bias for each level and one for all, and test how they differ.

    Raises `ValueError` if there are not two levels.
    """
    if len(kinds := np.unique(levels)) < 2:
        raise ValueError(f"levels of theory: need two to compare, and all frames are '{kinds[0]}'")
    isolated = np.zeros(len(residuals), bool) if isolated is None else isolated
    biases, shared = {}, Bias()
    for level in kinds:
        mine = levels == level
        biases[str(level)] = Bias()
        biases[str(level)].fit(residuals[mine], counts[mine], method, isolated=isolated[mine])
    shared.fit(residuals, counts, method, isolated=isolated)
    tested = ~isolated
    r, x, which = residuals[tested], counts[tested], np.searchsorted(kinds, levels[tested])
    elements = _element_test(r, x[:, x.any(axis=0)], which)
    geometry, rms, each = _geometry_test(r, x, which, features[tested])
    return LevelComparison(
        biases, shared, elements, geometry, rms, dict(zip(names, each, strict=True))
    )


def _element_test(residuals: np.ndarray, counts: np.ndarray, which: np.ndarray) -> FTest:
    cells, cell_of = np.unique(np.column_stack([counts, which]), axis=0, return_inverse=True)
    means = np.bincount(cell_of.ravel(), residuals) / np.bincount(cell_of.ravel())
    x, level = cells[:, :-1].astype(float), cells[:, -1]
    return _f_test(means, x, _by_level(x, level), spent=0)


def _geometry_test(
    residuals: np.ndarray, counts: np.ndarray, which: np.ndarray, features: np.ndarray
) -> tuple[FTest, float, list[float]]:
    """Test within cells (compositions of a level), its size by atom, and that of each feature."""
    cells, cell_of = np.unique(np.column_stack([counts, which]), axis=0, return_inverse=True)
    cell_of = cell_of.ravel()
    frames = np.bincount(cell_of)
    r = residuals - (np.bincount(cell_of, residuals) / frames)[cell_of]
    means = np.stack([np.bincount(cell_of, f) / frames for f in features.T], axis=1)
    g = features - means[cell_of]
    scale = g.std(axis=0)
    g = g / np.where(scale > 0, scale, 1.0)
    sizes = counts.sum(axis=1)
    spread = _spread(r - g @ _weights(g, r), counts)[:, None]

    def tested(x: np.ndarray) -> tuple[FTest, float]:
        own = _by_level(x, which)
        test = _f_test(r / spread[:, 0], x / spread, own / spread, spent=len(cells))
        common, each = (z @ _weights(z / spread, r / spread[:, 0]) for z in (x, own))
        explained = np.mean(((each - common) / sizes) ** 2)  # F is 1 where noise alone explains
        beyond = max(0.0, 1 - 1 / test.f) if test.f > 0 else 0.0
        return test, float(np.sqrt(explained * beyond))

    test, rms = tested(g)
    if np.isfinite(test.f):
        z = np.column_stack([g, r]) / spread
        test = replace(test, probability=_permuted(z, counts, which, cell_of))
    return test, rms, [tested(column[:, None])[1] for column in g.T]


def _permuted(z: np.ndarray, counts: np.ndarray, which: np.ndarray, cell_of: np.ndarray) -> float:
    """Probability of an F as large or larger, levels permuted within compositions.

    Frames of one composition are exchangeable under the null hypothesis, whatever its spread, but
    their deviations from the mean of n frames are not; n − 1 contrasts are, where deviations are
    normal (Huh and Jhun, Commun. Stat. Theory Methods 30, 2023 (2001)). Features and residual z
    `(m, f+1)` stay together, so the common slopes play no part. NaN where there are too few
    orders for one to be significant.
    """
    cells = [frames for frames in members(cell_of) if len(frames) > 1]
    z = np.concatenate([_contrasts(z[frames]) for frames in cells])
    which, counts = (np.concatenate([v[f[1:]] for f in cells]) for v in (which, counts))
    groups = members(np.unique(counts, axis=0, return_inverse=True)[1].ravel())
    if sum(_log_orders(which[rows]) for rows in groups) < np.log(1 / SIGNIFICANT):
        return float("nan")
    u, size, _ = np.linalg.svd(z[:, :-1], full_matrices=False)
    z = np.column_stack([u[:, size > 1e-10 * size[0]], z[:, -1]])
    width = z.shape[1]
    draws = 1 + int(np.clip(PRODUCTS // (len(z) * (width**2 + LABEL)), *PERMUTATIONS))
    products = np.zeros((which.max() + 1, draws, width, width))
    random = np.random.default_rng(0)
    for rows in groups:
        random.shuffle(rows)
        for block in np.array_split(rows, 1 + len(rows) * max(width**2, draws) // BLOCK):
            drawn = np.tile(which[block], (draws, 1))  # the first is the order given
            random.permuted(drawn[1:], axis=1, out=drawn[1:])
            squares = (z[block, :, None] * z[block, None, :]).reshape(len(block), -1)
            for k in np.unique(which[block]):
                products[k] += ((drawn == k) @ squares).reshape(products.shape[1:])
    left = _unexplained(products).sum(axis=0)  # F grows as it falls: the fit to all is the same
    return float(np.mean(left <= left[0] * (1 + 1e-9)))


def _contrasts(z: np.ndarray) -> np.ndarray:
    """Helmert contrasts of rows, `(n − 1, …)`: each less the mean of those before, scaled to it."""
    before = np.arange(1, len(z))[:, None]
    return np.sqrt(before / (before + 1)) * (z[1:] - np.cumsum(z, axis=0)[:-1] / before)


def _log_orders(which: np.ndarray) -> float:
    """Logarithm of the number of different orders of levels."""
    from scipy.special import gammaln

    return float(gammaln(len(which) + 1) - gammaln(np.bincount(which) + 1).sum())


def _unexplained(products: np.ndarray) -> np.ndarray:
    """Sum of squares of the last variable that a fit to the others leaves, `(…, f+1, f+1)`."""
    along = products[..., :-1, -1]
    inverse = np.linalg.pinv(products[..., :-1, :-1], rcond=1e-10, hermitian=True)
    explained = np.einsum("...i,...ij,...j", along, inverse, along)
    return np.maximum(products[..., -1, -1] - explained, 1e-12 * products[..., -1, -1])


def _spread(left: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Standard deviation of the composition of each frame, `(m,)`, from what a fit has left.

    Compositions vary by different amounts; those of less spread tell more. Few frames say little
    of their own: all count as `PRIOR_FRAMES` in each.
    """
    kind = np.unique(counts, axis=0, return_inverse=True)[1].ravel()
    frames, common = np.bincount(kind), max(float(np.mean(left**2)), 1e-300)
    squares = np.bincount(kind, left**2) + PRIOR_FRAMES * common
    return np.sqrt(squares / (frames + PRIOR_FRAMES))[kind]


def _weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(x, y, rcond=None)[0]


def _by_level(x: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Columns `(m, f·levels)`: those of x `(m, f)` for each level, zero for the others."""
    return np.concatenate([x * (which == k)[:, None] for k in range(which.max() + 1)], axis=1)


def _f_test(y: np.ndarray, fewer: np.ndarray, more: np.ndarray, spent: int) -> FTest:
    """Test nested linear models of `y (m,)`; `spent` parameters are in both besides."""
    from scipy.stats import f as f_distribution

    squares, ranks = [], []
    for x in (fewer, more):
        values, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
        squares.append(float(np.sum((y - x @ values) ** 2)))
        ranks.append(int(rank))
    degrees = ranks[1] - ranks[0], len(y) - spent - ranks[1]
    if min(degrees) < 1:
        return FTest(float("nan"), degrees, float("nan"))
    f = (squares[0] - squares[1]) / degrees[0] / max(squares[1] / degrees[1], 1e-300)
    return FTest(f, degrees, float(f_distribution.sf(f, *degrees)))
