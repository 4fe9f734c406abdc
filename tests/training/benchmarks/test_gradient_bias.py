"""The bias of the original work, by gradient descent, beside the median."""

import numpy as np
import pytest
from conftest import small_potential
from helpers import write_clusters

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.training.benchmarks.gradient_bias import fit_bias_by_gradient, gradient_descent
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.bias import fit_bias


def test_gradient_descent_finds_the_median():
    residuals = np.random.default_rng(0).normal(0.3, 0.1, 101)
    assert abs(gradient_descent(residuals) - np.median(residuals)) < 2e-3


def test_the_bias_by_gradient_lies_beside_that_of_the_median(tmp_path):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", frames=31, sizes=(4,)))
    potential = small_potential()
    frames = DeviceFrames(dataset, range(31), potential.cutoff)
    fit_bias_by_gradient(potential, frames)
    found = potential.bias.per_element.clone()
    assert potential.bias.fit_report["method"] == "gradient"
    fit_bias(potential, frames, "median")
    assert float((found - potential.bias.per_element).abs().max()) < 1e-3
    several = Dataset(write_clusters(tmp_path / "y.h5", frames=4))
    with pytest.raises(ValueError, match="one composition, not 2"):
        fit_bias_by_gradient(potential, DeviceFrames(several, range(4), potential.cutoff))
