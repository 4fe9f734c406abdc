"""Losses of frames of which some lack forces, stress or energies."""

import numpy as np
import pytest
import torch
from conftest import small_potential
from helpers import options, write_clusters, write_without

from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.training.config import ForceStageOptions, config_from
from ase_biasgrad.training.elastic import springs_of
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.run import train
from ase_biasgrad.training.stages.force import ForceStage, JointStage, check_labels, wild_atoms

FRAMES = 24


def without(path, source, **lacking) -> DeviceFrames:
    return DeviceFrames(Dataset(write_without(path, source, **lacking)), range(FRAMES), 4.0)


def stage_of(kind=ForceStage, **options) -> ForceStage:
    if kind is JointStage:
        options["joint"] = {"energy_weight": 0.3}
    return kind(small_potential("painn").double(), ForceStageOptions(**options), 0.7, 0.02)


def loss_and_gradient(stage, batch):
    loss = stage.loss(batch, stage.predicted_in_training(batch))
    stage.potential.zero_grad()
    stage.backward(loss)
    parameters = [p for p in stage.potential.parameters() if p.grad is not None]
    return loss.item(), torch.cat([p.grad.flatten() for p in parameters])


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
@pytest.mark.parametrize("elastic_weight", [0.0, 3.0])
def test_frames_without_forces_are_as_if_they_were_not_there(tmp_path, loss, elastic_weight):
    source = write_clusters(tmp_path / "all.h5", FRAMES, periodic=True)
    lacking = range(0, FRAMES, 3)
    frames = without(tmp_path / "x.h5", source, forces=lacking, stress=lacking)
    stage = stage_of(loss=loss, elastic_weight=elastic_weight)
    found, gradient = loss_and_gradient(stage, frames.batch(range(FRAMES)))
    kept = [k for k in range(FRAMES) if k not in lacking]
    expected, of_kept = loss_and_gradient(stage, frames.batch(kept))
    assert found == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, of_kept, rtol=1e-9, atol=1e-12)
    assert of_kept.abs().max() > 0


@pytest.mark.parametrize("kind", [ForceStage, JointStage])
def test_each_term_is_a_mean_over_its_own_labels(tmp_path, kind):
    source = write_clusters(tmp_path / "all.h5", FRAMES, periodic=True)
    lacking = {
        "forces": set(range(0, FRAMES, 3)),
        "stress": set(range(5, FRAMES)),
        "energy": set(range(1, FRAMES, 2)),
    }
    frames = without(tmp_path / "x.h5", source, **lacking)
    stage = stage_of(kind, loss="l2", stress_weight=0.1, elastic_weight=2.0)
    batch = frames.batch(range(FRAMES))
    predicted = stage.predicted_in_training(batch)
    loss = stage.loss(batch, predicted)
    counts = frames.atom_counts
    forces = {
        k: (p - r).detach()
        for k, (p, r) in enumerate(
            zip(predicted["forces"].split(list(counts)), batch.forces.split(list(counts)), strict=1)
        )
        if k not in lacking["forces"]
    }
    errors = torch.cat(list(forces.values())) / 0.7
    expected = errors.square().sum(dim=1).div(3).mean()
    alone = [frames.batch([k]) for k in forces]
    expected += (
        2.0
        * torch.stack(
            [
                springs_of(one.graph, one.counts).lengths(forces[k] / 0.7).square()[0]
                for k, one in zip(forces, alone, strict=True)
            ]
        ).mean()
    )
    stress = (predicted["stress"] - batch.stress)[:5] / 0.02
    expected += 0.1 * stress.square().mean()
    if kind is JointStage:
        expected += 0.3 * ((predicted["energy"] - batch.energy)[::2] / 0.7).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_a_batch_without_any_label_has_no_loss_and_no_gradient(tmp_path):
    source = write_clusters(tmp_path / "all.h5", FRAMES)
    frames = without(tmp_path / "x.h5", source, forces=range(8), energy=range(8))
    for kind in (ForceStage, JointStage):
        found, gradient = loss_and_gradient(stage_of(kind), frames.batch(range(8)))
        assert found == 0
        assert not gradient.any()


@pytest.mark.parametrize("joint", [None, {"energy_weight": 0.1}])
def test_training_uses_the_labels_that_are_there_and_counts_them(tmp_path, joint):
    source = write_clusters(tmp_path / "all.h5", periodic=True)
    lacking = {"forces": range(0, 60, 3), "stress": range(0, 60, 2), "energy": range(0, 60, 4)}
    write_without(tmp_path / "x.h5", source, **lacking)
    config = options(tmp_path / "x.h5", epochs=12, batch_size=2, joint=joint)
    result = train(config_from(config), tmp_path / "run")
    labelled = load_checkpoint(result.checkpoint).training["data"]["labelled"]
    assert 20 < labelled["forces"] < 33
    assert labelled["energy"] > labelled["forces"] > labelled["stress"]
    assert result.after_bias.labelled["forces"] < 10
    assert result.after_bias.forces.mae < 0.8 * result.after_bias.force_rms
    assert np.isfinite(result.after_bias.energy.mae)


def test_data_without_forces_in_one_of_the_splits_are_refused(tmp_path):
    source = write_clusters(tmp_path / "all.h5", 60)
    write_without(tmp_path / "x.h5", source, forces=range(40, 60))
    config = options(tmp_path / "x.h5")
    config["data"] |= {"contiguous": True}
    with pytest.raises(ValueError, match=r"\(validation frames\): has no forces in any frame"):
        train(config_from(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_are_neither_there_nor_missing_are_named(tmp_path):
    frames = without(tmp_path / "x.h5", write_clusters(tmp_path / "all.h5", FRAMES), energy=[3])
    check_labels(frames, ("energy", "forces"), "x")
    with pytest.raises(ValueError, match="x: frame 3 has no finite energy"):
        check_labels(frames, ("energy",), "x", in_all=True)
    frames.forces[int(frames.atom_counts[:6].sum()) + 1, 2] = torch.nan
    with pytest.raises(ValueError, match="x: frame 6 has no finite forces"):
        check_labels(frames, ("forces",), "x")


def test_wild_forces_are_told_from_the_frames_that_have_forces():
    forces = torch.full((100, 3), torch.nan, dtype=torch.float64)
    forces[:5] = 1.0
    assert wild_atoms(forces).tolist() == []
    forces[5:60] = 1.0
    forces[7] = 1000.0
    assert wild_atoms(forces).tolist() == [7]
