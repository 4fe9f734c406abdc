"""Frames of mixed levels of theory: a bias for each, and how the levels differ."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ase.data import chemical_symbols

from ase_biasgrad.bias import Bias, BiasMethod
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.levels_of_theory import LevelComparison, compare_levels
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.evaluation.predict import batches_of_atoms, predict
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.bias import chosen_method, isolated_atoms, reference_levels


def fit_bias_by_level(
    potential: Potential, frames: Mapping[str, DeviceFrames], method: BiasMethod = "least-squares"
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
    levels = [np.full(len(some), name) for name, some in frames.items()]
    return _compared(potential, list(frames.values()), levels, method)


def fit_references(
    potential: Potential, frames: DeviceFrames, levels: np.ndarray, method: BiasMethod | str
) -> LevelComparison:
    """Fit a bias to each level of theory, a reference of `potential` of its name, in place.

    Each fit report has the tests if the levels differ by composition alone, as `levels`. One of the
    names `levels` `(m,)` is that of the potential's own bias. The method is as in `fit_bias`, but
    not `efwt`; errors are those of `fit_bias_by_level`.
    """
    found = _compared(potential, [frames], [levels], method)
    for name, bias in found.biases.items():
        bias.fit_report["levels"] = found.summary()
        bias = bias.to(frames.device)
        if name == potential.reference:
            potential.bias = bias
        else:
            potential.add_reference(name, bias)
    return found


def at_one_level(
    biases: Mapping[str, Bias], reference: str, frames: DeviceFrames, levels: np.ndarray
) -> DeviceFrames:
    """Frames whose energies are moved from their levels `(m,)` to that of `reference`.

    E + b_reference − b_level: what a potential with the bias of `reference` then leaves of each is
    what one with the bias of the frame's own level leaves.
    """
    if frames.energy is None:
        return frames
    counts = frames.compositions()
    shift = biases[reference].arrays()(counts)
    for name in np.unique(levels):
        shift[levels == name] -= biases[str(name)].arrays()(counts[levels == name])
    moved = copy.copy(frames)
    moved.energy = frames.energy + torch.from_numpy(shift).to(frames.device)
    return moved


def _compared(
    potential: Potential,
    frames: Sequence[DeviceFrames],
    levels: Sequence[np.ndarray],
    method: BiasMethod | str,
) -> LevelComparison:
    """Compare levels, named by frame; each bias knows its reference energies and its method."""
    freeze_energy_shifts(potential)
    elements = torch.unique(torch.cat([torch.unique(some.numbers) for some in frames]))
    rows = [_rows(potential, some, elements) for some in frames]
    e, own, x, g, isolated = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    level, labelled = np.concatenate(levels), np.isfinite(e)
    if missing := set(map(str, level)) - set(map(str, level[labelled])):
        raise ValueError(f"level {min(missing)}: no frame has an energy")
    e, own, x, g, isolated, level = (v[labelled] for v in (e, own, x, g, isolated, level))
    chosen, why = chosen_method(method, x, isolated)
    used = np.flatnonzero(g.any(axis=0))
    names = ["energy of the model", *pair_names(elements)]
    described = g[:, used], [names[k] for k in used]
    found = compare_levels(e - own, x, level, *described, chosen, isolated)
    for name, bias in found.biases.items():
        mine = level == name
        bias.fit_report |= {"reference": reference_levels(e[mine], x[mine]), **why}
    return found


def _rows(
    potential: Potential, frames: DeviceFrames, elements: torch.Tensor
) -> tuple[np.ndarray, ...]:
    """Reference energy, energy without bias, composition, features, if isolated, of each frame."""
    counts = frames.compositions()
    own = predict(potential, frames).energy - potential.bias.arrays()(counts)
    energies = np.full(len(frames), np.nan)
    if frames.energy is not None:
        energies = frames.energy.cpu().numpy()
    features = np.column_stack([own, pair_sums(frames, elements)])
    return energies, own, counts, features, isolated_atoms(frames)


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
        sums = torch.bincount(column, near, minlength=len(places) * e * e)
        table[places] = sums.reshape(len(places), -1).cpu().numpy()
    return table


def pair_names(elements: torch.Tensor) -> list[str]:
    """Names of pairs of elements `(e,)`, row by row, such as C–H distances."""
    symbols = [chemical_symbols[int(z)] for z in elements]
    return [f"{one}–{other} distances" for one in symbols for other in symbols]


def levels_by_label(dataset: Dataset, label: str) -> np.ndarray:
    """Name of the level of each frame by a label of the frames, `(m,)`.

    It is the value where that is text, such as pbe, and else `label` and value, such as source1.

    Raises `DataError` if a frame lacks the label, or it is not one number or text by frame.
    """
    values, texts = np.full(len(dataset), np.nan), dataset.texts(label)
    for group in dataset.groups():
        found = group.read(label)
        if found is None or found.ndim != 1 or found.dtype.kind not in "biuf":
            raise DataError(
                f"{dataset.path}: {label} of frame {group.index[0]} ({group.name}): missing or "
                "not one number or text by frame; "
                f"its labels are {', '.join(group.other_labels()) or 'none'}"
            )
        values[group.index] = found
    found, of_frame = np.unique(values, return_inverse=True)
    names = [f"{label}{value:g}" if texts is None else texts[int(value)] for value in found]
    return np.array(names)[of_frame]


def frames_by_label(dataset: Dataset, label: str) -> dict[str, np.ndarray]:
    """Indices of the frames of each level, by the names of `levels_by_label`."""
    levels = levels_by_label(dataset, label)
    return {str(name): np.flatnonzero(levels == name) for name in np.unique(levels)}
