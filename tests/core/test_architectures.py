"""Arguments and shapes that are known without torch are those of the networks of torch."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.architectures import ARCHITECTURES
from ase_biasgrad.backbones import (
    architecture_of,
    backbone_arguments,
    backbone_class,
    build_backbone,
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_defaults_and_limits_are_those_of_the_class(name):
    ours, cls = ARCHITECTURES[name], backbone_class(name)
    assert ours.name == name
    assert dict(ours.defaults) == backbone_arguments(cls)
    assert (ours.depths, ours.largest_number) == (cls.depths, cls.largest_number)
    assert not inspect.isabstract(cls)


sizes = st.integers(0, 7)
ARGUMENTS = {
    "features": sizes,
    "interactions": st.integers(0, 3),
    "cutoff": st.sampled_from([5.0, 3, 0.0, -1.0]),
    "radial_functions": sizes,
    "radial_basis": st.sampled_from(["gaussian", "bessel", "spline"]),
    "cutoff_function": st.sampled_from(["cosine", "mollifier", "step"]),
    "readout_layers": st.integers(0, 4),
    "scale": st.floats(-2, 2),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_shapes_are_those_that_torch_builds(name, data):
    """Arguments that one of them refuses are refused by the other, too."""
    defaults = ARCHITECTURES[name].defaults
    chosen = {key: data.draw(ARGUMENTS[key]) for key in defaults}
    try:
        with torch.device("meta"):
            built = build_backbone(name, chosen)
    except ValueError:
        with pytest.raises(ValueError, match=r"must be|unknown|radial_functions=1"):
            ARCHITECTURES[name].shapes(chosen)
        return
    expected = {key: list(tensor.shape) for key, tensor in built.state_dict().items()}
    assert ARCHITECTURES[name].shapes(chosen) == expected
    assert architecture_of(name).shapes(chosen) == expected
