"""Dataset files with every kind of fault: an error that names the file, or the right values."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from helpers import write_clusters
from mutations import mutants, outcomes

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.digests import damages
from ase_biasgrad.data.sets.nbody import open_dataset, write_dataset
from ase_biasgrad.data.writer import DatasetAppender


def content(path) -> tuple[str, list[tuple]]:
    """Digest, and all values frame by frame."""
    with Dataset(path) as dataset:
        names = ("positions", "forces", "stress", "cell", "pbc")
        return dataset.hash(), [
            (frame.numbers.tolist(), frame.energy, *(getattr(frame, k).tobytes() for k in names))
            for frame in dataset
        ]


def append_without_end(path, frames) -> None:
    """Append frames that stay behind the HDF5 part, like a process that is killed."""
    with pytest.raises(KeyboardInterrupt), DatasetAppender(path) as writer:
        for frame in frames:
            names = ("energy", "forces", "stress", "cell", "pbc")
            labels = {name: getattr(frame, name) for name in names}
            writer.append(frame.numbers, frame.positions, **labels)
        raise KeyboardInterrupt


@pytest.mark.parametrize("count", [600, pytest.param(100_000, marks=pytest.mark.slow)])
# in columns of one piece, in chunks, and of a process that was killed while it added eight
@pytest.mark.parametrize(("frames", "added"), [(30, 0), (150, 0), (30, 8)])
def test_mutated_datasets_are_refused_or_right(tmp_path, frames, added, count):
    path = write_clusters(tmp_path / "x.h5", frames, periodic=True)
    behind = path.stat().st_size
    append_without_end(path, list(Dataset(path))[:added])
    digest, right = content(path)

    def judge(mutated) -> str:
        found, values = content(mutated)
        if values == right:
            return "right"
        if len(values) >= frames and values == right[: len(values)]:
            return "cut"  # in a frame, which is then one in progress
        assert found != digest
        assert damages(mutated)  # which `biasgrad data info --check` shows
        return "digests"

    mutated, whole = tmp_path / "mutated.h5", path.read_bytes()
    often = range(behind, len(whole)) if added else range(6000)
    said = outcomes(mutants(whole, count // 2, seed=frames + added), mutated, judge)
    said += outcomes(mutants(whole, count // 2, frames + added, often), mutated, judge)
    assert said["refused"] > (0.7 if added else 0.8) * count
    assert said["digests"] < 0.01 * count
    assert (said["cut"] > 0) == bool(added)


@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_simulations_are_refused_or_right(tmp_path, count):
    path = tmp_path / "n.h5"
    write_dataset(path, "egnn", sizes={"train": 3, "validation": 2, "test": 2})

    def trajectories(file) -> list:
        data = open_dataset(file)
        parts = [data.read(split) for split in ("train", "validation", "test")]
        return [str(data.system), *(a.tobytes() for part in parts for a in vars(part).values())]

    right = trajectories(path)
    cases = mutants(path.read_bytes(), count, 0)
    said = outcomes(cases, path, lambda file: "right" if trajectories(file) == right else "wrong")
    assert said["refused"] > 0.8 * count
    assert not said["wrong"]


def replaced(group: h5py.Group, name: str, values) -> None:
    del group[name]
    group[name] = values


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f, g: f.attrs.pop("version"), "version"),
        (lambda f, g: f.attrs.__setitem__("version", "new"), "invalid literal"),
        (lambda f, g: f.attrs.pop("provenance"), "provenance"),
        (lambda f, g: f.attrs.__setitem__("provenance", "[" * 10**5), "damaged"),
        (lambda f, g: f.attrs.__setitem__("frames", 10**15), "do not add up"),
        (lambda f, g: f.attrs.__setitem__("frames", "all"), "invalid literal"),
        (lambda f, g: f.move("frames", "farmes"), "frames"),
        (lambda f, g: g.pop("numbers"), "numbers"),
        (lambda f, g: g.pop("positions"), "positions"),
        (lambda f, g: replaced(g, "numbers", np.zeros(4, int)), "no atomic numbers"),
        (lambda f, g: replaced(g, "numbers", np.full(4, 200)), "no atomic numbers"),
        (lambda f, g: replaced(g, "numbers", np.full((2, 2), 1)), "no atomic numbers"),
        (lambda f, g: replaced(g, "index", np.arange(9)), r"do not add up|expected \(9"),
        (lambda f, g: replaced(g, "index", np.full(10, 4)), "not frames in"),
        (lambda f, g: replaced(g, "index", np.arange(10)), "frame [0-9]+ is missing"),
        (lambda f, g: replaced(g, "index", g["index"][()] - 15), "index"),
        (lambda f, g: replaced(g, "index", g["index"][()] + 10**9), "out of bounds"),
        (lambda f, g: replaced(g, "index", g["index"][()] + 0.25), "index"),
        (lambda f, g: replaced(g, "index", "all"), "index"),
        (lambda f, g: replaced(g, "forces", np.zeros((10, 3, 3))), r"expected \(10, 4, 3\)"),
        (lambda f, g: replaced(g, "forces", np.zeros(1)), r"expected \(10, 4, 3\)"),
        (lambda f, g: replaced(g, "forces", np.zeros((10, 4, 3), "S3")), "S3"),
        (lambda f, g: replaced(g, "energy", np.zeros((10, 1))), r"expected \(10,\)"),
        (lambda f, g: replaced(g, "energy", np.zeros(10, complex)), "complex"),
        (lambda f, g: g.create_dataset("gap", (10**15,), float), r"expected \(10,\)"),
        (lambda f, g: g.create_group("gap"), "gap"),
        (lambda f, g: g.__setitem__("gap", h5py.SoftLink("/nowhere")), "gap"),
        (lambda f, g: g.__setitem__("gap", h5py.ExternalLink("y.h5", "/z")), "gap"),
    ],
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_datasets_that_lie_are_refused(tmp_path, edit, message, in_memory):
    path = write_clusters(tmp_path / "x.h5", 15)
    with h5py.File(path, "r+") as file:
        edit(file, file["frames/000001_H3O"])
    with pytest.raises(DataError, match=rf"x\.h5: .*{message}"):
        list(Dataset(path, in_memory))
