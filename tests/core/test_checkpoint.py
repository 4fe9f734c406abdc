"""Checkpoints: what goes in comes out, and nothing else comes in."""

import json

import numpy as np
import pytest
import torch
from conftest import BACKBONES, ethanol, small_potential
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_bias import counts_of

from ase_biasgrad import checkpoint as checkpoints
from ase_biasgrad.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ase_biasgrad.graph import graph_from_atoms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BACKBONES)
def test_round_trip_is_exact(tmp_path, name, dtype):
    arguments = {"radial_basis": "bessel"} if name in ("schnet", "painn") else {"bins": 7}
    if name == "se3_transformer":
        arguments = {"odd_paths": True}
    if name == "tensornet":
        arguments = {"radial_functions": 7}
    potential = small_potential(name, **arguments).to(dtype)
    potential.bias.fit(np.array([-4e5, -3e5]), counts_of({1: 2}, {6: 2, 1: 6, 8: 1}), "median")
    save_checkpoint(tmp_path / "p.safetensors", potential, {"note": "α"})
    loaded = load_checkpoint(tmp_path / "p.safetensors")
    graph = graph_from_atoms(ethanol(), potential.cutoff)
    one, two = (p.evaluate(graph, ["energy", "forces"]) for p in (potential, loaded.potential))
    assert torch.equal(one["energy"], two["energy"])
    assert torch.equal(one["forces"], two["forces"])
    assert loaded.training == {"note": "α"}
    assert loaded.potential.bias.zero == "per-composition"
    assert loaded.potential.elements == potential.elements
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_float64_includes_the_radial_functions(tmp_path, name):
    potential = small_potential(name, cutoff=4.7).double()
    save_checkpoint(tmp_path / "p.safetensors", potential)
    loaded = load_checkpoint(tmp_path / "p.safetensors").potential
    assert {t.dtype for t in loaded.backbone.state_dict().values()} == {torch.float64}
    graph = graph_from_atoms(ethanol(), 4.7)
    assert torch.equal(potential(graph)[0], loaded(graph)[0])


def test_damaged_foreign_and_newer_files_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, small_potential())
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: not a safetensors file"):
        load_checkpoint(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of ase-biasgrad"):
        load_checkpoint(path)
    metadata = {"format": checkpoints.FORMAT, "version": checkpoints.FORMAT_VERSION + 1}
    save_file({"x": torch.zeros(1)}, path, {"ase_biasgrad": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="update ase-biasgrad"):
        load_checkpoint(path)


def test_old_versions_are_upgraded(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "p.safetensors", small_potential())
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 2)
    upgrade = {1: lambda metadata: {**metadata, "training": {"upgraded": True}}}
    monkeypatch.setattr(checkpoints, "UPGRADES", upgrade)
    loaded = load_checkpoint(tmp_path / "p.safetensors")
    assert loaded.training == {"upgraded": True}
    assert loaded.metadata["version"] == 2


@pytest.mark.parametrize("stored", ["{", "[]", '{"format": "ase-biasgrad checkpoint"}'])
def test_damaged_metadata_is_an_error_that_names_the_file(tmp_path, stored):
    path = tmp_path / "p.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"ase_biasgrad": stored})
    with pytest.raises(CheckpointError, match=r"p\.safetensors: the metadata"):
        load_checkpoint(path)


def test_a_version_that_nothing_upgrades_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    metadata = {"format": checkpoints.FORMAT, "version": 0}
    save_file({"x": torch.zeros(1)}, path, {"ase_biasgrad": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="format version 0"):
        load_checkpoint(path)


def test_tensors_that_do_not_fit_the_architecture_are_refused(tmp_path):
    path, other = tmp_path / "p.safetensors", tmp_path / "other.safetensors"
    save_checkpoint(path, small_potential())
    with safe_open(path, framework="pt") as file:
        stored = file.metadata()
    save_checkpoint(other, small_potential(features=8))
    save_file(load_file(other), path, stored)
    with pytest.raises(CheckpointError, match="cannot be rebuilt"):
        load_checkpoint(path)
