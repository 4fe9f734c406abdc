"""A cache of harmonics is used for exactly the data that it was made of."""

import numpy as np
import pytest
import torch

from ase_biasgrad.se3_transformer.bases import spherical_harmonics
from ase_biasgrad.training.benchmarks.nbody.network import (
    NBodyNetwork,
    NBodyOptions,
    vectors_and_index,
)
from ase_biasgrad.training.benchmarks.qm9 import harmonics_cache
from ase_biasgrad.training.benchmarks.qm9.harmonics_cache import CacheError, open_cache


@pytest.fixture
def vectors() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 2, (edges, 3)).astype(np.float32) for edges in (6, 0, 12, 2, 20)]


@pytest.mark.parametrize("at_once", [1, 15, 100_000])
def test_it_holds_the_harmonics_and_is_reused(tmp_path, vectors, monkeypatch, at_once):
    monkeypatch.setattr(harmonics_cache, "EDGES_AT_ONCE", at_once)
    cache = open_cache(tmp_path, vectors, 6)
    found = cache.read([4, 1, 0])
    expected = spherical_harmonics(torch.from_numpy(np.concatenate([vectors[4], vectors[0]])), 6)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.dtype == torch.float32
    written = cache.path.stat().st_mtime_ns
    monkeypatch.setattr(harmonics_cache, "spherical_harmonics", None)  # not computed again
    again = open_cache(tmp_path, vectors, 6)
    assert torch.equal(again.read([4, 1, 0]), found)
    assert (again.path, again.path.stat().st_mtime_ns) == (cache.path, written)


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
    if how == "another bound":
        others[2], others[3] = others[2][:-1], np.concatenate([others[2][-1:], others[3]])
    return others


@pytest.mark.parametrize(
    "how",
    [
        "position",
        "order of edges",
        "order of samples",
        "mirror image",
        "fewer samples",
        "another bound",
    ],
)
def test_other_data_and_other_degrees_have_their_own(tmp_path, vectors, how):
    first = open_cache(tmp_path, vectors, 4)
    other = open_cache(tmp_path, changed(vectors, how), 4)
    higher = open_cache(tmp_path, vectors, 6)
    assert len({first.path, other.path, higher.path}) == 3
    expected = spherical_harmonics(torch.tensor(changed(vectors, how)[2].copy()), 4)
    torch.testing.assert_close(other.read([2]), expected, atol=1e-5, rtol=0)
    assert higher.read([0]).shape == (6, 49)


def test_damaged_files_are_refused(tmp_path, vectors):
    path = open_cache(tmp_path, vectors, 4).path
    whole = path.read_bytes()
    number = open_cache(tmp_path, vectors, 4).read([4])[7, 3].numpy().tobytes()
    place = whole.index(number)
    path.write_bytes(whole[:place] + b"\0\0\0\0" + whole[place + 4 :])
    with pytest.raises(CacheError, match="is damaged, delete it"):
        open_cache(tmp_path, vectors, 4).read([4])
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CacheError, match="is damaged, delete it"):
        open_cache(tmp_path, vectors, 4)


def test_a_network_gives_the_same_with_it(tmp_path):
    torch.manual_seed(0)
    network = NBodyNetwork(NBodyOptions(layers=1, max_degree=2))
    x, v, q = torch.randn(3, 5, 3), torch.randn(3, 5, 3), torch.randn(3, 5)
    vectors = [vectors_and_index(x[k : k + 1])[0].numpy() for k in range(3)]
    cache = open_cache(tmp_path, vectors, network.transformer.highest_order)
    cached = network(x, v, q, harmonics=cache.read([0, 1, 2]))
    for one, two in zip(network(x, v, q), cached, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
