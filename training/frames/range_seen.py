"""Range of distances and forces in the frames of a training."""

from __future__ import annotations

from ase_biasgrad.training.evaluation.predict import batches_of_atoms
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training_range import TrainingRange, joined, range_of_pairs

ATOMS_AT_ONCE = 2000


def range_of_frames(frames: DeviceFrames, cutoff: float) -> TrainingRange:
    """Closest pairs within `cutoff` (Å) of each two elements, and the largest force."""
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
        first, second = graph.numbers[graph.edge_index].cpu().numpy()
        near = distances < cutoff
        found.append(range_of_pairs(first[near], second[near], distances[near], force))
    whole = joined(found)
    assert whole is not None  # there are frames
    return whole
