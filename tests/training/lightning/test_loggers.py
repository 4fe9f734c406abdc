"""TensorBoard and Weights & Biases: what they hold of a run, and how they begin and end."""

import json
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from helpers import options, write_clusters

from ase_biasgrad.training import ConfigError, config_from, resume, train
from ase_biasgrad.training.lightning.progress import TrainingDiverged

LEARNING_CURVE = "validation/learning_curve"
PICTURES = {"validation/errors", LEARNING_CURVE, "test/errors"}


def config_with(folder: Path, *loggers: str, **force_stage):
    path = folder / "x.h5"
    if not path.exists():
        write_clusters(path)
    config = options(path, **{"epochs": 2, **force_stage})
    config["trainer"]["loggers"] = list(loggers)
    return config_from(config)


def expected_numbers(result) -> dict[str, float]:
    return {
        "validation_before_bias/energy_mae": result.before_bias.energy.mae,
        "validation/energy_mae": result.after_bias.energy.mae,
        "validation/force_rmse": result.after_bias.forces.rmse,
        "test/energy_per_atom_mae": result.test.energy_per_atom.mae,
        "test/force_mae": result.test.forces.mae,
        "test/efwt": result.test.efwt.both,
        "test/frames": 10,
    }


class Stub(ModuleType):
    """Stands for the package: keeps what it is given, and starts unless told not to."""

    class Error(Exception):
        """The base of the package's errors."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run, self.runs, self.refusal = None, [], None

    def init(self, **how):
        if self.refusal:
            raise self.Error(self.refusal)
        self.run = StubRun(self, how)
        self.runs.append(self.run)
        return self.run

    def Image(self, path, **_):
        assert Path(path).stat().st_size > 100
        return Path(path)


class StubRun:
    def __init__(self, package, how) -> None:
        self.package, self.how, self.ended = package, how, None
        self.id = how["id"] or f"id-{len(package.runs)}"
        self.records: dict = {}
        self.options: dict = {}
        self.config = SimpleNamespace(update=lambda new, **_: self.options.update(new))

    def define_metric(self, *_, **__):
        pass

    def log(self, record):
        self.records |= record

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.ended, self.package.run = kind, None


@pytest.fixture
def wandb(monkeypatch):
    stub = Stub()
    lib, run = ModuleType("wandb.sdk.lib"), ModuleType("wandb.wandb_run")
    lib.RunDisabled, run.Run = object, StubRun
    for name, module in (("wandb", stub), ("wandb.sdk.lib", lib), ("wandb.wandb_run", run)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", True)
    return stub


def test_wandb_holds_options_bias_errors_and_pictures(tmp_path, wandb, recwarn):
    result = train(config_with(tmp_path, "wandb"), tmp_path / "run")
    (run,) = wandb.runs
    assert run.how["name"] == "run"
    assert Path(run.how["dir"]) == tmp_path / "run"
    assert run.options["force_stage"]["learning_rate"] == 5e-3
    assert run.options["dataset"]["parts"] == {"train": 40, "validation": 10, "test": 10}
    for name, value in expected_numbers(result).items():
        assert run.records[name] == pytest.approx(value), name
    for name in ("train_loss", "val_loss", "val_force_mae", "learning_rate"):
        assert name in run.records
    assert run.records["bias/H"] == pytest.approx(-12_345.7, abs=1)
    assert run.records["bias/rank"] == 2
    assert {n for n, value in run.records.items() if isinstance(value, list)} == PICTURES
    assert run.ended is None
    assert wandb.run is None
    assert not [w for w in recwarn if "logging interval" in str(w.message)]


def test_wandb_goes_on_with_the_same_run(tmp_path, wandb):
    train(config_with(tmp_path, "wandb"), tmp_path / "run")
    resume(tmp_path / "run")
    first, second = wandb.runs
    assert second.id == first.id
    assert second.how["id"] == first.id
    assert second.how["resume"] == "allow"


def test_a_failed_training_ends_its_run_as_failed(tmp_path, wandb):
    wild = {"learning_rate": 1e3, "gradient_clip": 0, "ema_decay": 0, "loss": "l2", "epochs": 50}
    with pytest.raises(TrainingDiverged):
        train(config_with(tmp_path, "wandb", **wild), tmp_path / "run")
    assert wandb.runs[0].ended is TrainingDiverged


def test_a_run_of_the_users_is_used_and_left_open(tmp_path, wandb):
    mine = wandb.init(id="mine")
    result = train(config_with(tmp_path, "wandb"), tmp_path / "run")
    assert wandb.runs == [mine]
    assert wandb.run is mine
    assert mine.records["test/force_mae"] == result.test.forces.mae


def test_without_a_login_nothing_is_left_that_blocks_the_next_start(tmp_path, wandb):
    wandb.refusal = "api_key not configured (no-tty)"
    config = config_with(tmp_path, "wandb")
    with pytest.raises(ConfigError, match=r"(?s)api_key not .*`wandb login`, or set WANDB_MODE"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    wandb.refusal = None
    train(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_packages_that_are_missing_are_named(tmp_path, monkeypatch, name):
    if name == "wandb":
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:
        for flag in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
            monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{flag}", False)
    with pytest.raises(ConfigError, match=rf"{name} is not installed; .*ase-biasgrad\[{name}\]"):
        train(config_with(tmp_path, name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_the_same(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(config_with(tmp_path, "tensorboard"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name, value in expected_numbers(result).items():
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6), name
    assert len(events.Scalars("val_loss")) == 2
    assert events.Scalars("bias/O")[-1].value == pytest.approx(-12_345.7, abs=1)
    assert set(events.Tags()["images"]) == PICTURES
    assert events.Images(LEARNING_CURVE)[0].width > 500
    text = (tmp_path / "run" / "tensorboard" / "hparams.yaml").read_text()
    assert "learning_rate: 0.005" in text


def wandb_records(path: Path):
    """Records of an offline run: a log of blocks of 32 KiB, each piece with a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, piece = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        piece, at = piece + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(piece)
            piece = b""
            yield record


def test_an_offline_run_of_wandb_itself_holds_it_all(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = train(config_with(tmp_path, "wandb"), tmp_path / "run")
    resume(tmp_path / "run")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # one id
    written, given = {}, {}
    for record in wandb_records(files[0]):
        for item in record.history.item:
            written["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        for item in record.config.update:
            given[item.key] = json.loads(item.value_json)
    for name, value in expected_numbers(result).items():
        assert written[name] == pytest.approx(value), name
    assert {f"{name}/filenames" for name in PICTURES} <= written.keys()
    assert given["force_stage"]["epochs"] == 2
