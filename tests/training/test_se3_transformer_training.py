"""The SE(3)-Transformer trains with the two stages and runs in the calculator."""

import numpy as np
from ase import Atoms
from helpers import options, write_clusters

from ase_biasgrad.calculators import BiasGradCalculator
from ase_biasgrad.training.config import config_from
from ase_biasgrad.training.run import train


def test_two_stages_and_the_calculator(tmp_path):
    path = write_clusters(tmp_path / "d.h5", periodic=True)
    chosen = options(path, epochs=12)
    chosen["backbone"] = {
        "name": "se3_transformer", "channels": 8, "layers": 2, "heads": 2, "cutoff": 3.0,
        "radial_functions": 6,
    }  # fmt: skip
    result = train(config_from(chosen), tmp_path / "run")
    before, after = result.before_bias, result.after_bias
    assert after.forces.mae < 0.6 * after.force_rms
    assert before.forces == after.forces
    assert after.energy.mae < 1e-4 * before.energy.mae

    atoms = Atoms("OH3", [[0, 0, 0], [1.2, 0, 0], [0, 1.2, 0.1], [0, 0, 1.2]], cell=[3.5] * 3)
    atoms.pbc = True
    atoms.calc = BiasGradCalculator(result.checkpoint, dtype="float64", device="cpu")
    assert np.abs(atoms.get_forces().sum(axis=0)).max() < 1e-10
    assert np.isfinite(atoms.get_stress()).all()
