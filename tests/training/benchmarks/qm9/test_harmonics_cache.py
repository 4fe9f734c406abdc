"""A cache of harmonics is used for exactly the data that it was made of."""

import h5py
import numpy as np
import pytest
import torch

from ase_biasgrad.se3_transformer.bases import spherical_harmonics
from ase_biasgrad.training.benchmarks.nbody.network import (
    NBodyNetwork,
    NBodyOptions,
    vectors_and_index,
)
from ase_biasgrad.training.benchmarks.qm9 import harmonics_cache as basis_cache
from ase_biasgrad.training.benchmarks.qm9.harmonics_cache import (
    CacheError,
    HarmonicsCache,
    open_cache,
)


@pytest.fixture
def vectors() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 2, (edges, 3)).astype(np.float32) for edges in (6, 0, 12, 2, 20)]


@pytest.mark.parametrize("at_once", [1, 15, 100_000])
def test_it_holds_the_harmonics_and_is_reused(tmp_path, vectors, monkeypatch, at_once):
    monkeypatch.setattr(basis_cache, "EDGES_AT_ONCE", at_once)
    path = tmp_path / "cache.h5"
    with open_cache(path, vectors, 6) as cache:
        found = cache.read([4, 1, 0])
        expected = spherical_harmonics(
            torch.from_numpy(np.concatenate([vectors[4], vectors[0]])), 6
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert found.dtype == torch.float32
        assert cache.bytes_per_edge == 49 * 4
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(basis_cache, "spherical_harmonics", None)  # not computed again
    with open_cache(path, vectors, 6) as again:
        assert torch.equal(again.read([4, 1, 0]), found)
    assert path.stat().st_mtime_ns == written


def changed(vectors: list[np.ndarray], how: str) -> list[np.ndarray]:
    others = [edges.copy() for edges in vectors]
    if how == "position":
        others[2][7, 1] = np.nextafter(others[2][7, 1], np.float32(9))
    if how == "order of edges":
        others[2] = others[2][::-1]
    if how == "order of samples":
        others[2], others[4] = others[4], others[2]
    if how == "mirror image":
        others[2] = -others[2]
    if how == "fewer samples":
        others.pop()
    return others


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("position", "sample 2 has other positions"),
        ("order of edges", "sample 2 has"),
        ("order of samples", "sample 2 has"),
        ("mirror image", "sample 2 has"),
        ("fewer samples", "holds 5 samples, and the data has 4"),
    ],
)
def test_of_other_data_it_is_refused(tmp_path, vectors, how, said):
    path = tmp_path / "cache.h5"
    open_cache(path, vectors, 4).close()
    before = path.read_bytes()
    with pytest.raises(CacheError, match=said):
        open_cache(path, changed(vectors, how), 4)
    assert path.read_bytes() == before


def test_of_other_degrees_and_other_files_are_refused(tmp_path, vectors):
    path = tmp_path / "cache.h5"
    open_cache(path, vectors, 4).close()
    with pytest.raises(CacheError, match="up to order 4, and 6 is needed"):
        open_cache(path, vectors, 6)
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(CacheError, match="no HDF5 file"):
        open_cache(tmp_path / "text", vectors, 4)
    with h5py.File(tmp_path / "other", "w"):
        pass
    with pytest.raises(CacheError, match="no cache of harmonics"):
        HarmonicsCache(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        HarmonicsCache(tmp_path / "none")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CacheError, match="damaged"):
        open_cache(path, vectors, 4)


def test_a_network_gives_the_same_with_it(tmp_path):
    torch.manual_seed(0)
    network = NBodyNetwork(NBodyOptions(layers=1, max_degree=2))
    x, v, q = torch.randn(3, 5, 3), torch.randn(3, 5, 3), torch.randn(3, 5)
    vectors = [vectors_and_index(x[k : k + 1])[0].numpy() for k in range(3)]
    with open_cache(tmp_path / "c.h5", vectors, network.transformer.highest_order) as cache:
        cached = network(x, v, q, harmonics=cache.read([0, 1, 2]))
    for one, two in zip(network(x, v, q), cached, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
