"""A training run: both stages, in a run folder from which an interrupted run goes on.

The folder holds `config.yaml` as used, `split.json`, `metrics.csv` (a row per epoch),
`states/last.ckpt` and `states/best.ckpt` (Lightning's training states), and at the end
`potential.safetensors`, `evaluation.json` and the report.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.splits import random_split
from ase_biasgrad.files import whole_file
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.config import ConfigError, TrainConfig, config_from
from ase_biasgrad.training.elastic import memory_of_springs
from ase_biasgrad.training.evaluation.evaluate import Report, evaluate, save_json
from ase_biasgrad.training.frames.batches import EpochBatches, batch_loader
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.lightning.loggers import EpochTable, extra_loggers
from ase_biasgrad.training.lightning.progress import EndOfTraining, StateFiles
from ase_biasgrad.training.lightning.state_files import WholeStateFiles, read_state
from ase_biasgrad.training.lightning.weight_averaging import WeightAverage
from ase_biasgrad.training.stages.bias import fit_bias
from ase_biasgrad.training.stages.force import (
    ForceStage,
    JointStage,
    check_labels,
    robust_rms,
    wild_atoms,
)

CHECKPOINT_NAME = "potential.safetensors"
LARGER_IN_VALIDATION = 4  # batches
MEMORY_FOR_SPRINGS = 4 * 2**30  # bytes


@dataclass(frozen=True)
class TrainingResult:
    """The final checkpoint, and the validation errors before and after the bias."""

    checkpoint: Path
    before_bias: Report
    after_bias: Report
    out_of_time_after: int | None = None  # epochs, where trainer.max_time ended the force stage


def train(config: TrainConfig, folder: str | Path) -> TrainingResult:
    """Train in a new run folder.

    Raises
    ------
    FileExistsError
        If `folder` holds a run already.
    ConfigError, ValueError
        On options or data that cannot be used, before any work starts.
    """
    folder = Path(folder)
    if _is_main_process() and (folder / "config.yaml").exists():
        raise FileExistsError(
            f"{folder}: holds a run already; go on with `biasgrad train --resume {folder}` "
            "or name another folder"
        )
    dataset = Dataset(config.data.path)
    split = _split(config, dataset)
    prepared = _prepare(config, folder, dataset, split)
    if _is_main_process():
        _write_inputs(config, folder, dataset, split)
    return _run(config, folder, dataset, prepared)


def resume(folder: str | Path) -> TrainingResult:
    """Go on with the run in `folder` from its last whole epoch.

    Raises
    ------
    ConfigError
        If there is no run, or its data has changed since.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: is no run folder (it has no config.yaml)")
    config = config_from(
        yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        str(folder / "config.yaml"),
    )
    dataset = Dataset(config.data.path)
    if json.loads((folder / "data.json").read_text())["sha256"] != dataset.hash():
        raise ConfigError(f"{config.data.path}: has changed since the run in {folder} began")
    stored = json.loads((folder / "split.json").read_text())
    split = {name: np.array(frames, np.int64) for name, frames in stored.items()}
    return _run(config, folder, dataset, _prepare(config, folder, dataset, split))


def _is_main_process() -> bool:
    """Test that this process writes files: of several (DDP) only one does."""
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


def _write_inputs(
    config: TrainConfig, folder: Path, dataset: Dataset, split: dict[str, np.ndarray]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "split.json", {k: v.tolist() for k, v in split.items()})
    _write_json(folder / "data.json", {"sha256": dataset.hash(), "frames": len(dataset)})
    options = config.model_dump(mode="json")
    options["data"]["path"] = str(Path(config.data.path).resolve())
    # last, because its presence makes the folder a run
    with whole_file(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True)
class _Prepared:
    """Stage, frames and trainer, made before anything is written."""

    stage: ForceStage
    training: DeviceFrames
    validation: DeviceFrames
    trainer: pl.Trainer
    training_batches: EpochBatches
    validation_batches: EpochBatches


def _prepare(
    config: TrainConfig, folder: Path, dataset: Dataset, split: dict[str, np.ndarray]
) -> _Prepared:
    device = _device(config)
    potential = _new_potential(config, dataset.compositions()[split["train"]])
    trainer = _trainer(config, folder)
    show = config.trainer.progress_bar
    training = DeviceFrames(dataset, split["train"], potential.cutoff, device, show)
    validation = DeviceFrames(dataset, split["validation"], potential.cutoff, device, show)
    stage = _stage(config, potential, training, validation)
    if config.force_stage.elastic_weight > 0:
        _check_memory_of_springs(config, training, validation)
        training.keep_springs()
    batch_size = config.force_stage.batch_size
    return _Prepared(
        stage,
        training,
        validation,
        trainer,
        EpochBatches(
            len(training), batch_size, config.seed, trainer.global_rank, trainer.world_size
        ),
        EpochBatches(len(validation), LARGER_IN_VALIDATION * batch_size, None),
    )


def _run(
    config: TrainConfig, folder: Path, dataset: Dataset, prepared: _Prepared
) -> TrainingResult:
    stage, trainer = prepared.stage, prepared.trainer
    training, validation = prepared.training, prepared.validation
    last = folder / "states" / "last.ckpt"
    with warnings.catch_warnings(), _matmul_precision(config.trainer.matmul_precision):
        # Lightning suggests worker processes; frames are resident, there is nothing to fetch
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists.*")
        try:
            trainer.fit(
                stage,
                batch_loader(training, prepared.training_batches),
                batch_loader(validation, prepared.validation_batches),
                ckpt_path=str(last) if last.exists() else None,
            )
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop
    trainer.strategy.barrier()
    _load_best(stage, folder)
    potential = stage.potential.to(training.device)
    result = _finish(config, folder, dataset, potential, training, validation)
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


def _finish(
    config: TrainConfig,
    folder: Path,
    dataset: Dataset,
    potential: Potential,
    training: DeviceFrames,
    validation: DeviceFrames,
) -> TrainingResult:
    """Bias stage, evaluation and final checkpoint."""
    potential.requires_grad_(False).eval()
    before = evaluate(potential, validation)
    if config.force_stage.joint is None and training.energy is not None:
        fit_bias(potential, training, config.bias_stage.method)
    after = evaluate(potential, validation)
    checkpoint = folder / CHECKPOINT_NAME
    if not _is_main_process():
        return TrainingResult(checkpoint, before, after)
    save_json(after, folder / "evaluation.json")
    save_checkpoint(checkpoint, potential, _provenance(config, dataset, training, after))
    from ase_biasgrad.training.evaluation.report import write_report

    write_report(folder / "report", after, metrics=folder / "metrics.csv")
    return TrainingResult(checkpoint, before, after)


def _split(config: TrainConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    sizes = {"train": config.data.train, "validation": config.data.validation}
    return random_split(
        len(dataset), sizes, seed=config.data.seed, contiguous=config.data.contiguous
    )


def _new_potential(config: TrainConfig, compositions: np.ndarray) -> Potential:
    pl.seed_everything(config.seed, verbose=False)
    try:
        backbone = build_backbone(config.backbone.name, config.backbone.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"backbone: {error}") from error
    elements = np.flatnonzero(compositions.sum(axis=0))  # of training frames
    potential = Potential(backbone, elements=elements.tolist())
    return potential.double() if config.trainer.precision == "float64" else potential


def _stage(
    config: TrainConfig,
    potential: Potential,
    training: DeviceFrames,
    validation: DeviceFrames,
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
        potential.backbone.scale = force_unit  # type: ignore[assignment]
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


def _check_memory_of_springs(
    config: TrainConfig, training: DeviceFrames, validation: DeviceFrames
) -> None:
    options = config.force_stage
    for frames, batch_size in (
        (training, options.batch_size),
        (validation, LARGER_IN_VALIDATION * options.batch_size),
    ):
        largest, structures = int(frames.atom_counts.max()), min(len(frames), batch_size)
        if (needed := memory_of_springs(structures, largest)) > MEMORY_FOR_SPRINGS:
            raise ConfigError(
                f"force_stage.elastic_weight: a batch of {structures} structures of up to "
                f"{largest} atoms needs {needed / 2**30:.1f} GiB for it; lower "
                "force_stage.batch_size, or set force_stage.elastic_weight to 0"
            )


def _trainer(config: TrainConfig, folder: Path) -> pl.Trainer:
    # warnings stay; Lightning's greetings go
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    options, stage = config.trainer, config.force_stage
    states = StateFiles(
        folder / "states", "best", monitor="val_loss", save_last=True, enable_version_counter=False
    )
    table = EpochTable(folder / "metrics.csv")
    end = EndOfTraining(_seconds(options.max_time))
    callbacks: list[pl.Callback] = [states, table, end]
    if stage.ema_decay > 0:
        callbacks.append(WeightAverage(stage.ema_decay))
    if stage.early_stopping:
        callbacks.append(pl.callbacks.EarlyStopping("val_loss", patience=stage.early_stopping))
    return pl.Trainer(
        accelerator=_accelerator(config),
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        max_epochs=stage.epochs,
        callbacks=callbacks,
        plugins=[WholeStateFiles()],
        logger=extra_loggers(options.loggers, folder),
        gradient_clip_val=stage.gradient_clip or None,
        check_val_every_n_epoch=stage.validate_every,
        enable_progress_bar=options.progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # forces are gradients, in validation too
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000,
    )


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


def _load_best(stage: ForceStage, folder: Path) -> None:
    best = folder / "states" / "best.ckpt"
    stage.load_state_dict(read_state(best)["state_dict"])


def _provenance(
    config: TrainConfig, dataset: Dataset, training: DeviceFrames, report: Report
) -> dict[str, Any]:
    packages = ("ase-biasgrad", "ase", "torch", "schnetpack", "pytorch-lightning", "numpy")
    return {
        "config": config.model_dump(mode="json", exclude={"data": {"path"}}),
        "data": {
            "sha256": dataset.hash(),
            "frames": len(dataset),
            "trained_on": len(training),
            "labelled": training.labelled(),
        },
        "versions": {name: version(name) for name in packages}
        | {"python": platform.python_version()},
        "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "cpu",
        "validation": report.summary(),
    }


def _write_json(path: Path, content: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
