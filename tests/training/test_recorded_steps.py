"""Steps over memory that stays: filled batches, gradients, whole runs. Recording needs a GPU."""

from dataclasses import replace

import pytest
import torch
from conftest import small_potential
from test_training import options, rows, write_clusters

from ase_biasgrad.backbones.lean_forward import lean
from ase_biasgrad.cuda_graphs import bucket
from ase_biasgrad.dataset import Dataset
from ase_biasgrad.training import run
from ase_biasgrad.training.config import ConfigError, ForceStageOptions, config_from
from ase_biasgrad.training.elastic import springs_of
from ase_biasgrad.training.force_stage import ForceStage
from ase_biasgrad.training.recorded_steps import as_it_is, filled_up
from ase_biasgrad.training.resident import Batch, ResidentFrames

SETS = {"molecules": {}, "crystals": {"periodic": True}}


def loss_and_gradients(stage: ForceStage, batch, share=1.0) -> list[torch.Tensor]:
    loss = stage.loss(batch, stage.predicted_in_training(batch), share)
    return [loss.detach(), *torch.autograd.grad(loss, stage._learning())]


def assert_the_same(found, expected) -> None:
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=sorted(SETS))
def frames(request, tmp_path) -> ResidentFrames:
    path = write_clusters(tmp_path / "x.h5", 24, **SETS[request.param])
    return ResidentFrames(Dataset(path), range(24), 4.0)


def stage_of(name: str, frames: ResidentFrames, **force_stage) -> ForceStage:
    potential = small_potential(name).double()
    for parameter in potential.backbone.energy_shifts():
        parameter.requires_grad_(False)
    has_stress = frames.stress is not None
    return ForceStage(
        potential, ForceStageOptions(**force_stage), 0.5, 0.01 if has_stress else None
    )


def with_springs(batch: Batch, largest: int) -> Batch:
    return replace(batch, springs=springs_of(batch.graph, batch.counts, largest))


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_what_fills_a_batch_changes_no_gradient(name, frames, monkeypatch):
    stage = stage_of(name, frames)
    batch = frames.batch([3, 7, 8, 20])
    expected = loss_and_gradients(stage, batch)
    filled = filled_up(with_springs(batch, 7))
    graph = filled.batch.graph
    assert len(graph.numbers) == bucket(len(batch.graph.numbers) + 2, 32)
    assert graph.edge_index.shape[1] == 2 * bucket(batch.graph.edge_index.shape[1] // 2, 256)
    assert_the_same(loss_and_gradients(stage, filled.batch, filled.share), expected)
    # as on a GPU
    kind = type(lean(stage.potential.backbone))
    monkeypatch.setattr(kind, "forward", kind.by_autograd)
    assert_the_same(loss_and_gradients(stage, filled.batch, filled.share), expected)


@pytest.mark.parametrize(
    ("name", "force_stage"),
    [
        ("schnet", {}),
        ("painn", {}),
        ("schnet", {"elastic_weight": 0.0}),
        ("schnet", {"loss": "l2"}),
    ],
)
def test_every_replay_gives_the_gradients_of_its_batch(name, force_stage, frames):
    stage = stage_of(name, frames, **force_stage)
    stage.record_steps(filled_up, lambda step: step, largest=9)
    steps = stage._recorder()
    for places in ([0, 1, 2], [5, 3, 4], [9, 11, 10], [21, 22, 23, 1, 2]):
        batch = frames.batch(places)
        expected = loss_and_gradients(stage, batch)
        loss = steps(batch)
        steps.set_gradients()
        assert_the_same([loss, *(p.grad for p in stage._learning())], expected)
    assert steps.recordings.captures == 1  # all of these have one shape


def test_every_tensor_of_a_recording_takes_its_new_values(tmp_path):
    frames = ResidentFrames(
        Dataset(write_clusters(tmp_path / "x.h5", sizes=(5, 4))), range(24), 4.0
    )
    of_places = [filled_up(with_springs(frames.batch(places), 5)) for places in ([0, 1], [1, 2])]
    assert not torch.equal(*(filled.batch.counts for filled in of_places))
    held, source = of_places[0].copy(), of_places[1]
    for target, values in zip(held.tensors(), source.tensors(), strict=True):
        target.copy_(values)
    for part in ("graph", "springs"):
        for name, value in vars(getattr(source.batch, part)).items():
            assert torch.equal(getattr(getattr(held.batch, part), name), value), (part, name)
    for name in ("counts", "energy", "forces"):
        assert torch.equal(getattr(held.batch, name), getattr(source.batch, name)), name


@pytest.mark.parametrize("sizes", [(5,), (5, 4, 4)])
def test_a_run_with_recorded_steps_is_the_run_without(tmp_path, monkeypatch, sizes):
    path = write_clusters(tmp_path / "x.h5", sizes=sizes)

    def record(stage, config, training, world_size):
        assert training.have_one_shape == (len(sizes) == 1)
        fill = as_it_is if training.have_one_shape else filled_up
        stage.record_steps(fill, lambda step: step, int(training.atom_counts.max()))

    monkeypatch.setattr(run, "_record_steps", record)
    for recorded in (False, True):
        config = options(path, gradient_clip=0.5)
        config["trainer"] |= {"cuda_graphs": recorded, "precision": "float64"}
        run.train(config_from(config), tmp_path / str(recorded))
    for a, b in zip(rows(tmp_path / "False"), rows(tmp_path / "True"), strict=True):
        for column in ("step", "train_loss", "val_loss", "val_force_mae"):
            assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-9), column


def test_where_steps_cannot_be_recorded_the_run_does_not_begin(tmp_path):
    config = options(write_clusters(tmp_path / "x.h5"))
    config["trainer"]["cuda_graphs"] = True
    with pytest.raises(ConfigError, match=r"trainer\.cuda_graphs: it needs a CUDA device"):
        run.train(config_from(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("name", ["schnet", "painn"])
@pytest.mark.parametrize("periodic", [False, True])
def test_graphs_on_cuda_follow_the_cpu(tmp_path, name, periodic):
    path = write_clusters(tmp_path / "x.h5", periodic=periodic)
    for device in ("cpu", "cuda"):
        config = options(path, epochs=3)
        config["backbone"]["name"] = name
        config["trainer"] |= {"accelerator": device, "cuda_graphs": device == "cuda"}
        run.train(config_from(config), tmp_path / device)
    for a, b in zip(rows(tmp_path / "cpu"), rows(tmp_path / "cuda"), strict=True):
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=1e-2)
