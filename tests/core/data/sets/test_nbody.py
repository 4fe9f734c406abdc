"""The simulator steps as the original does, and its data has the figures that were published."""

import hashlib

import h5py
import numpy as np
import pytest

from ase_biasgrad.charged_particles import System, forces, integrate, simulate
from ase_biasgrad.data.sets.nbody import VARIANTS, NBodyDataError, open_dataset, write_dataset

SEEDED = "7bf081946873528c093584b476aff00070925fc06417b62769b81f2165b46ab2"  # SHA-256


def start(system: System, simulations: int, seed: int = 0):
    random = np.random.default_rng(seed)
    shape = (3, system.particles, simulations)
    charges = random.choice([-1.0, 1.0], shape[1:])
    return random.normal(0, 1, shape), random.normal(0, 1, shape), charges


def straightforward(system, x, v, q):
    """One simulation `(3, n)`, pair by pair, in the order of the original's loop."""
    x, v, frames = x.copy(), v.copy(), []

    def kick():
        for i in range(system.particles):
            force = np.zeros(3)
            for j in range(system.particles):
                if i != j:
                    r = x[:, i] - x[:, j]
                    force += q[i] * q[j] * r / np.sqrt(r @ r) ** 3
            v[:, i] += system.timestep * np.clip(force, -100, 100)

    kick()
    for step in range(1, system.steps):
        x += system.timestep * v
        over, under = x > system.half_width, x < -system.half_width
        x[over], v[over] = 2 * system.half_width - x[over], -np.abs(v[over])
        x[under], v[under] = -2 * system.half_width - x[under], np.abs(v[under])
        if step % system.interval == 0:
            frames.append((x.copy(), v.copy()))
        kick()
    return np.array(frames).swapaxes(0, 1)


def test_steps_are_those_of_the_original():
    system = System(steps=400, interval=50, half_width=1.2)  # walls are met
    x, v, q = start(system, 3)
    x *= 0.5
    kept = integrate(system, x, v, q)
    assert kept.shape == (2, 7, 3, 5, 3)
    for k in range(3):
        expected = straightforward(system, x[..., k], v[..., k], q[:, k])
        np.testing.assert_allclose(kept[..., k], expected, rtol=1e-8)
    assert np.abs(kept[0]).max() <= 1.2


def test_forces_are_derivatives_like_repels_and_are_clipped():
    system = System()
    x, _, q = start(system, 1)

    def energy(x):
        i, j = np.triu_indices(5, 1)
        return (q[i, 0] * q[j, 0] / np.linalg.norm(x[:, i, 0] - x[:, j, 0], axis=0)).sum()

    found = forces(x, q, system)
    for index in np.ndindex(3, 5):
        moved = [x.copy(), x.copy()]
        for sign, y in zip((1, -1), moved, strict=True):
            y[index] += sign * 1e-6
        slope = (energy(moved[0]) - energy(moved[1])) / 2e-6
        np.testing.assert_allclose(found[*index, 0], -slope, rtol=1e-5, atol=1e-6)
    pair = np.array([[0.0, 0.01], [0, 0], [0, 0]])[:, :, None]
    like = forces(pair, np.ones((2, 1)), System(particles=2))[0, :, 0]
    np.testing.assert_array_equal(like, [-100, 100])  # 10⁴ without the clip
    unlike = forces(pair, np.array([[1.0], [-1.0]]), System(particles=2))[0, :, 0]
    np.testing.assert_array_equal(unlike, [100, -100])


def test_energy_is_conserved_where_no_force_is_clipped():
    system = System(half_width=None, particles=3, steps=2000)
    x, v, _ = start(system, 20)
    q = np.ones((3, 20))  # repelling particles stay apart
    kept_x, kept_v = integrate(system, x, v, q)
    i, j = np.triu_indices(3, 1)
    potential = (1 / np.linalg.norm(kept_x[:, :, i] - kept_x[:, :, j], axis=1)).sum(axis=1)
    total = potential + 0.5 * np.square(kept_v).sum(axis=(1, 2))
    assert np.abs(total - total[0]).max() < 0.02 * np.abs(total).mean()


def within(value: float, quoted: float) -> bool:
    return abs(value / quoted - 1) < 0.05


def changes(trajectories, ahead: int, frames: slice):
    x, v = trajectories.positions, trajectories.velocities
    first = np.arange(x.shape[1] - ahead)[frames]
    return x[:, first + ahead] - x[:, first], v[:, first + ahead] - v[:, first], v[:, first]


def test_seeded_data_are_the_same_bits_everywhere():
    """Trajectories are chaotic: one bit that a BLAS rounds otherwise would show in all of them."""
    data = simulate(System(), 3, seed=7)
    whole = hashlib.sha256()
    for values in (data.positions, data.velocities, data.charges):
        whole.update(values.tobytes())
    assert whole.hexdigest() == SEEDED


def test_the_data_is_the_papers():
    """Fuchs et al. 2020, 5 frames ahead: no change 0.0667 and 0.2588, constant velocity 0.0270."""
    dx, dv, v = changes(simulate(System(), 4000, seed=0), 5, slice(None))
    assert within(np.square(dx).mean(), 0.0667)
    assert within(np.square(dv).mean(), 0.2588)
    assert within(np.square(dx - 0.5 * v).mean(), 0.0270)


def test_the_variant_is_egnns():
    """Satorras et al. 2021, frame 30 to 40: no change 0.273."""
    variant = VARIANTS["egnn"]
    assert (variant.start, variant.ahead) == (30, 10)
    dx, _, _ = changes(simulate(variant.system, 4000, seed=0), 10, slice(30, 31))
    assert within(np.square(dx).mean(), 0.273)


SIZES = {"train": 6, "validation": 3, "test": 4}


def test_files(tmp_path):
    for name, sizes, seed in (("a", SIZES, 1), ("b", SIZES | {"train": 9}, 1), ("c", SIZES, 2)):
        write_dataset(tmp_path / name, "egnn", seed=seed, sizes=sizes)
    a, b, c = (open_dataset(tmp_path / name) for name in "abc")
    assert a.system == VARIANTS["egnn"].system
    assert a.read("train").positions.shape == (6, 49, 5, 3)
    assert len(b.read("train")) == 9
    np.testing.assert_array_equal(a.read("test").positions, b.read("test").positions)
    assert not np.array_equal(a.read("test").positions, c.read("test").positions)
    assert not np.array_equal(a.read("test").positions[:3], a.read("validation").positions)
    assert set(np.unique(a.read("train").charges)) == {-1.0, 1.0}
    speeds = np.linalg.norm(simulate(System(steps=200), 3, 0).velocities, axis=-1)
    assert np.isfinite(speeds).all()


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="biasgrad data nbody"):
        open_dataset(tmp_path / "none")
    (tmp_path / "text").write_text("no HDF5")
    with pytest.raises(NBodyDataError, match="no HDF5 file"):
        open_dataset(tmp_path / "text")
    with h5py.File(tmp_path / "other", "w"):
        pass
    with pytest.raises(NBodyDataError, match="no N-body data set"):
        open_dataset(tmp_path / "other")
    with pytest.raises(ValueError, match="'egnn', 'paper'"):
        write_dataset(tmp_path / "x", "springs")
    assert not (tmp_path / "x").exists()
    write_dataset(tmp_path / "y", sizes=dict.fromkeys(SIZES, 1))
    with pytest.raises(ValueError, match="no split 'valid'"):
        open_dataset(tmp_path / "y").read("valid")
