"""Threads to use where torch is not loaded."""

import os
import sys

import pytest

from ase_biasgrad.numerics.threads import threads_allowed


@pytest.mark.parametrize(("said", "expected"), [("3", 3), ("4,2", 4), ("0", 1), ("", None)])
def test_without_torch_the_environment_decides_or_the_cores(monkeypatch, said, expected):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    found = threads_allowed()
    assert found == expected if expected else 1 <= found <= os.cpu_count()
