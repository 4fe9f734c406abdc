"""Features of structures, and choices of structures that differ from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ase_biasgrad.neighbours import pairs_within

if TYPE_CHECKING:
    from ase import Atoms

CUTOFF, SPACING, WIDTH = 5.0, 0.1, 0.1  # Å


def structure_features(structures: Sequence[Atoms]) -> np.ndarray:
    """Distances of pairs of elements, smeared, `(m, features)`: alike structures are close.

    g_ab(r) = Σ_pairs exp(−(d − r)² / 2w²) f(d) / √n on a grid of r, with a smooth end f at 5 Å.
    They do not depend on the order of atoms or on rotations.
    """
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
    kinds = {
        pair: k
        for k, pair in enumerate((a, b) for a in elements for b in elements if a <= b)
    }  # fmt: skip
    grid = np.arange(SPACING, CUTOFF, SPACING)
    features = np.zeros((len(structures), len(kinds), len(grid)))
    for k, atoms in enumerate(structures):
        if not len(atoms):
            continue
        edges = pairs_within(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
        d = np.linalg.norm(edges.vectors(atoms.positions, atoms.cell.array), axis=1)
        ends = 0.5 * (1 + np.cos(np.pi * d / CUTOFF))
        smeared = ends[:, None] * np.exp(-((d[:, None] - grid) ** 2) / (2 * WIDTH**2))
        low = np.minimum(atoms.numbers[edges.centre], atoms.numbers[edges.neighbour])
        high = np.maximum(atoms.numbers[edges.centre], atoms.numbers[edges.neighbour])
        which = np.array([kinds[a, b] for a, b in zip(low.tolist(), high.tolist(), strict=True)])
        np.add.at(features[k], which.astype(np.int64), smeared)
        features[k] /= np.sqrt(len(atoms))
    return features.reshape(len(structures), -1)


def farthest_points(candidates: np.ndarray, known: np.ndarray, count: int) -> list[int]:
    """Places of `count` candidates, each the farthest from what is known and chosen before it.

    candidates `(m, f)`, known `(k, f)`. What lies on something chosen is left out. T. F. Gonzalez,
    Theor. Comput. Sci. 38, 293 (1985).
    """
    nearest = np.full(len(candidates), np.inf)
    chosen: list[int] = []
    for row in known:
        nearest = np.minimum(nearest, np.linalg.norm(candidates - row, axis=1))
    if not len(known) and len(candidates):
        nearest = np.linalg.norm(candidates - candidates.mean(axis=0), axis=1) + 1e-9
    while len(chosen) < min(count, len(candidates)):
        k = int(np.argmax(nearest))
        if not nearest[k] > 0:
            break
        distances = np.linalg.norm(candidates - candidates[k], axis=1)
        first = not chosen and not len(known)  # which lies furthest from the mean
        nearest = distances if first else np.minimum(nearest, distances)
        chosen.append(k)
    return chosen
