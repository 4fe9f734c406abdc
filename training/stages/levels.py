"""Frames of mixed levels of theory: a bias for each, and how the levels differ."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import chemical_symbols

from ase_biasgrad.bias import BiasMethod
from ase_biasgrad.levels_of_theory import LevelComparison, compare_levels
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.evaluation.predict import batches_of_atoms, predict
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.bias import isolated_atoms, present_bias


def fit_bias_by_level(
    potential: Potential,
    frames: DeviceFrames,
    levels: np.ndarray,
    method: BiasMethod = "least-squares",
) -> LevelComparison:
    """Fit a bias to each level of theory `(m,)` of the frames, and test how the levels differ.

    The potential keeps its own bias; those of the levels are in what is returned. The geometry is
    described by the potential's energy and, for each pair of elements, by Σ exp(−d/1 Å) over the
    pairs of the graph.

    Raises
    ------
    ValueError
        If no frame has an energy, or there are not two levels.
    """
    energies = np.array([]) if frames.energy is None else frames.energy.cpu().numpy()
    labelled = np.isfinite(energies)
    if not labelled.any():
        raise ValueError("levels of theory: need reference energies, and the data has none")
    freeze_energy_shifts(potential)
    own = predict(potential, frames).energy - present_bias(potential, frames)
    pairs, names = pair_features(frames)
    return compare_levels(
        (energies - own)[labelled],
        frames.compositions()[labelled],
        np.asarray(levels)[labelled],
        np.column_stack([own, pairs])[labelled],
        ["energy of the model", *names],
        method,
        isolated_atoms(frames)[labelled],
    )


def pair_features(frames: DeviceFrames) -> tuple[np.ndarray, list[str]]:
    """Σ exp(−d/1 Å) over the pairs of each two elements, `(m, pairs)`, and their names."""
    elements = torch.unique(frames.numbers)
    e = len(elements)
    table = np.zeros((len(frames), e * e))
    for places in batches_of_atoms(frames.atom_counts, 20_000):
        graph = frames.batch(places).graph
        kinds = torch.searchsorted(elements, graph.numbers)
        i, j = graph.edge_index
        low, high = torch.minimum(kinds[i], kinds[j]), torch.maximum(kinds[i], kinds[j])
        column = graph.batch[i] * e * e + low * e + high
        near = torch.exp(-torch.linalg.vector_norm(graph.edge_vectors(), dim=1).double())
        sums = torch.zeros(len(places) * e * e, dtype=torch.float64, device=frames.device)
        table[places] = sums.index_add_(0, column, near).reshape(len(places), -1).cpu().numpy()
    used = np.flatnonzero(table.any(axis=0))
    symbols = [chemical_symbols[int(z)] for z in elements]
    return table[:, used], [f"{symbols[k // e]}–{symbols[k % e]} distances" for k in used]
