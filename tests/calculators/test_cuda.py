"""The conformance suite on a CUDA device, its equality with the CPU, by the plain backbones."""

import numpy as np
import pytest
import torch
from conformance import Conformance
from conftest import BACKBONES, copper, ethanol, small_potential

from ase_biasgrad import BiasGradCalculator

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("name", BACKBONES)
class TestCudaFloat64(Conformance):
    @pytest.fixture
    def make(self, name):
        potential = small_potential(name)
        return lambda **arguments: BiasGradCalculator(
            potential, **{"dtype": "float64", "device": "cuda", **arguments}
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_cuda_equals_cpu(name):
    potential = small_potential(name)
    for atoms in (ethanol(), copper()):
        values = []
        for device in ("cpu", "cuda"):
            atoms.calc = BiasGradCalculator(potential, device=device)
            values.append((atoms.get_potential_energy(), atoms.get_forces()))
        assert values[0][0] == pytest.approx(values[1][0], abs=1e-4)
        np.testing.assert_allclose(values[0][1], values[1][1], atol=1e-4)
