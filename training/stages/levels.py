"""Frames of mixed levels of theory: a bias for each, and how the levels differ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from ase.data import chemical_symbols

from ase_biasgrad.bias import BiasMethod
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.levels_of_theory import LevelComparison, compare_levels
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.evaluation.predict import batches_of_atoms, predict
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.bias import isolated_atoms, present_bias


def fit_bias_by_level(
    potential: Potential,
    frames: Mapping[str, DeviceFrames],
    method: BiasMethod = "least-squares",
) -> LevelComparison:
    """Fit a bias to the frames of each level of theory, by name, and test how the levels differ.

    The potential keeps its own bias; those of the levels are in what is returned. The geometry is
    described by the potential's energy and, for each pair of elements, by Σ exp(−d/1 Å) over the
    pairs of the graph.

    Raises
    ------
    ValueError
        If a level has no energies, or there are not two levels.
    """
    freeze_energy_shifts(potential)
    elements = torch.unique(torch.cat([torch.unique(f.numbers) for f in frames.values()]))
    columns: dict[str, list[np.ndarray]] = {key: [] for key in ("r", "x", "g", "isolated", "level")}
    for level, some in frames.items():
        energies = np.array([]) if some.energy is None else some.energy.cpu().numpy()
        labelled = np.isfinite(energies)
        if not labelled.any():
            raise ValueError(f"level {level}: no frame has an energy")
        own = predict(potential, some).energy - present_bias(potential, some)
        columns["r"].append((energies - own)[labelled])
        columns["x"].append(some.compositions()[labelled])
        columns["g"].append(np.column_stack([own, pair_sums(some, elements)])[labelled])
        columns["isolated"].append(isolated_atoms(some)[labelled])
        columns["level"].append(np.full(int(labelled.sum()), level))
    r, x, g, isolated, levels = (np.concatenate(parts) for parts in columns.values())
    used = np.flatnonzero(g.any(axis=0))
    names = ["energy of the model", *pair_names(elements)]
    return compare_levels(r, x, levels, g[:, used], [names[k] for k in used], method, isolated)


def pair_sums(frames: DeviceFrames, elements: torch.Tensor) -> np.ndarray:
    """Σ exp(−d/1 Å) over the pairs of each two elements `(e,)`, `(m, e²)` as in `pair_names`."""
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
    return table


def pair_names(elements: torch.Tensor) -> list[str]:
    """Names of pairs of elements `(e,)`, row by row, such as C–H distances."""
    symbols = [chemical_symbols[int(z)] for z in elements]
    return [f"{one}–{other} distances" for one in symbols for other in symbols]


def frames_by_label(dataset: Dataset, label: str) -> dict[str, np.ndarray]:
    """Indices of the frames of each value of a label, by `label` and value, such as source1.

    Raises
    ------
    DataError
        If a frame lacks the label, or it is not one number by frame.
    """
    values = np.full(len(dataset), np.nan)
    for group in dataset.groups():
        found = group.read(label)
        if found is None or found.ndim != 1 or found.dtype.kind not in "biuf":
            raise DataError(
                f"{dataset.path}: {label} of {group.name}: missing or not one number by frame; "
                f"its labels are {', '.join(group.other_labels()) or 'none'}"
            )
        values[group.index] = found
    return {f"{label}{value:g}": np.flatnonzero(values == value) for value in np.unique(values)}
