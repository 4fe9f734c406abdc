"""Readouts of a trained potential: drawn from what its training frames leave free."""

from __future__ import annotations

import numpy as np
import torch

from ase_biasgrad.backbones.base import ReadoutBackbone
from ase_biasgrad.potential import Potential, readout_derivatives
from ase_biasgrad.readouts import Readouts
from ase_biasgrad.training.evaluation.predict import batches_of_atoms
from ase_biasgrad.training.frames.device_frames import DeviceFrames

RIDGE = 1e-8  # λ over the largest eigenvalue of JᵀJ; 1e-10 to 1e-6 rank errors equally well
ATOMS = 2000  # training atoms that JᵀJ is summed over
AT_ONCE = 200  # each takes a backward pass for every feature


def drawn_readouts(potential: Potential, training: DeviceFrames, count: int) -> Readouts:
    """Draw `count` readouts of a potential from its training frames (see `readouts`).

    Raises `ValueError` if the backbone has no last layer, or `count` is below 2.
    """
    if count < 2:
        raise ValueError(f"{count} readouts: a spread takes two or more")
    random = np.random.default_rng(0)
    backbone = _with_readout(potential)
    width = backbone.last_layer.in_features
    normal, features, numbers = np.zeros((width, width)), [], []
    for places in _some(training, random):
        graph = training.batch(places).graph
        h, jacobian = readout_derivatives(backbone, graph, torch.eye(width))
        rows = jacobian.cpu().numpy().reshape(width, -1)  # of every coordinate
        normal += rows @ rows.T
        features.append(h.cpu().numpy())
        numbers.append(graph.numbers.cpu().numpy())
    values, vectors = np.linalg.eigh(normal)
    if not values[-1] > 0:
        raise ValueError("no feature of the network depends on the positions of training frames")
    scale = 1 / np.sqrt(np.maximum(values, 0) + RIDGE * values[-1])
    weights = random.normal(size=(count, width)) @ (vectors * scale).T
    of_atoms, atoms = weights @ np.concatenate(features, axis=1), np.concatenate(numbers)
    elements = np.unique(atoms)
    means = [of_atoms[:, atoms == z].mean(axis=1) for z in elements]
    return Readouts(weights, tuple(elements.tolist()), np.stack(means, axis=1))


def readout_spreads(
    potential: Potential, readouts: Readouts, frames: DeviceFrames
) -> tuple[np.ndarray, np.ndarray]:
    """Spreads of energies `(m,)` in eV and of forces `(a, 3)` in eV/Å, not calibrated."""
    backbone, weights = _with_readout(potential), torch.from_numpy(readouts.weights)
    energies, forces = [], []
    for places in batches_of_atoms(frames.atom_counts, AT_ONCE):
        graph = frames.batch(places).graph
        changes = [value.cpu().numpy() for value in readout_derivatives(backbone, graph, weights)]
        ends = np.cumsum(frames.atom_counts[places])[:-1]
        numbers = np.split(graph.numbers.cpu().numpy(), ends)
        parts = (np.split(values, ends, axis=1) for values in changes)
        for frame in zip(numbers, *parts, strict=True):
            spreads = readouts.spreads(*frame)
            energies.append(spreads["energy_std"])
            forces.append(spreads["forces_std"])
    return np.array(energies), np.concatenate(forces)


def _some(training: DeviceFrames, random: np.random.Generator) -> list[np.ndarray]:
    """Batches of random frames: one of each element first, then others up to `ATOMS`."""
    order, counts = random.permutation(len(training)), training.atom_counts
    compositions = training.compositions()[order]  # (m, elements)
    first = np.unique(np.argmax(compositions[:, compositions.any(axis=0)] > 0, axis=0))
    order = np.concatenate([order[first], np.delete(order, first)])
    within = np.cumsum(counts[order]) <= ATOMS
    within[: len(first)] = True
    chosen = np.sort(order[within])
    return [chosen[places] for places in batches_of_atoms(counts[chosen], AT_ONCE)]


def _with_readout(potential: Potential) -> ReadoutBackbone:
    if not isinstance(potential.backbone, ReadoutBackbone):
        raise ValueError(
            f"the network {potential.backbone.name} has no last layer, of which readouts are"
        )
    return potential.backbone
