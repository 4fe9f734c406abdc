"""Charged particles in a box: their forces and the simulations of the N-body benchmark.

Particles of unit mass with charges ±1 and forces ``F_i = Σ_j q_i q_j (x_i − x_j)/|x_i − x_j|³``,
whose components are clipped, between reflecting walls (Kipf et al. 2018, arXiv:1802.04687; Fuchs et
al. 2020, arXiv:2006.10503). Satorras et al. 2021 (EGNN, arXiv:2102.09844) have no walls. Quantities
have no units.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ase_biasgrad.progress import progress_bar

SIMULATIONS_PER_BLOCK = 500  # arrays of one step then fit into a processor's cache


@dataclass(frozen=True)
class System:
    """The true system and how it is stepped.

    Parameters
    ----------
    particles
        How many.
    half_width
        Of the box; None: no walls.
    position_deviation, speed
        Positions begin normally distributed, velocities in random directions.
    strength
        Factor of the forces.
    largest_force
        Each component of a particle's force is clipped to it.
    timestep
        Of the integrator.
    steps, interval
        Steps of a simulation, and between the frames that are kept.
    """

    particles: int = 5
    half_width: float | None = 5.0
    position_deviation: float = 1.0
    speed: float = 0.5
    strength: float = 1.0
    largest_force: float = 100.0
    timestep: float = 0.001
    steps: int = 5000
    interval: int = 100

    @property
    def frames(self) -> int:
        """Frames that are kept, the first after `interval` steps."""
        return self.steps // self.interval - 1


@dataclass(frozen=True)
class Trajectories:
    """Simulations with `f` frames of `n` particles each."""

    positions: np.ndarray  # (simulations, f, n, 3)
    velocities: np.ndarray  # (simulations, f, n, 3)
    charges: np.ndarray  # (simulations, n)

    def __len__(self) -> int:
        return len(self.charges)


def forces(positions: np.ndarray, charges: np.ndarray, system: System) -> np.ndarray:
    """Clipped forces `(3, n, simulations)` at `positions (3, n, simulations)`.

    `charges` are `(n, simulations)`.
    """
    return _forces(positions, _pair_strengths(charges, system), system)


def simulate(system: System, simulations: int, seed: int, progress: bool = False) -> Trajectories:
    """Simulate from random positions, velocities and charges.

    The order of each step is the original's: positions move by the velocities, walls reflect,
    the frame is kept, velocities change by the forces. One change of velocities comes first.
    """
    random = np.random.default_rng(seed)
    shape = (simulations, system.particles, 3)
    charges = random.choice([-1.0, 1.0], shape[:2])
    positions = system.position_deviation * random.standard_normal(shape)
    velocities = random.standard_normal(shape)
    velocities *= system.speed / np.linalg.norm(velocities, axis=-1, keepdims=True)
    starts = range(0, simulations, SIMULATIONS_PER_BLOCK)
    blocks = []
    for start in progress_bar(starts, "simulations", progress, unit=" blocks"):
        block = slice(start, start + SIMULATIONS_PER_BLOCK)
        blocks.append(
            integrate(
                system,
                np.ascontiguousarray(positions[block].transpose(2, 1, 0)),
                np.ascontiguousarray(velocities[block].transpose(2, 1, 0)),
                np.ascontiguousarray(charges[block].T),
            )
        )
    kept = np.concatenate(blocks, axis=-1)  # (2, frames, 3, n, simulations)
    kept_positions, kept_velocities = kept.transpose(0, 4, 1, 3, 2)
    return Trajectories(kept_positions, kept_velocities, charges)


def integrate(
    system: System, positions: np.ndarray, velocities: np.ndarray, charges: np.ndarray
) -> np.ndarray:
    """Frames of simulations from given starts, `(2, frames, 3, n, simulations)`.

    Positions and velocities are `(3, n, simulations)`, charges `(n, simulations)`.
    """
    strengths = _pair_strengths(charges, system)
    x, v = positions.copy(), velocities.copy()
    kept = np.empty((2, system.frames, *x.shape))
    _reflect(x, v, system)
    v += system.timestep * _forces(x, strengths, system)
    for step in range(1, system.frames * system.interval + 1):
        x += system.timestep * v
        _reflect(x, v, system)
        if step % system.interval == 0:
            kept[:, step // system.interval - 1] = x, v
        v += system.timestep * _forces(x, strengths, system)
    return kept


def _pair_strengths(charges: np.ndarray, system: System) -> np.ndarray:
    """q_i q_j times the strength, `(pairs, simulations)`."""
    i, j = np.array(_pairs(len(charges)), int).reshape(-1, 2).T
    return system.strength * charges[i] * charges[j]


def _pairs(particles: int) -> list[tuple[int, int]]:
    return list(combinations(range(particles), 2))


def _forces(positions: np.ndarray, strengths: np.ndarray, system: System) -> np.ndarray:
    """Sums of pairs in a fixed order, one operation after another.

    A matrix product would round as the BLAS, its threads and its fused multiplications do, and
    trajectories are chaotic: seeded data shall be the same bits everywhere.
    """
    pairs = _pairs(positions.shape[1])
    differences = np.empty((3, *strengths.shape))  # (3, pairs, simulations)
    for k, (i, j) in enumerate(pairs):
        np.subtract(positions[:, i], positions[:, j], out=differences[:, k])
    x, y, z = differences * differences
    squares = x + y + z
    differences *= strengths / (squares * np.sqrt(squares))
    total = np.zeros_like(positions)  # (3, n, simulations)
    for k, (i, j) in enumerate(pairs):
        total[:, i] += differences[:, k]
        total[:, j] -= differences[:, k]
    return np.clip(total, -system.largest_force, system.largest_force, out=total)


def _reflect(positions: np.ndarray, velocities: np.ndarray, system: System) -> None:
    """Bring particles beyond a wall back in, in place, with the velocity turned inwards."""
    if system.half_width is None:
        return
    outside = np.abs(positions) > system.half_width
    if outside.any():
        side = np.sign(positions[outside])
        positions[outside] = 2 * system.half_width * side - positions[outside]
        velocities[outside] = -side * np.abs(velocities[outside])
