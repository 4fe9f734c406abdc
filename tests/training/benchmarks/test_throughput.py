"""The comparison with SchNetPack's own task: both sides train, on the same function."""

import pytest
from helpers import write_clusters
from typer.testing import CliRunner

from ase_biasgrad.cli import app
from ase_biasgrad.training.benchmarks.throughput import Setting, compare


@pytest.mark.parametrize(
    ("backbone", "size", "rival"),
    [("painn", "128×3", "SchNetPack"), ("tensornet", "64×2", "autograd")],
)
def test_both_sides_train_and_give_the_same_forces(tmp_path, backbone, size, rival):
    data = write_clusters(tmp_path / "x.h5", frames=12)
    options = ["--data", str(data), "--backbone", backbone, "--steps", "2", "--rounds", "1"]
    done = CliRunner().invoke(app, ["benchmark", "training", *options, "--batch-size", "4"])
    assert done.exit_code == 0, done.output
    assert "schnetpack 2." in done.output
    row = done.output.strip().splitlines()[-1].split("|")
    assert [row[1].strip(), row[4].strip()] == [f"{backbone} {size}", rival]
    theirs, ours, ratio, processor_ratio, *memory, difference = (float(cell) for cell in row[5:-1])
    assert theirs > 0
    assert ratio == pytest.approx(ours / theirs, rel=0.1)
    assert processor_ratio > 0
    assert min(memory) > 50
    assert 0 < difference < 3e-5  # splines at few knots


def test_too_few_frames_are_refused(tmp_path):
    data = write_clusters(tmp_path / "x.h5", frames=3)
    with pytest.raises(ValueError, match="has 3 frames, fewer than one batch of 10"):
        compare(Setting(str(data), "schnet", {"cutoff": 4.0}), tmp_path)
