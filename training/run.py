"""A training run: both stages, in a run folder from which an interrupted run goes on.

Beside its inputs (`run_folder.py`) the folder holds `metrics.csv` (a row per epoch),
`states/last.ckpt` and `states/best.ckpt` (Lightning's training states), and at the end
`potential.safetensors`, `evaluation.json` and `report/` of the validation frames, and `test/`, the
report on the test frames.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.bias import Bias
from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.levels_of_theory import LevelComparison
from ase_biasgrad.machine import PACKAGES
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.baseline import made_baseline, run_labels
from ase_biasgrad.training.config import ConfigError, TrainConfig
from ase_biasgrad.training.evaluation.evaluate import Report, evaluate, save_json
from ase_biasgrad.training.frames.batches import EpochBatches, batch_loader
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.frames.range_seen import range_of_frames
from ase_biasgrad.training.lightning.loggers import EpochTable, log_bias, log_report, open_loggers
from ase_biasgrad.training.lightning.progress import EndOfTraining, StateFiles
from ase_biasgrad.training.lightning.state_files import WholeStateFiles, read_state
from ase_biasgrad.training.lightning.time_schedule import TimeSchedule
from ase_biasgrad.training.lightning.weight_averaging import WeightAverage
from ase_biasgrad.training.run_folder import RunFolder, refuse_used
from ase_biasgrad.training.stages.bias import fit_bias
from ase_biasgrad.training.stages.force import (
    ForceStage,
    JointStage,
    check_labels,
    robust_rms,
    wild_atoms,
)
from ase_biasgrad.training.stages.levels import at_one_level, fit_references, levels_by_label
from ase_biasgrad.training.teacher import taught

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

LARGER_IN_VALIDATION = 4  # batches
MANY = 10**8  # epochs, where the time ends the training


@dataclass(frozen=True)
class TrainingResult:
    """The final checkpoint and its errors.

    `before_bias` and `after_bias` are those on validation frames, by which the training chose its
    best epoch; `test` those on test frames, None where the run has none. With several levels of
    theory, energies are measured with the bias of the frame's own level.
    """

    checkpoint: Path
    before_bias: Report
    after_bias: Report
    test: Report | None = None
    levels: LevelComparison | None = None  # where bias_stage.by names them
    out_of_time_after: int | None = None  # epochs, where trainer.max_time ended the force stage


def train(
    config: TrainConfig, folder: str | Path, teacher: Calculator | None = None
) -> TrainingResult:
    """Train in a new run folder.

    `teacher` is the calculator that the options of `teacher` name.

    Raises
    ------
    FileExistsError
        If `folder` holds a run already, or files that a run would replace.
    ConfigError, ValueError
        On options or data that cannot be used, before any work starts.
    """
    folder = Path(folder)
    if _is_main_process():
        refuse_used(folder)
    run = RunFolder.new(taught(config, folder, teacher), folder)
    prepared = _prepare(run)
    with _loggers(run, prepared.trainer):
        if _is_main_process():
            for note in run.notes:
                warnings.warn(f"{config.data.path}: {note}", stacklevel=2)
            run.write()
        return _run(run, prepared)


def resume(folder: str | Path) -> TrainingResult:
    """Go on with the run in `folder` from its last whole epoch.

    Raises
    ------
    ConfigError
        If there is no run, or its data has changed since.
    """
    run = RunFolder.read(Path(folder))
    prepared = _prepare(run)
    with _loggers(run, prepared.trainer):
        return _run(run, prepared)


@contextlib.contextmanager
def _loggers(run: RunFolder, trainer: pl.Trainer) -> Iterator[None]:
    """Give the trainer its loggers, which may refuse to start: before the folder holds a run."""
    origin = run.origin()
    options = {**origin["config"], "dataset": origin["data"]}
    with open_loggers(run.config.trainer.loggers, run.path, options) as trainer.loggers:
        yield


def _is_main_process() -> bool:
    """Test that this process writes files: of several (DDP) only one does."""
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


@dataclass(frozen=True)
class _Prepared:
    """Stage, frames of each part and trainer, made before anything is written."""

    stage: ForceStage
    frames: dict[str, DeviceFrames]
    trainer: pl.Trainer
    loaders: tuple[DataLoader[Any], DataLoader[Any]]  # of training and validation
    levels: dict[str, np.ndarray] | None  # of theory, by part and frame


def _prepare(run: RunFolder) -> _Prepared:
    config, bar = run.config, run.config.trainer.progress_bar
    potential, levels = _with_levels(run, _new_potential(run))
    trainer = _trainer(config, run.path)
    frames = {
        part: DeviceFrames(run.dataset, chosen, potential.cutoff, _device(config), bar)
        for part, chosen in run.split.items()
        if len(chosen)
    }
    if config.baseline is not None:
        baseline, calculator = made_baseline(config.baseline)
        run.path.mkdir(parents=True, exist_ok=True)
        labels = run_labels(baseline, calculator, run, bar)
        potential.baseline = baseline.record()
        frames = {part: of.less(labels[part]) for part, of in frames.items()}
    training, validation = frames["train"], frames["validation"]
    stage = _stage(config, potential, training, validation)
    if "test" in frames:
        check_labels(frames["test"], ("forces",), f"{config.data.path} (test frames)")
    if config.force_stage.elastic_weight > 0:
        training.keep_springs()
    size, place = config.force_stage.batch_size, (trainer.global_rank, trainer.world_size)
    loaders = (
        batch_loader(training, EpochBatches(len(training), size, config.seed, *place)),
        batch_loader(validation, EpochBatches(len(validation), LARGER_IN_VALIDATION * size, None)),
    )
    return _Prepared(stage, frames, trainer, loaders, levels)


def _run(run: RunFolder, prepared: _Prepared) -> TrainingResult:
    stage, trainer = prepared.stage, prepared.trainer
    last = run.path / "states" / "last.ckpt"
    with (
        warnings.catch_warnings(),
        _matmul_precision(run.config.trainer.matmul_precision),
        stage.threads(),
    ):
        for advice in (
            "does not have many workers",  # frames are resident, there is nothing to fetch
            "Checkpoint directory .* exists",
            "smaller than the logging interval",  # the stage logs once an epoch
            "recommended to use `self.log",  # the stage's losses are those of all processes
        ):
            warnings.filterwarnings("ignore", message=f".*{advice}.*")
        try:
            trainer.fit(stage, *prepared.loaders, ckpt_path=str(last) if last.exists() else None)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
    trainer.strategy.barrier()
    stage.load_state_dict(read_state(last.with_name("best.ckpt"))["state_dict"])
    result = _finish(run, prepared, stage.potential.to(prepared.frames["train"].device))
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    ran_out = any(isinstance(c, EndOfTraining) and c.ran_out for c in callbacks)
    return replace(result, out_of_time_after=trainer.current_epoch if ran_out else None)


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Torch's global choice for float32, which is put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _finish(run: RunFolder, prepared: _Prepared, potential: Potential) -> TrainingResult:
    """Bias stage, evaluation and final checkpoint."""
    potential.requires_grad_(False).eval()
    method, levels, found = run.config.bias_stage.method, prepared.levels, None
    training = prepared.frames["train"]
    before = evaluate(potential, prepared.frames["validation"])
    if levels is not None:
        found = fit_references(potential, training, levels["train"], method)
    elif run.config.force_stage.joint is None and training.energy is not None:
        fit_bias(potential, training, method)

    def measured(part: str) -> Report:
        frames = prepared.frames[part]
        if levels is not None:
            frames = at_one_level(potential.biases(), potential.reference, frames, levels[part])
        return evaluate(potential, frames)

    after, test = measured("validation"), None
    if "test" in prepared.frames:
        seen = int(run.seen(run.split["test"]).sum())
        test = replace(measured("test"), seen=seen)
    result = TrainingResult(run.checkpoint, before, after, test, found)
    if _is_main_process():
        if found is not None and found.by_composition_alone is False:
            _warn_of_mixed_levels(found, run.config.data.path)
        save_json(after, run.path / "evaluation.json")
        distances = range_of_frames(training, potential.cutoff).record()
        provenance = {**_provenance(run, training, result), "range": distances}
        save_checkpoint(run.checkpoint, potential, provenance)
        _report(run, prepared.trainer, potential, result)
    return result


def _report(
    run: RunFolder, trainer: pl.Trainer, potential: Potential, result: TrainingResult
) -> None:
    """Write reports with pictures, and send their content to the loggers."""
    from ase_biasgrad.training.evaluation.report import write_report

    loggers, step = trainer.loggers, trainer.global_step
    pictures = write_report(run.path / "report", result.after_bias, run.path / "metrics.csv")
    log_report(loggers, "validation_before_bias", result.before_bias, step)
    log_report(loggers, "validation", result.after_bias, step, pictures)
    log_bias(loggers, potential.bias, step)
    if result.test is not None:
        pictures = write_report(run.path / "test", result.test)
        log_report(loggers, "test", result.test, step, pictures)


def _new_potential(run: RunFolder) -> Potential:
    config, precision = run.config, getattr(torch, run.config.trainer.precision)
    pl.seed_everything(config.seed, verbose=False)
    try:
        if run.parent is not None:
            backbone = run.parent.backbone(precision)
        else:
            backbone = build_backbone(config.backbone.name, config.backbone.arguments).to(precision)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"backbone: {error}") from error
    compositions = run.dataset.compositions()[run.split["train"]]
    elements = np.flatnonzero(compositions.sum(axis=0))  # of training frames
    return Potential(backbone, elements=elements.tolist())


def _with_levels(
    run: RunFolder, potential: Potential
) -> tuple[Potential, dict[str, np.ndarray] | None]:
    """Name an unfitted bias for each level of theory, and the levels of the frames of each part.

    The potential's own bias is that of the level with the most training frames. Without a label of
    levels in the options, the potential stays as it is.
    """
    if (by := run.config.bias_stage.by) is None:
        return potential, None
    where, every = f"bias_stage.by: {run.dataset.path}", levels_by_label(run.dataset, by)
    levels = {part: every[frames] for part, frames in run.split.items()}
    names, frames = np.unique(levels["train"], return_counts=True)
    if len(names) < 2:
        raise ConfigError(f"{where}: all training frames are of {by} {names[0]}; leave it out")
    for part, of_part in levels.items():
        if (new := ~np.isin(of_part, names)).any():
            raise ConfigError(
                f"{where}: frame {run.split[part][new][0]} ({part}) is of {by} {of_part[new][0]}, "
                "and no training frame is"
            )
    energies = np.zeros(len(every), bool)
    for group in run.dataset.groups():
        energies[group.index] = group.has("energy")
    for name in names:
        if not energies[run.split["train"]][levels["train"] == name].any():
            raise ConfigError(f"{where}: no training frame of {by} {name} has an energy")
    own = str(names[np.argmax(frames)])
    try:
        named = Potential(potential.backbone, None, potential.elements, own)
        for name in names[names != own]:
            named.add_reference(str(name), Bias())
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    return named, levels


def _warn_of_mixed_levels(found: LevelComparison, path: Path) -> None:
    worst = max(found.dependence, key=lambda name: found.dependence[name])
    warnings.warn(
        f"{path}: the levels of theory {', '.join(found.biases)} differ by more than composition: "
        f"by geometry, {1000 * found.geometry_rms:.2f} meV per atom, most with {worst}. Their "
        "energies should not be mixed, and the potential was trained on forces of all; train one "
        "for each",
        stacklevel=2,
    )


def _stage(
    config: TrainConfig, potential: Potential, training: DeviceFrames, validation: DeviceFrames
) -> ForceStage:
    joint = config.force_stage.joint is not None
    needs = ("energy", "forces") if joint else ("forces",)
    for name, frames in (("training", training), ("validation", validation)):
        check_labels(frames, needs, f"{config.data.path} ({name} frames)")
    assert training.forces is not None
    force_unit, stress_unit = robust_rms(training.forces), robust_rms(training.stress)
    _name_wild_forces(training, config.data.path)
    if not force_unit:
        raise ConfigError(f"{config.data.path}: all training forces are zero")
    if "scale" in potential.backbone.arguments and "scale" not in config.backbone.arguments:
        potential.backbone.scale = force_unit
        potential.backbone.arguments["scale"] = force_unit
    if not joint:
        freeze_energy_shifts(potential)
        return ForceStage(potential, config.force_stage, force_unit, stress_unit)
    assert training.energy is not None
    energies = training.energy.cpu().numpy()
    known = np.isfinite(energies)
    potential.bias.fit(energies[known], training.compositions()[known], "mean")
    return JointStage(potential, config.force_stage, force_unit, stress_unit)


def _name_wild_forces(training: DeviceFrames, path: Path) -> None:
    """Warn of training forces that are no forces of the same kind as the others."""
    assert training.forces is not None
    wild = wild_atoms(training.forces)[:5].cpu()
    if not len(wild):
        return
    owner = np.repeat(training.frames, training.atom_counts)
    first = np.cumsum(training.atom_counts) - training.atom_counts
    first_of = np.repeat(first, training.atom_counts)
    named = "; ".join(
        f"frame {owner[k]}, atom {k - first_of[k]}: {float(training.forces[k].norm()):.4g} eV/Å"
        for k in wild.tolist()
    )
    warnings.warn(
        f"{path}: forces a hundred times as long as nine tenths of the others: {named}; they "
        "hardly count in the unit of the loss, and are better left out of the data",
        stacklevel=2,
    )


def _trainer(config: TrainConfig, folder: Path) -> pl.Trainer:
    # warnings stay; Lightning's greetings go
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    options, stage = config.trainer, config.force_stage
    states = StateFiles(
        folder / "states",
        "best",
        monitor="val_loss",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    table = EpochTable(folder / "metrics.csv")
    end = EndOfTraining(_seconds(options.max_time))
    callbacks: list[pl.Callback] = [states, table, end]
    if stage.max_minutes is not None:
        callbacks.append(TimeSchedule(stage, options.progress_bar))
    if stage.ema_decay > 0:
        callbacks.append(WeightAverage(stage.ema_decay))
    if stage.early_stopping:
        callbacks.append(pl.callbacks.EarlyStopping("val_loss", patience=stage.early_stopping))
    return pl.Trainer(
        accelerator=_accelerator(config),
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        max_epochs=stage.epochs if stage.max_minutes is None else MANY,
        callbacks=callbacks,
        plugins=[WholeStateFiles(), *_environment(config)],
        logger=False,  # `_loggers` gives them
        gradient_clip_val=stage.gradient_clip or None,
        check_val_every_n_epoch=stage.validate_every,
        enable_progress_bar=options.progress_bar and sys.stdout.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # forces are gradients, in validation too
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000,
    )


def _environment(config: TrainConfig) -> list[LightningEnvironment]:
    """Environment of a training in one process, which is no rank of a cluster to be looked for.

    That search loads MPI, which fails where mpi4py is there and no library, and it refuses a job
    of several tasks.
    """
    options, devices = config.trainer, config.trainer.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if _accelerator(config) != "cpu" else 1
    alone = devices == 1 and options.num_nodes == 1 and "WORLD_SIZE" not in os.environ
    return [LightningEnvironment()] if alone else []


def _seconds(max_time: str | None) -> float | None:
    """Seconds of DD:HH:MM:SS."""
    if max_time is None:
        return None
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


def _accelerator(config: TrainConfig) -> str:
    """CUDA where there is one, else the CPU (Apple's MPS has no float64)."""
    if config.trainer.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator: {config.trainer.accelerator}, and torch {torch.__version__} "
            "finds no CUDA device; use auto or cpu"
        )
    if config.trainer.accelerator != "auto":
        return config.trainer.accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device(config: TrainConfig) -> torch.device:
    if _accelerator(config) == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def _provenance(run: RunFolder, training: DeviceFrames, result: TrainingResult) -> dict[str, Any]:
    origin = run.origin()
    return {
        **origin,
        "data": {**origin["data"], "trained_on": len(training), "labelled": training.labelled()},
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "cpu",
        "validation": result.after_bias.summary(),
        "test": None if result.test is None else result.test.summary(),
        "seen": run.seen_record(),
    }
