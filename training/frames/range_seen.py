"""Range of distances, neighbours and forces in the frames of a training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ase_biasgrad.training.evaluation.predict import batches_of_atoms
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training_range import TrainingRange, coordination_of_pairs, joined, range_of_pairs

ATOMS_AT_ONCE = 2000


def range_of_frames(frames: DeviceFrames, cutoff: float) -> TrainingRange:
    """Closest pairs within `cutoff` (Å), coordination numbers, and the largest force."""
    elements = np.unique(frames.numbers.cpu().numpy())
    force = None
    if frames.forces is not None:
        lengths = frames.forces.norm(dim=1)
        known = lengths[lengths.isfinite()]
        largest = float(known.max()) if len(known) else 0.0
        force = largest if largest > 0 else None
    found: list[TrainingRange] = []
    for places in batches_of_atoms(frames.atom_counts, ATOMS_AT_ONCE):
        graph = frames.batch(places).graph
        distances = graph.edge_vectors().norm(dim=1).cpu().numpy()
        numbers, near = graph.numbers.cpu().numpy(), distances < cutoff
        i, j = graph.edge_index.cpu().numpy()[:, near]
        pairs = range_of_pairs(numbers[i], numbers[j], distances[near], force)
        counts = coordination_of_pairs(numbers, i, j, distances[near], elements, cutoff)
        found.append(replace(pairs, coordination=counts))
    whole = joined(found)
    assert whole is not None  # there are frames
    return whole
