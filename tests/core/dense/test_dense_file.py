"""Files of dense networks: whole, or refused with a reason."""

import json

import numpy as np
import pytest
from mutations import mutants, outcomes
from safetensors.numpy import save_file

from ase_biasgrad.dense.inputs import Input
from ase_biasgrad.dense.modules import Linear, Output, Sequential
from ase_biasgrad.dense.potential import FORMAT, DensePotential, load_dense, save_dense


def small() -> DensePotential:
    layer = Linear(12, 1, np.random.default_rng(0), np.float32)
    return DensePotential(
        Sequential([Input(), layer, Output(np.array([-5.0, -1.0]))]), 3, (1, 8), {8: -4.5}
    )


def test_what_is_written_comes_back(tmp_path):
    save_dense(tmp_path / "x.safetensors", small())
    loaded = load_dense(tmp_path / "x.safetensors")
    assert (loaded.size, loaded.elements, loaded.per_element) == (3, (1, 8), {8: -4.5})
    numbers, positions = np.array([8, 1]), np.array([[0, 0, 0], [0, 0, 1.0]])
    assert loaded.energy(numbers, positions) == small().energy(numbers, positions)
    assert loaded.network.modules[1].W.dtype == np.float32


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a safetensors file, or damaged"):
        load_dense(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="but no ase-biasgrad dense network"):
        load_dense(path)
    save_file({}, path, metadata={"ase_biasgrad": json.dumps({"format": FORMAT, "version": 99})})
    with pytest.raises(ValueError, match=r"version 99.*update"):
        load_dense(path)
    broken = {"format": FORMAT, "version": 1, "modules": ["Linear"]}
    save_file({}, path, metadata={"ase_biasgrad": json.dumps(broken)})
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        load_dense(path)


def test_mutated_files_are_refused_or_right(tmp_path):
    save_dense(path := tmp_path / "x.safetensors", small())
    right = small()

    def judge(mutated) -> str:
        loaded = load_dense(mutated)
        same = [one.state() for one in loaded.network.modules]
        np.testing.assert_equal(same, [one.state() for one in right.network.modules])
        assert loaded.per_element == right.per_element
        return "right"

    said = outcomes(mutants(path.read_bytes(), 400, 0), path, judge)
    assert said["refused"] > 380


def test_larger_molecules_are_refused():
    with pytest.raises(ValueError, match="4 atoms, and there is room for 3"):
        small().energy(np.ones(4), np.zeros((4, 3)))
