"""N-body data and its table from the command line."""

from helpers import biasgrad

from ase_biasgrad.data.sets.nbody import open_dataset
from ase_biasgrad.training.benchmarks.nbody import table as nbody_benchmark
from ase_biasgrad.training.benchmarks.nbody.network import NBodyOptions


def test_the_table_from_the_command_line(tmp_path, monkeypatch):
    said = biasgrad(
        tmp_path, "data", "nbody", "-o", "n.h5", "--variant", "egnn",
        "--size", "train=40", "--size", "validation=6", "--size", "test=8",
    )  # fmt: skip
    assert "40 train, 6 validation, 8 test" in said
    assert open_dataset(tmp_path / "n.h5").system.half_width is None
    monkeypatch.setitem(
        nbody_benchmark.NETWORKS, "degree 0 only", NBodyOptions(layers=1, max_degree=0)
    )
    said = biasgrad(
        tmp_path, "benchmark", "nbody", "n.h5", "-o", "results", "--network", "degree 0 only",
        "--seed", "0", "--seed", "1", "--epochs", "1",
    )  # fmt: skip
    row = next(line for line in said.splitlines() if line.startswith("| degree 0 only"))
    assert "±" in row
    assert "| 2 | 1 |" in row
    assert "| no change |" in said
    assert len(list((tmp_path / "results").glob("*.safetensors"))) == 2
    assert row in biasgrad(tmp_path, "benchmark", "nbody", "n.h5", "-o", "results")
    # other options and other data beside them: nothing is replaced, nothing is mixed
    again = ("benchmark", "nbody", "n.h5", "-o", "results", "--network", "degree 0 only")
    said = biasgrad(tmp_path, *again, "--epochs", "2", "--batch-size", "10")
    rows = [line for line in said.splitlines() if line.startswith("| degree 0 only")]
    assert [line.split("|")[5].strip() for line in rows] == ["1", "2"]
    assert [line.split("|")[8].strip() for line in rows] == ["batch_size 64", "batch_size 10"]
    assert rows[0].split("|")[2:8] == row.split("|")[2:8]
    assert "is there already" in biasgrad(tmp_path, *again, "--epochs", "1")
    assert len(list((tmp_path / "results").glob("*"))) == 6
    sizes = ("--size", "train=10", "--size", "validation=6", "--size", "test=8")
    biasgrad(tmp_path, "data", "nbody", "-o", "m.h5", "--variant", "egnn", *sizes)
    assert "| degree 0" not in biasgrad(tmp_path, "benchmark", "nbody", "m.h5", "-o", "results")
    said = biasgrad(tmp_path, "benchmark", "nbody", "n.h5", "--network", "mlp", code=2)
    assert "choose of" in said
    assert "train=" in biasgrad(tmp_path, "data", "nbody", "-o", "x", "--size", "all=3", code=2)
