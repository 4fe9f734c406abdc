"""Long dynamics with the shipped potential: bounded memory, no drift, the same path twice."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from test_shipped_potential import POTENTIAL

from ase_biasgrad import BiasGradCalculator

STEPS, AGAIN, LONG = 3000, 100_000, 1_000_000
TIMESTEP = 0.5  # fs
EVERY = 20  # steps between noted energies
DRIFT = 0.005  # meV/atom/ps; tests/benchmarks/nve_drift.py says below 0.001
# a list or a cache that grows by one array in every step takes more than this in 2000 steps
GROWTH = 64 * 1024  # bytes


def hot_ethanol() -> tuple[Atoms, VelocityVerlet]:
    """Ethanol at some 150 K after equipartition."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = BiasGradCalculator(POTENTIAL, device="cpu")
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    Stationary(atoms)
    return atoms, VelocityVerlet(atoms, TIMESTEP * units.fs)


def energies_of(atoms: Atoms, dynamics: VelocityVerlet, steps: int) -> np.ndarray:
    """Total energies per atom (eV), one in `EVERY` steps."""
    found = np.empty(steps // EVERY)
    for k in range(len(found)):
        dynamics.run(EVERY)
        found[k] = atoms.get_total_energy() / len(atoms)
    return found


def drift_of(energies: np.ndarray) -> float:
    """Slope of the energies in meV/atom/ps."""
    return 1000 * np.polyfit(np.arange(len(energies)) * EVERY * TIMESTEP / 1000, energies, 1)[0]


def resident() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("resident memory is read from /proc, which Linux has")
    return 4096 * int(pages.read_text().split()[1])


def test_the_same_path_twice_without_growth():
    one, first = hot_ethanol()
    energies = energies_of(one, first, STEPS)
    two, second = hot_ethanol()
    energies_of(two, second, STEPS - 2000)
    tracemalloc.start()  # of Python and NumPy, byte for byte
    second.run(100)
    before = tracemalloc.get_traced_memory()[0]
    second.run(1900)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < GROWTH
    np.testing.assert_array_equal(two.positions, one.positions)
    np.testing.assert_array_equal(two.get_momenta(), one.get_momenta())
    assert abs(drift_of(energies)) < 0.1  # over 1.5 ps the oscillation itself has a slope
    assert 1000 * np.std(energies) < 0.15


@pytest.mark.slow
def test_a_million_steps():
    atoms, dynamics = hot_ethanol()
    energies_of(atoms, dynamics, AGAIN)
    there, before = atoms.positions.copy(), resident()
    energies = energies_of(atoms, dynamics, LONG)
    grown, drift = resident() - before, drift_of(energies)
    print(f"{before / 2**20:.1f} MB, grown by {grown / 2**20:.2f} MB; {drift:.6f} meV/atom/ps")
    assert grown < 8 * 2**20
    assert abs(drift) < DRIFT
    assert 1000 * np.std(energies) < 0.15
    atoms, dynamics = hot_ethanol()
    energies_of(atoms, dynamics, AGAIN)
    np.testing.assert_array_equal(atoms.positions, there)
