"""Training on Lennard-Jones data: what must hold of stages, runs and reports."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import copper, ethanol, small_potential
from helpers import options, write_clusters, write_without
from lightning_fabric.plugins.environments import mpi

from ase_biasgrad.bias import N_ELEMENTS
from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.numerics.threads import threads_allowed
from ase_biasgrad.training import run
from ase_biasgrad.training.config import ConfigError, config_from, describe_options, load_config
from ase_biasgrad.training.evaluation.evaluate import evaluate, table
from ase_biasgrad.training.evaluation.predict import predict
from ase_biasgrad.training.frames.batches import EpochBatches
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.run import resume, train
from ase_biasgrad.training.stages.bias import fit_bias
from ase_biasgrad.training.stages.force import ForceStage


def rows(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_resident_frames_give_what_the_dataset_holds(tmp_path):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", periodic=True))
    chosen = [7, 3, 59, 0, 12]
    frames = DeviceFrames(dataset, chosen, 4.0)
    batch = frames.batch([4, 0, 2])
    expected = [dataset[chosen[k]] for k in (4, 0, 2)]
    graph = collate([graph_from_atoms(frame.atoms(), 4.0) for frame in expected])
    for name in ("positions", "numbers", "cell", "pbc", "batch"):
        assert torch.equal(getattr(batch.graph, name), getattr(graph, name)), name
    edges = [
        set(zip(*g.edge_index.tolist(), *g.edge_shift.T.tolist(), strict=True))
        for g in (batch.graph, graph)
    ]
    assert edges[0] == edges[1]
    np.testing.assert_array_equal(batch.energy, [frame.energy for frame in expected])
    np.testing.assert_array_equal(batch.forces, np.concatenate([f.forces for f in expected]))
    np.testing.assert_array_equal(batch.stress, [frame.stress for frame in expected])
    np.testing.assert_array_equal(batch.counts, [len(frame.numbers) for frame in expected])


def test_batches_are_seeded_and_shared_out():
    one = EpochBatches(20, 6, seed=3)
    one.set_epoch(2)
    whole = list(one)
    assert sorted(sum(whole, [])) == list(range(20))
    shares = [EpochBatches(20, 3, 3, rank, 2) for rank in range(2)]
    for share in shares:
        share.set_epoch(2)
    for k, pair in enumerate(zip(*shares, strict=True)):
        assert sum(pair, []) == whole[k]
    one.set_epoch(3)
    assert list(one) != whole
    with pytest.raises(ValueError, match="do not fill"):
        EpochBatches(5, 3, 0, 0, 2)


def test_validation_loss_does_not_depend_on_its_batches(tmp_path, monkeypatch):
    path = write_clusters(tmp_path / "x.h5", periodic=True)
    losses = []
    for times in (1, 4):
        monkeypatch.setattr(run, "LARGER_IN_VALIDATION", times)
        train(config_from(options(path, epochs=1, batch_size=3)), tmp_path / str(times))
        losses.append(float(rows(tmp_path / str(times))[0]["val_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("periodic", [False, True])
def test_two_stages_learn_and_the_bias_mends_the_energy_alone(tmp_path, periodic):
    path = write_clusters(tmp_path / "x.h5", periodic=periodic)
    result = train(config_from(options(path, epochs=25)), tmp_path / "run")
    before, after = result.before_bias, result.after_bias
    assert after.forces.mae < 0.6 * after.force_rms
    assert before.forces == after.forces
    assert before.energy.mae > 1e4
    assert after.energy.mae < 0.5
    assert after.energy_zero == "per-element"
    loaded = load_checkpoint(result.checkpoint)
    assert loaded.potential.bias.fit_report["rank"] == 2
    assert loaded.training["data"]["sha256"] == Dataset(path).hash()
    curve = [float(row["val_force_mae"]) for row in rows(tmp_path / "run")]
    assert len(curve) == 25
    assert min(curve) < 0.8 * curve[0]
    for name in ("errors.png", "learning_curve.png", "summary.txt", "summary.json"):
        assert (tmp_path / "run" / "report" / name).stat().st_size > 100
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["efwt"]["both"] <= 1


def test_joint_training_centres_energies(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    config = config_from(options(path, epochs=8, joint={"energy_weight": 0.1}))
    result = train(config, tmp_path / "run")
    assert result.after_bias.energy.mae < 5.0
    potential = load_checkpoint(result.checkpoint).potential
    assert potential.bias.zero == "per-element"


def assert_same_curve(one, two) -> None:
    assert len(one) == len(two) == 6
    for whole, resumed in zip(one, two, strict=True):
        # float32 sums differ in their last bits between processes, as memory is aligned otherwise
        for column in ("epoch", "step", "learning_rate", "train_loss", "val_loss", "val_force_mae"):
            a, b = (float(row[column] or "nan") for row in (resumed, whole))  # not validated
            assert a == pytest.approx(b, rel=1e-4, nan_ok=True), column


def test_a_run_that_a_full_disk_ended_goes_on_with_the_same_curve(tmp_path, monkeypatch):
    path = write_clusters(tmp_path / "x.h5")
    train(config_from(options(path, epochs=6)), tmp_path / "whole")
    saved, really = [], torch.save

    def until_full(state, where, **more):
        saved.append(where)
        really(state, where, **more)
        if len(saved) > 5:
            with open(where, "r+b") as file:
                file.truncate(1000)
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(torch, "save", until_full)
        train(config_from(options(path, epochs=6)), tmp_path / "cut")
    states = sorted(file.name for file in (tmp_path / "cut" / "states").iterdir())
    assert states == ["best.ckpt", "last.ckpt"]
    assert 0 < len(rows(tmp_path / "cut")) < 6
    resume(tmp_path / "cut")
    assert_same_curve(rows(tmp_path / "whole"), rows(tmp_path / "cut"))


def test_an_interrupted_run_goes_on_with_the_same_curve(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    train(config_from(options(path, epochs=6)), tmp_path / "whole")
    script = (
        "import sys, json\nfrom ase_biasgrad.training.run import train\n"
        "from ase_biasgrad.training.config import config_from\n"
        "train(config_from(json.loads(sys.argv[1])), sys.argv[2])"
    )
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(options(path, epochs=6)), str(cut)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if (cut / "states" / "last.ckpt").exists():
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (cut / "states" / "last.ckpt").exists()
    resume(cut)
    assert_same_curve(rows(tmp_path / "whole"), rows(cut))
    with pytest.raises(FileExistsError, match="--resume"):
        train(config_from(options(path)), cut)


def test_a_run_that_validates_now_and_then_goes_on(tmp_path, monkeypatch):
    path = write_clusters(tmp_path / "x.h5")
    given = config_from(options(path, epochs=6, validate_every=2))
    train(given, tmp_path / "whole")
    really, saved = torch.save, []

    def until_killed(state, where, **more):
        saved.append(where)
        if len(saved) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(state, where, **more)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(torch, "save", until_killed)
        train(given, tmp_path / "cut")
    resume(tmp_path / "cut")
    assert_same_curve(rows(tmp_path / "whole"), rows(tmp_path / "cut"))


def test_resuming_notices_changed_data(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    train(config_from(options(path, epochs=1)), tmp_path / "run")
    write_clusters(path, frames=61)
    with pytest.raises(ConfigError, match="has changed since"):
        resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="not a run folder"):
        resume(tmp_path)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_losses_and_schedules(tmp_path, loss, schedule):
    path = write_clusters(tmp_path / "x.h5", energies=False)
    stage = {
        "epochs": 2,
        "loss": loss,
        "ema_decay": 0.0,
        "schedule": {"name": schedule, "warmup_steps": 3},
    }
    result = train(config_from(options(path, **stage)), tmp_path / "run")
    assert np.isfinite(result.after_bias.forces.mae)
    assert result.after_bias.energy is None
    assert load_checkpoint(result.checkpoint).potential.bias.zero == "none"


def test_float64_training(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    config = options(path, epochs=1)
    config["trainer"]["precision"] = "float64"
    result = train(config_from(config), tmp_path / "run")
    parameters = list(load_checkpoint(result.checkpoint).potential.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float64}


@pytest.mark.parametrize("method", ["mean", "median", "efwt", "least-squares"])
def test_the_bias_stage_leaves_predictions_of_forces_alone(tmp_path, method):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", periodic=True))
    potential = small_potential("painn")
    frames = DeviceFrames(dataset, range(len(dataset)), potential.cutoff)
    before = predict(potential, frames, stress=True)
    left = fit_bias(potential, frames, method)
    after = predict(potential, frames, stress=True)
    assert np.array_equal(before.forces, after.forces)
    assert np.array_equal(before.stress, after.stress)
    np.testing.assert_allclose(left, frames.energy.numpy() - after.energy, atol=1e-8)
    again = fit_bias(potential, frames, method)
    np.testing.assert_allclose(again, left, atol=1e-8)


def test_evaluation_tells_an_offset_from_a_sign_or_unit_error(tmp_path):
    potential = small_potential()
    graphs = [ethanol(seed) for seed in range(20)]
    factors = {"consistent": 1.0, "sign error": -1.0, "kcal/mol": 23.06}
    for verdict, factor in factors.items():
        path = tmp_path / f"{factor}.h5"
        with DatasetWriter(path) as writer:
            for atoms in graphs:
                graph = graph_from_atoms(atoms, potential.cutoff)
                values = potential.evaluate(graph, ["energy", "forces"])
                writer.append(
                    atoms.numbers,
                    atoms.positions,
                    energy=factor * float(values["energy"]) - 100.0,
                    forces=values["forces"].numpy(),
                )
        frames = DeviceFrames(Dataset(path), range(20), potential.cutoff)
        report = evaluate(potential, frames)
        assert verdict in report.relation.verdict
        assert report.relation.slope == pytest.approx(factor, rel=1e-3)
        assert report.forces.mae < 1e-6
        assert report.efwt.forces == 1.0
        assert report.efwt.both == 0.0
        assert "EFwT" in table(report)
        spread = report.by_composition["C2H6O"].spread
        assert spread < 1e-5 if factor == 1.0 else spread > 1e-3


def test_the_table_of_a_known_error(tmp_path):
    potential = small_potential()
    atoms = copper()
    values = potential.evaluate(graph_from_atoms(atoms, 4.0), ["energy", "forces", "stress"])
    with DatasetWriter(tmp_path / "x.h5") as writer:
        writer.append(
            atoms.numbers,
            atoms.positions,
            energy=float(values["energy"]) + 0.016,
            forces=values["forces"].numpy() + 0.02,
            stress=values["stress"][0].numpy() + 0.003,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
        )
    report = evaluate(potential, DeviceFrames(Dataset(tmp_path / "x.h5"), [0], 4.0))
    assert report.energy.mae == pytest.approx(0.016)
    assert report.energy_per_atom.mae == pytest.approx(0.004)
    assert report.forces.rmse == pytest.approx(0.02)
    assert report.stress.mae == pytest.approx(0.003)
    assert report.efwt.both == 1.0
    assert "the energy zero is not known for Cu4: " in table(report)
    potential.bias.fit(np.zeros(1), np.eye(1, N_ELEMENTS, 29, dtype=np.int64) * 4)
    report = evaluate(potential, DeviceFrames(Dataset(tmp_path / "x.h5"), [0], 4.0))
    assert "energy zero is not known" not in table(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"force_stage": {"epochs": 0}}, "force_stage.epochs"),
        ({"force_stage": {"epoch": 5}}, "force_stage.epoch: there is no such option"),
        ({"backbone": {"name": "mace"}}, "no backbone 'mace'"),
        ({"backbone": {"name": "painn", "width": 3}}, "painn has no argument 'width'"),
        (
            {"backbone": {"name": "painn", "features": "many"}},
            "features=many must be like 128: a whole",
        ),
        (
            {"backbone": {"name": "painn", "features": 2.5}},
            "features=2.5 must be like 128: a whole",
        ),
        ({"backbone": {"name": "painn", "cutoff": True}}, "cutoff=True must be like 5.0: a number"),
        ({"trainer": {"accelerator": "abacus"}}, "trainer.accelerator: Input should be 'auto'"),
        ({"data": {"train": 10}}, "data.path: Field required"),
    ],
)
def test_bad_options_are_named_before_any_work(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from({"data": {"path": "x.h5"}, **change})


def test_configuration_files_and_overrides(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: {path: d.h5}\nforce_stage: {epochs: 7}\n")
    config = load_config(file, ["force_stage.epochs=9", "backbone.features=32"])
    assert config.data.path == tmp_path / "d.h5"
    assert config.force_stage.epochs == 9
    assert config.backbone.arguments == {"features": 32}
    with pytest.raises(ConfigError, match="write it as option=value"):
        load_config(file, ["force_stage.epochs"])
    file.write_text("- 1")
    with pytest.raises(ConfigError, match="is not a mapping of options"):
        load_config(file)
    described = describe_options()
    assert "learning_rate: 0.006" in described
    assert "schedule:  # Learning rate" in described
    assert "one of cosine, plateau, constant" in described
    assert "# energy_weight: 0.05" in described
    assert "# painn takes features: 128, interactions: 3" in described
    lines = [line.strip() for line in described.splitlines()]
    assert all("  # " in line or line.startswith("#") for line in lines)  # none without its text


def test_data_that_cannot_be_used_is_refused(tmp_path):
    with DatasetWriter(tmp_path / "e.h5") as writer:
        for k in range(60):
            writer.append(np.array([1]), np.zeros((1, 3)), energy=float(k))
    with pytest.raises(ValueError, match="has no forces"):
        train(config_from(options(tmp_path / "e.h5")), tmp_path / "run")
    for change, message in (
        (
            {"backbone": {"name": "painn", "features": -4}},
            "features=-4 must be like 128: a whole",
        ),
        ({"backbone": {"name": "painn", "cutoff_function": "step"}}, "choose from"),
        ({"trainer": {"strategy": "foo"}}, "strategy"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config_from({**options(tmp_path / "e.h5"), **change}), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing that the next attempt stumbles over
    config = options(write_clusters(tmp_path / "x.h5"))
    config["data"]["train"] = 600
    with pytest.raises(ValueError, match="there are 60"):
        train(config_from(config), tmp_path / "run2")
    assert not (tmp_path / "run2").exists()
    assert N_ELEMENTS == 119


def test_one_process_asks_no_cluster(tmp_path, monkeypatch):
    (tmp_path / "mpi4py").mkdir()  # without a library of MPI
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text('raise RuntimeError("cannot load MPI library")')
    for name in [name for name in sys.modules if name.split(".")[0] == "mpi4py"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mpi, "_MPI4PY_AVAILABLE", True)
    # a job of two tasks, one of which is this one
    for name, value in (("NTASKS", "2"), ("JOB_NAME", "run"), ("PROCID", "0"), ("NODEID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    config = options(write_clusters(tmp_path / "x.h5"), epochs=1)
    train(config_from(config), tmp_path / "run")
    assert (tmp_path / "run" / "potential.safetensors").exists()


@pytest.mark.parametrize(("sizes", "every"), [((4,), 1), ((2, 5, 3), 3)])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, sizes, every):
    path = write_clusters(tmp_path / "all.h5", sizes=sizes)
    lacking = [k for k in range(60) if k % every == 1]
    path = write_without(tmp_path / "x.h5", path, forces=lacking)
    script = tmp_path / "ddp.py"
    script.write_text(
        "import sys, json\nfrom ase_biasgrad.training.run import train\n"
        "from ase_biasgrad.training.config import config_from\n"
        "if __name__ == '__main__':\n"
        "    train(config_from(json.loads(sys.argv[1])), sys.argv[2])\n"
    )
    one = options(path, epochs=3, batch_size=8)
    two = options(path, epochs=3, batch_size=4)
    for config in (one, two):
        config["trainer"]["precision"] = "float64"  # so that only the order of sums differs
    two["trainer"] |= {"devices": 2, "strategy": "ddp"}
    for name, config in (("one", one), ("two", two)):
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(config), str(tmp_path / name)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    columns = ("learning_rate", "train_loss", "val_loss", "val_force_mae", "val_force_rmse")
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["step"] == b["step"]
        for column in columns:
            assert float(a[column]) == pytest.approx(float(b[column]), rel=1e-8), column


def test_the_precision_of_products_is_that_asked_for_during_the_training_alone(
    tmp_path, monkeypatch
):
    seen = set()
    step = ForceStage.training_step

    def training_step(self, batch, batch_idx):
        seen.add(torch.get_float32_matmul_precision())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ForceStage, "training_step", training_step)
    config = options(write_clusters(tmp_path / "x.h5"), epochs=1)
    config["trainer"]["matmul_precision"] = "high"
    train(config_from(config), tmp_path / "run")
    assert seen == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("name", "changes"), [("schnet", [1, 3]), ("graph_convolution", [])])
def test_compiled_programs_have_the_threads_that_torch_had(tmp_path, monkeypatch, name, changes):
    seen, given = set(), []
    step = ForceStage.training_step

    def training_step(self, batch, batch_idx):
        seen.add(threads_allowed())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ForceStage, "training_step", training_step)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    config = options(write_clusters(tmp_path / "x.h5"), epochs=1)
    config["backbone"]["name"] = name
    train(config_from(config), tmp_path / "run")
    assert given == changes  # torch has one thread in the training, and then what it had
    assert seen == {3}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_training_on_cuda_follows_the_cpu(tmp_path):
    path = write_clusters(tmp_path / "x.h5", periodic=True)
    for device in ("cpu", "cuda"):
        config = options(path, epochs=3)
        config["trainer"]["accelerator"] = device
        train(config_from(config), tmp_path / device)
    for a, b in zip(rows(tmp_path / "cpu"), rows(tmp_path / "cuda"), strict=True):
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=1e-2)
