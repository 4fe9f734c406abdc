"""The layered engine against autograd through the same TensorNet."""

import copy
import pickle

import numpy as np
import pytest
import torch
from ase.calculators.calculator import CalculatorSetupError
from conftest import copper, ethanol, mixed, small_potential, structure_of

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calculators.engines.layered import LayeredEngine
from ase_biasgrad.calculators.engines.reference import ReferenceEngine
from ase_biasgrad.numerics.splines import SplineError

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)
TOLERANCES = {torch.float64: 2e-6, torch.float32: 1e-5}


@pytest.mark.parametrize("make", [ethanol, copper, mixed])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_energies_forces_and_stress_are_those_of_autograd(make, dtype):
    backbone, s = small_potential("tensornet").backbone, structure_of(make())
    exact = ReferenceEngine(
        [copy.deepcopy(backbone)], torch.device("cpu"), torch.float64, 0.5
    ).evaluate(s, True)
    ours = LayeredEngine([backbone], dtype, 0.5).evaluate(s, True)
    tolerance = TOLERANCES[dtype] * max(1.0, np.abs(exact.forces).max())
    np.testing.assert_allclose(ours.energies, exact.energies, atol=tolerance)
    np.testing.assert_allclose(ours.forces, exact.forces, atol=tolerance)
    np.testing.assert_allclose(
        ours.strain_gradient, exact.strain_gradient, atol=tolerance * 4 * len(s.numbers)
    )


def test_several_structures_and_a_committee():
    backbones = [small_potential("tensornet", seed=k).backbone for k in range(2)]
    engine = LayeredEngine(backbones, torch.float64, 0.5)
    structures = [structure_of(make()) for make in (ethanol, copper)]
    for s, at_once in zip(structures, engine.evaluate_many(structures), strict=True):
        alone = engine.evaluate(s, True)
        assert at_once.forces.shape == (2, len(s.numbers), 3)
        np.testing.assert_allclose(at_once.forces, alone.forces, atol=1e-10)
    assert np.abs(alone.forces[0] - alone.forces[1]).max() > 1e-6
    again = pickle.loads(pickle.dumps(engine))
    np.testing.assert_array_equal(again.evaluate(s, True).forces, alone.forces)


def test_where_it_runs(monkeypatch):
    tensornet, schnet = small_potential("tensornet"), small_potential("schnet")
    for dtype in ("float32", "float64"):
        assert BiasGradCalculator(tensornet, device="cpu", dtype=dtype).engine == "layered"
    assert BiasGradCalculator(tensornet, device="cpu", engine="reference").engine == "reference"
    assert BiasGradCalculator([tensornet, schnet], device="cpu").engine == "reference"
    with pytest.raises(CalculatorSetupError, match="it evaluates TensorNet"):
        BiasGradCalculator(schnet, device="cpu", engine="layered")

    def refuse(*_):
        raise SplineError("a kink")

    monkeypatch.setattr("ase_biasgrad.fused.sampled_tensornet.sampled", refuse)
    with pytest.warns(UserWarning, match=r"runs by autograd: .* a kink"):
        assert BiasGradCalculator(tensornet, device="cpu").engine == "reference"
