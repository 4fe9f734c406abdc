"""Files that are kept: what goes in comes out, other sources and damage do not."""

import os

import numpy as np
import pytest

from ase_biasgrad.fused.kept_networks import keep_network, read_network
from ase_biasgrad.fused.runtime import Compiled, CompiledNetwork
from ase_biasgrad.numerics import kept_files
from ase_biasgrad.numerics.kept_files import folder_for, keep, read_kept, source_digest, warn_once
from ase_biasgrad.numerics.splines import Knots


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder with one source; what was said of other folders is forgotten."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    for function in (folder_for, source_digest, warn_once):
        function.cache_clear()
    (tmp_path / "code.py").write_text("x = 1")
    yield tmp_path
    for function in (folder_for, source_digest, warn_once):
        function.cache_clear()


def test_content_is_read_again_until_sources_change(sources):
    assert read_kept(sources, "a.kind") is None
    keep(sources, "a.kind", b"content")
    keep(sources, "b.other", b"")
    assert read_kept(sources, "a.kind") == b"content"
    assert read_kept(sources, "b.other") == b""
    (sources / "code.py").write_text("x = 2")
    source_digest.cache_clear()
    assert read_kept(sources, "a.kind") is None
    keep(sources, "c.kind", b"new")
    names = {path.name.rpartition(".")[0] for path in (sources / "__pycache__").iterdir()}
    assert names == {"c.kind", "b.other"}  # files of other kinds are left alone


def test_damaged_content_is_not_read(sources):
    keep(sources, "a.kind", b"content")
    (path,) = (sources / "__pycache__").iterdir()
    for damaged in (path.read_bytes()[:-1], b"", b"x" * 40):
        path.write_bytes(damaged)
        assert read_kept(sources, "a.kind") is None


def test_the_oldest_of_many_go(sources):
    for k in range(5):
        keep(sources, f"{k}.kind", b"", most=3)
        for path in (sources / "__pycache__").glob(f"{k}.*"):
            os.utime(path, (k, k))
    kept = [k for k in range(5) if read_kept(sources, f"{k}.kind") is not None]
    assert kept == [2, 3, 4]


def test_places_to_keep_files(sources, tmp_path, monkeypatch):
    chosen = tmp_path / "chosen"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(chosen))
    assert folder_for(sources).parent == chosen
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    folder_for.cache_clear()
    (sources / "__pycache__").write_text("")  # a file where a folder would have to be
    monkeypatch.setattr(kept_files, "_user_cache", lambda: tmp_path / "user")
    assert folder_for(sources).is_relative_to(tmp_path / "user")
    folder_for.cache_clear()
    monkeypatch.setattr(kept_files, "_user_cache", lambda: sources / "__pycache__")
    assert folder_for(sources) is None
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR to a folder of yours"):
        keep(sources, "a.kind", b"")
    assert read_kept(sources, "a.kind") is None


def test_networks_come_back_bit_for_bit(monkeypatch, tmp_path):
    monkeypatch.setattr("ase_biasgrad.fused.kept_networks.SOURCES", tmp_path)
    random = np.random.default_rng(0)
    program = Compiled(
        instructions=random.integers(-9, 9, (4, 5)),
        segments=np.array([[0, 2], [2, 4]]),
        forward=1,
        first_order=2,
        weights=random.normal(size=48).astype(np.float32),
        learnt=np.ones(48, bool),
        kept=32,
        local=16,
        last_weights=16,
        last_bias=32,
    )
    network = CompiledNetwork(program, Knots(4.7, 183))
    keep_network("digest", np.dtype("float32"), network)
    assert read_network("digest", np.dtype("float64")) is None
    found = read_network("digest", np.dtype("float32"))
    assert found.knots == network.knots
    for key, value in vars(program).items():
        other = getattr(found.program, key)
        assert type(other) is type(value), key
        np.testing.assert_array_equal(other, value)
        assert getattr(other, "dtype", None) == getattr(value, "dtype", None)
