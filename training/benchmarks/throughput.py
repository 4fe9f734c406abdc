"""Frames per second of the force stage beside SchNetPack's own Lightning task, or autograd.

SchNetPack trains as its `md17` experiment does: `AtomsDataModule` on an ASE database with its
transforms, `AtomisticTask` with a `ModelOutput` for forces and its metrics, AdamW. The force
stage trains with this package's defaults (averaged weights and gradient clipping included).
SchNetPack has no TensorNet: its rival is the same force stage by autograd through the backbone.
Both get the same weights, frames, batch size, device and number of threads; each lives in a
process of its own, and they take turns.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.backbones.schnetpack import SchNetPackBackbone
from ase_biasgrad.convert import schnetpack_model
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.fused.training import TrainingNetwork
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.config import ForceStageOptions
from ase_biasgrad.training.frames.batches import EpochBatches, batch_loader
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.lightning.weight_averaging import WeightAverage
from ase_biasgrad.training.stages.force import ForceStage, check_labels, robust_rms

# the first two are those of SchNetPack's own configurations
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "schnet": {"features": 128, "interactions": 6, "cutoff": 5.0, "radial_functions": 20},
    "painn": {"features": 128, "interactions": 3, "cutoff": 5.0, "radial_functions": 20},
    "tensornet": {"features": 64, "interactions": 2, "cutoff": 5.0},
}
IN_SCHNETPACK = ("schnet", "painn")


@dataclass(frozen=True)
class Setting:
    """One comparison: what is trained, on which frames, and how long."""

    dataset: str
    backbone: str
    arguments: dict[str, Any]
    batch_size: int = 10
    steps: int = 40
    warmup: int = 5
    device: str = "cpu"
    threads: int = 1
    workers: int = 0  # of SchNetPack's loader


class Speed(NamedTuple):
    """Training frames per second of one round, and the largest memory so far in MB.

    Memory is the resident set of the process, or what tensors took on a CUDA device. Frames per
    second of processor time count the process alone, not the workers of a loader.
    """

    frames_per_second: float
    frames_per_processor_second: float
    memory: float


@dataclass(frozen=True)
class Comparison:
    """The best rounds of either, and how far the forces of the same weights are apart (eV/Å)."""

    rival: Speed
    ours: Speed
    force_difference: float

    @property
    def processor_ratio(self) -> float:
        """Ratio in processor time, which other work on the machine disturbs less."""
        mine, theirs = self.ours, self.rival
        return mine.frames_per_processor_second / theirs.frames_per_processor_second

    @property
    def ratio(self) -> float:
        return self.ours.frames_per_second / self.rival.frames_per_second


def compare(setting: Setting, folder: Path, rounds: int = 3) -> Comparison:
    """Measure both in turns; `folder` takes SchNetPack's copy of the data.

    Raises `ValueError` if the data has no forces or too few frames for one batch.
    """
    dataset = Dataset(setting.dataset)
    frames = _whole_batches(setting, dataset)
    database = folder / f"{Path(setting.dataset).stem}.db"
    has_rival = setting.backbone in IN_SCHNETPACK
    if has_rival and not database.exists():
        _write_database(dataset, database)
    rival: Callable[[Setting, int], Speed] = partial(train_ours, by_autograd=True)
    if has_rival:
        rival = partial(train_theirs, database=database)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as theirs, ProcessPoolExecutor(1, spawn) as ours:
        difference = theirs.submit(force_difference, setting).result()
        turns = [
            (
                theirs.submit(rival, setting, frames).result(),
                ours.submit(train_ours, setting, frames).result(),
            )
            for _ in range(rounds)
        ]
    # the least disturbed round by either clock, and the largest memory
    rival_best, our_best = (Speed(*np.max(s, axis=0)) for s in zip(*turns, strict=True))
    return Comparison(rival_best, our_best, difference)


def train_ours(setting: Setting, frames: int, by_autograd: bool = False) -> Speed:
    """A round of the force stage on the first `frames` frames."""
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    resident = DeviceFrames(
        Dataset(setting.dataset), range(frames), setting.arguments["cutoff"], device
    )
    check_labels(resident, ("forces",), setting.dataset)
    resident.keep_springs()
    potential = new_potential(setting)
    freeze_energy_shifts(potential)
    options = ForceStageOptions(batch_size=setting.batch_size)
    force_unit = robust_rms(resident.forces)
    assert force_unit is not None
    stage = ForceStage(potential, options, force_unit)
    if by_autograd:
        stage.network = None
    loader = batch_loader(resident, EpochBatches(frames, setting.batch_size, 0))
    average = WeightAverage(options.ema_decay)
    with stage.threads():
        return _timed(setting, stage, [average], options.gradient_clip, train_dataloaders=loader)


def train_theirs(setting: Setting, frames: int, database: Path) -> Speed:
    """A round of SchNetPack's task on the same frames."""
    torch.set_num_threads(setting.threads)
    logging.getLogger().setLevel(logging.WARNING)
    os.chdir(database.parent)  # its data module leaves a lock in the working folder
    import schnetpack as spk
    import torchmetrics
    from schnetpack import transform

    split = database.with_name(f"{database.stem}-{frames}.npz")
    indices = np.arange(frames)
    np.savez(split, train_idx=indices, val_idx=indices[:1], test_idx=indices[:0])
    data = spk.data.AtomsDataModule(
        str(database),
        batch_size=setting.batch_size,
        num_train=frames,
        num_val=1,
        split_file=str(split),
        load_properties=["forces"],
        transforms=[
            transform.SubtractCenterOfMass(),
            transform.MatScipyNeighborList(cutoff=setting.arguments["cutoff"]),
            transform.CastTo32(),
        ],
        num_workers=setting.workers,
        pin_memory=setting.device != "cpu",
    )
    output = spk.task.ModelOutput(
        name="forces",
        loss_fn=torch.nn.MSELoss(),
        metrics={
            "mae": torchmetrics.MeanAbsoluteError(),
            "rmse": torchmetrics.MeanSquaredError(squared=False),
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning on how SchNetPack stores its arguments
        task = spk.task.AtomisticTask(
            _their_model(new_potential(setting)),
            outputs=[output],
            optimizer_cls=torch.optim.AdamW,
            optimizer_args={"lr": 1e-3, "weight_decay": 0.0},
        )
    return _timed(setting, task, [], None, datamodule=data)


def new_potential(setting: Setting) -> Potential:
    """The architecture of the comparison with the same random weights each time."""
    torch.manual_seed(0)
    return Potential(build_backbone(setting.backbone, setting.arguments))


def _their_model(potential: Potential) -> torch.nn.Module:
    """SchNetPack's model with the same weights."""
    assert isinstance(potential.backbone, SchNetPackBackbone)
    return schnetpack_model(potential.backbone)


def force_difference(setting: Setting) -> float:
    """Largest difference between the forces that both train on, of one frame, in eV/Å."""
    torch.set_num_threads(setting.threads)
    potential = new_potential(setting).double()
    graph = (
        DeviceFrames(Dataset(setting.dataset), [0], setting.arguments["cutoff"]).batch([0]).graph
    )
    _, ours, _ = TrainingNetwork(potential.backbone).evaluate(graph)
    if setting.backbone not in IN_SCHNETPACK:
        return float((ours - potential.evaluate(graph, ["forces"])["forces"]).abs().max())
    model = _their_model(potential).double().eval()
    centre, neighbour = graph.edge_index
    theirs = model(
        {
            "_atomic_numbers": graph.numbers,
            "_positions": graph.positions,
            "_idx_i": centre,
            "_idx_j": neighbour,
            "_offsets": torch.zeros(len(centre), 3, dtype=torch.float64),
            "_idx_m": graph.batch,
            "_n_atoms": torch.tensor([len(graph.numbers)]),
        }
    )["forces"]
    return float((ours - theirs).abs().max())


class _Clock(pl.Callback):
    """Times, of wall and processor, behind the first few steps and behind all."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._done = setting, 0
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self._done += 1
        if self._done in (self._setting.warmup, self._setting.warmup + self._setting.steps):
            if self._setting.device != "cpu":
                torch.cuda.synchronize(self._setting.device)
            self.times.append((time.perf_counter(), time.process_time()))


def _timed(
    setting: Setting,
    module: pl.LightningModule,
    callbacks: list[pl.Callback],
    clip: float | None,
    **data: Any,
) -> Speed:
    """Fit without validation, checkpoints and loggers."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device = torch.device(setting.device)
    clock = _Clock(setting)
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_epochs=-1,
        max_steps=setting.warmup + setting.steps,
        callbacks=[*callbacks, clock],
        plugins=[LightningEnvironment()],
        gradient_clip_val=clip,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, **data)
    wall, processor = setting.steps * setting.batch_size / np.diff(clock.times, axis=0)[0]
    return Speed(float(wall), float(processor), _memory(device))


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 1e6 if sys.platform == "darwin" else largest / 1e3


def _whole_batches(setting: Setting, dataset: Dataset) -> int:
    frames = len(dataset) // setting.batch_size * setting.batch_size
    if frames == 0:
        raise ValueError(
            f"{setting.dataset}: has {len(dataset)} frames, fewer than one batch of "
            f"{setting.batch_size}"
        )
    if not dataset.has("forces"):
        raise ValueError(f"{setting.dataset}: has no forces")
    return frames


def _write_database(dataset: Dataset, path: Path) -> None:
    import schnetpack as spk

    database = spk.data.ASEAtomsData.create(
        str(path), distance_unit="Ang", property_unit_dict={"forces": "eV/Ang"}
    )
    frames = [dataset[k] for k in range(len(dataset))]
    database.add_systems(
        [{"forces": frame.forces} for frame in frames], [frame.atoms() for frame in frames]
    )
