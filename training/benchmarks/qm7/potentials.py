"""The potentials of this package: the composition bias first, a backbone on what is left."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from ase_biasgrad.backbones import BACKBONES, build_backbone
from ase_biasgrad.potential import Potential
from ase_biasgrad.training.benchmarks.qm7.energy_stage import (
    EnergyProgress,
    EnergyStageOptions,
    fit_energies,
    predict_energies,
)
from ase_biasgrad.training.benchmarks.qm7.task import Answer, Task
from ase_biasgrad.training.frames.device_frames import DeviceFrames

EPOCHS = 600
# sizes at which one core sees enough epochs within an hour; other backbones come as they are
ARGUMENTS: dict[str, dict[str, Any]] = {
    "schnet": {"features": 64, "interactions": 3, "radial_functions": 25, "cutoff": 5.0},
    "painn": {"features": 64, "interactions": 3, "radial_functions": 20, "cutoff": 5.0},
}


def potential(backbone: str, task: Task) -> Answer:
    """Bias plus `backbone`, fitted to energies alone within the minutes of the task."""
    torch.manual_seed(task.seed)
    elements = np.flatnonzero(task.molecules.counts.sum(axis=0)).tolist()
    built = build_backbone(backbone, ARGUMENTS.get(backbone, {}))
    model = Potential(built, elements=elements)
    frames = DeviceFrames(task.molecules.dataset, task.train, model.cutoff)
    options = EnergyStageOptions(epochs=EPOCHS, minutes=task.minutes, seed=task.seed)
    done = fit_energies(model, frames, options, partial(_say, task))
    test = DeviceFrames(task.molecules.dataset, task.test, model.cutoff)
    size = sum(p.numel() for p in model.parameters())
    note = f"{size} weights, {done.epochs} epochs in {done.seconds / 60:.0f} min"
    return Answer(predict_energies(model, test), note)


def _say(task: Task, progress: EnergyProgress) -> None:
    task.say(
        f"epoch {progress.epochs}, {progress.seconds:.0f} s, "
        f"training loss {1000 * progress.loss:.1f} meV"
    )


ROWS = {f"bias+{cls.name}": partial(potential, cls.name) for cls in BACKBONES}
