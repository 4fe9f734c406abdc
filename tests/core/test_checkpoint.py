"""Checkpoints: what goes in comes out, and nothing else comes in."""

import json

import numpy as np
import pytest
import torch
from conftest import BACKBONES, ethanol, small_potential
from safetensors.torch import save_file
from test_bias import counts_of

from ase_biasgrad import checkpoint as checkpoints
from ase_biasgrad.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ase_biasgrad.files import whole_file
from ase_biasgrad.graph import graph_from_atoms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BACKBONES)
def test_round_trip_is_exact(tmp_path, name, dtype):
    potential = small_potential(name, radial_basis="bessel").to(dtype)
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


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
