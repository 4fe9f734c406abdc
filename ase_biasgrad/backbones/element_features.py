"""Features of the elements from the periodic table: one-hot, or binned and one-hot.

After the `ElementFeatureDescriptor` of ChemistryFeaturization.jl: categories get a column each,
continuous properties are put into bins between their least and largest value, logarithmic ones
where these differ by more than a factor of 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase.data import atomic_masses, covalent_radii
from ase.data import missing as NO_RADIUS

from ase_biasgrad.units import N_ELEMENTS

FEATURES = ("group", "row", "block", "mass", "radius", "electronegativity")
BLOCKS = ("s", "p", "d", "f")

# atomic numbers of the noble gases, which end the rows
_ROW_ENDS = np.array([0, 2, 10, 18, 36, 54, 86, 118])

# Pauling's scale (CRC Handbook of Chemistry and Physics), from hydrogen on; 0: no value
# fmt: off
_PAULING = (
    2.20, 0, 0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, 0, 0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16,
    0, 0.82, 1.00, 1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65, 1.81, 2.01, 2.18,
    2.55, 2.96, 3.00, 0.82, 0.95, 1.22, 1.33, 1.6, 2.16, 1.9, 2.2, 2.28, 2.20, 1.93, 1.69, 1.78,
    1.96, 2.05, 2.1, 2.66, 2.6, 0.79, 0.89, 1.10, 1.12, 1.13, 1.14, 1.13, 1.17, 1.2, 1.2, 1.2,
    1.22, 1.23, 1.24, 1.25, 1.1, 1.27, 1.3, 1.5, 2.36, 1.9, 2.2, 2.20, 2.28, 2.54, 2.00, 1.62,
    2.33, 2.02, 2.0, 2.2, 2.2, 0.7, 0.9, 1.1, 1.3, 1.5, 1.38, 1.36, 1.28, 1.3, 1.3, 1.3, 1.3, 1.3,
    1.3, 1.3, 1.3, 1.3,
)
# fmt: on


def row(numbers: np.ndarray) -> np.ndarray:
    """Row (period) 1 to 7 of atomic numbers `(n,)`."""
    return np.searchsorted(_ROW_ENDS, numbers)


def block(numbers: np.ndarray) -> np.ndarray:
    """Index into `BLOCKS` of atomic numbers `(n,)`; lutetium and lawrencium are of the d block."""
    numbers = np.asarray(numbers)
    in_row = numbers - _ROW_ENDS[row(numbers) - 1]
    to_end = _ROW_ENDS[row(numbers)] - numbers
    conditions = [(in_row <= 2) | (numbers == 2), to_end < 6, to_end < 16]
    return np.select(conditions, [0, 1, 2], 3)


def group(numbers: np.ndarray) -> np.ndarray:
    """Group 1 to 18 of atomic numbers `(n,)`; lanthanides and actinides count to group 3."""
    numbers = np.asarray(numbers)
    in_row = numbers - _ROW_ENDS[row(numbers) - 1]
    to_end = _ROW_ENDS[row(numbers)] - numbers
    in_s = (block(numbers) == 0) & (numbers != 2)
    return np.where(in_s, in_row, np.where(block(numbers) == 3, 3, 18 - to_end))


def electronegativity(numbers: np.ndarray) -> np.ndarray:
    """Pauling's electronegativity of atomic numbers `(n,)`, NaN where there is no value."""
    table = np.full(N_ELEMENTS, np.nan)
    table[1 : len(_PAULING) + 1] = _PAULING
    return np.where(table == 0, np.nan, table)[numbers]


def element_table(features: Sequence[str] = FEATURES, bins: int = 10) -> np.ndarray:
    """Features of every element, `(119, f)` float64; row z is that of atomic number z.

    Parameters
    ----------
    features
        Some of `FEATURES` and `element`: `group` (18 columns), `row` (7), `block` (4), `element`
        (118), and in `bins` columns each `mass` (logarithmic), covalent `radius` (ASE, Cordero et
        al. 2008) and `electronegativity` (Pauling). An element without a value, such as the
        electronegativity of helium, is in none of the bins: its columns of that feature are zero.
        `FEATURES` alone do not tell all lanthanides and actinides apart.
    bins
        Columns of each continuous feature.

    Raises
    ------
    ValueError
        If there is no such feature, none is asked for, or there are no bins.
    """
    if unknown := set(features) - {*FEATURES, "element"}:
        raise ValueError(
            f"there are no element features {sorted(unknown)}; choose from {(*FEATURES, 'element')}"
        )
    if not features or len(set(features)) < len(features) or not 1 <= bins <= 1000:
        raise ValueError(
            f"features={list(features)} with bins={bins} cannot tell atoms apart: name some "
            "features, each once, and 1 to 1000 bins"
        )
    numbers = np.arange(1, N_ELEMENTS)
    radii = np.full(N_ELEMENTS - 1, np.nan)
    radii[: len(covalent_radii) - 1] = covalent_radii[1:N_ELEMENTS]
    continuous = {
        "mass": atomic_masses[1:N_ELEMENTS],
        "radius": np.where(radii == NO_RADIUS, np.nan, radii),
        "electronegativity": electronegativity(numbers),
    }
    categories: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int, int]] = {
        "element": (np.asarray, N_ELEMENTS - 1, 1),
        "group": (group, 18, 1),
        "row": (row, 7, 1),
        "block": (block, len(BLOCKS), 0),
    }
    columns = []
    for name in features:
        if name in categories:
            of, size, first = categories[name]
            columns.append(np.eye(size)[of(numbers) - first])
        else:
            columns.append(_binned(continuous[name], bins))
    return np.vstack([np.zeros(sum(c.shape[1] for c in columns)), np.hstack(columns)])


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    """One-hot bins `(n, bins)` of values `(n,)`; NaN is in none."""
    low, high = np.nanmin(values), np.nanmax(values)
    spaced = np.geomspace if low > 0 and high / low > 100 else np.linspace
    edges = spaced(low, high, bins + 1)
    which = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    return np.eye(bins)[which] * np.isfinite(values)[:, None]
