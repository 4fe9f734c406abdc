"""The conformance suite over backbones, precisions and committees."""

import pytest
from conformance import Conformance
from conftest import BACKBONES, small_potential

from ase_biasgrad import BiasGradCalculator


@pytest.mark.parametrize("name", BACKBONES)
class TestReferenceFloat64(Conformance):
    @pytest.fixture
    def make(self, name):
        potential = small_potential(name)
        return lambda **arguments: BiasGradCalculator(
            potential, **{"dtype": "float64", "device": "cpu", "engine": "reference", **arguments}
        )


@pytest.mark.parametrize("name", BACKBONES)
class TestFloat32(Conformance):
    is_float64 = False

    @pytest.fixture
    def make(self, name):
        potential = small_potential(name)
        return lambda **arguments: BiasGradCalculator(potential, **{"device": "cpu", **arguments})


class TestCommittee(Conformance):
    @pytest.fixture
    def make(self):
        potentials = [small_potential("schnet", seed) for seed in range(3)]
        return lambda **arguments: BiasGradCalculator(
            potentials, **{"dtype": "float64", "device": "cpu", **arguments}
        )
