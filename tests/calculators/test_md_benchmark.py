"""The parts of `biasgrad benchmark md`, in a small size."""

import numpy as np
import pytest
from ase.build import molecule

from ase_biasgrad.calculators import md_benchmark as bench

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)


@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_a_row_compares_whole_steps(name):
    backbone = bench.random_backbone(name, features=8, interactions=1)
    ours, rival = (bench.calculator(backbone, engine=engine) for engine in ("auto", "reference"))
    assert ours.engine == "cpu"
    row = bench.compared("water", molecule("H2O"), ours, ("autograd", rival), seconds=0.2)
    assert (row.what, row.rival) == ("water", "autograd")
    # milliseconds of a whole step on any machine: neither microseconds nor seconds
    assert 0.005 < row.ours < 1000
    assert 0.1 < row.theirs < 10_000
    assert bench.Row("water", "autograd", 2.0, 5.0).ratio == 2.5


def test_the_rival_has_the_same_weights():
    backbone = bench.random_backbone("painn", features=8, interactions=1)
    atoms = bench.fluid(20)
    forces = []
    for calculator in (bench.calculator(backbone), bench.schnetpack_calculator(backbone)):
        atoms.calc = calculator
        forces.append(atoms.get_forces())
    np.testing.assert_allclose(*forces, atol=1e-5)


def test_fluids_have_the_density_asked_for():
    atoms = bench.fluid(200, density=0.05)
    assert len(atoms) / atoms.get_volume() == pytest.approx(0.05)
    assert atoms.pbc.all()
