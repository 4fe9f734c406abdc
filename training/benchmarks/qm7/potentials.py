"""The potentials of this package: the composition bias first, a backbone on what is left."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_biasgrad.backbones import BACKBONES, build_backbone
from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
from ase_biasgrad.machine import versions
from ase_biasgrad.potential import Potential
from ase_biasgrad.training.benchmarks.loop import TrainingOptions, train_once
from ase_biasgrad.training.benchmarks.qm7.energy_stage import fit_energies
from ase_biasgrad.training.benchmarks.qm7.task import Answer, Task
from ase_biasgrad.training.evaluation.predict import predict
from ase_biasgrad.training.frames.device_frames import DeviceFrames

OPTIONS = TrainingOptions(600, 16, 1e-3, ema_decay=0.999, largest_gradient=10.0)
# sizes at which one core sees enough epochs within an hour; other backbones come as they are
ARGUMENTS: dict[str, dict[str, Any]] = {
    "schnet": {"features": 64, "interactions": 3, "radial_functions": 25, "cutoff": 5.0},
    "painn": {"features": 64, "interactions": 3, "radial_functions": 20, "cutoff": 5.0},
}
Fitted = tuple[Potential, dict[str, Any]]  # and how it came about


def potential(backbone: str, task: Task) -> Answer:
    """Bias plus `backbone`, fitted to energies alone within the minutes of the task.

    The file of the task is a checkpoint.
    """
    dataset = task.molecules.dataset

    def train(state: Path | None) -> Fitted:
        torch.manual_seed(task.seed)
        elements = np.flatnonzero(task.molecules.counts.sum(axis=0)).tolist()
        built = build_backbone(backbone, ARGUMENTS.get(backbone, {}))
        model = Potential(built, elements=elements).to(task.device)
        frames = DeviceFrames(dataset, task.train, model.cutoff, task.device)
        options = replace(OPTIONS, minutes=task.minutes, seed=task.seed)
        done = fit_energies(model, frames, options, task.say, state)
        epochs = done.steps * options.batch_size // len(frames)
        record = {"data": task.molecules.digest, "options": asdict(options), "epochs": epochs}
        return model.cpu(), {**record, **done.figures(), "versions": versions()}

    def load(path: Path) -> Fitted:
        checkpoint = load_checkpoint(path)
        return checkpoint.potential, checkpoint.training

    model, how = train_once(task.file, train, lambda path, made: save_checkpoint(path, *made), load)
    test = DeviceFrames(dataset, task.test, model.cutoff, task.device)
    size = sum(p.numel() for p in model.parameters())
    note = f"{size} weights, {how['epochs']} epochs in {how['cpu_seconds'] / 60:.0f} min"
    return Answer(predict(model.to(task.device), test).energy, note, how["cpu_seconds"])


ROWS = {f"bias+{cls.name}": partial(potential, cls.name) for cls in BACKBONES}
