"""Training states with every kind of fault: refused, or the tensors that were written."""

from __future__ import annotations

import pytest
import torch
from mutations import mutants, outcomes

from ase_biasgrad.training.lightning.state_files import read_state


@pytest.mark.parametrize("count", [400, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_states_are_refused_or_right(tmp_path, count):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{k}": torch.randn(8, 8, generator=generator) for k in range(5)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "last.ckpt")

    def judge(path) -> str:
        state = read_state(path)
        assert state["epoch"] == 3
        assert all(torch.equal(state["state_dict"][name], v) for name, v in tensors.items())
        return "right"

    cases = mutants((tmp_path / "last.ckpt").read_bytes(), count, 0)
    said = outcomes(cases, tmp_path / "last.ckpt", judge)
    assert said["refused"] > 0.4 * count
