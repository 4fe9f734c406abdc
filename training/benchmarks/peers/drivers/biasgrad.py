"""This package: the default recipe of `biasgrad train --minutes`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.training.benchmarks.peers.protocol import Job

TITLE = "ase-biasgrad"
REQUIREMENTS = ()
SOURCE = "the defaults of `biasgrad train`"
AT_THE_END = 8.0  # seconds for the bias, the reports and their pictures


def settings() -> dict[str, Any]:
    """The default options."""
    from ase_biasgrad.backbones import backbone_arguments, backbone_class
    from ase_biasgrad.training.config import BackboneOptions, BiasStageOptions, ForceStageOptions

    name = BackboneOptions().name
    return {
        "backbone": {"name": name, **backbone_arguments(backbone_class(name))},
        "force_stage": ForceStageOptions().model_dump(mode="json"),
        "bias_stage": BiasStageOptions().model_dump(mode="json"),
    }


def train(job: Job) -> dict[str, Any]:
    """Both stages, with a schedule that fits into the time."""
    import torch

    from ase_biasgrad.checkpoint import load_checkpoint
    from ase_biasgrad.training.config import config_from
    from ase_biasgrad.training.lightning import time_schedule
    from ase_biasgrad.training.lightning.loggers import read_epoch_table
    from ase_biasgrad.training.run import train

    torch.set_num_threads(1)
    time_schedule.monotonic = time.process_time  # minutes of the processor, as for the others
    data = _dataset(job)
    run = job.folder / "run"
    config = config_from(
        {
            "data": data,
            "force_stage": {"max_minutes": (job.left() - AT_THE_END) / 60},
            "trainer": {"progress_bar": False, "accelerator": "cpu", "devices": 1},
            "seed": job.seed,
        }
    )
    result = train(config, run)
    result.checkpoint.rename(job.model / "potential.safetensors")
    network = load_checkpoint(job.model / "potential.safetensors").potential.backbone
    sizes = {name: network.arguments[name] for name in ("features", "interactions")}
    return {
        "size": f"{network.name} {sizes['features']} × {sizes['interactions']}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "epochs": len(read_epoch_table(run / "metrics.csv")),
        "validation_force_mae": result.after_bias.forces.mae,
    }


def _dataset(job: Job) -> dict[str, Any]:
    """Options of a dataset file with both parts, and files of their places."""
    from ase_biasgrad.data.writer import DatasetWriter

    path, parts, first = (
        job.folder / "frames.h5",
        {"train": job.train, "validation": job.validation},
        0,
    )
    options: dict[str, Any] = {"path": str(path), "test": 0}
    with DatasetWriter(path) as writer:
        for part, frames in parts.items():
            writer.append(
                frames.numbers, frames.positions, energy=frames.energy, forces=frames.forces
            )
            places = job.folder / f"{part}.txt"
            np.savetxt(places, np.arange(first, first + len(frames)), fmt="%d")
            options[part] = str(places)
            first += len(frames)
    return options


def calculator(model: Path) -> Calculator:
    """Its own ASE calculator."""
    from ase_biasgrad.named_calculators import labelling_calculator

    checkpoint = str(model / "potential.safetensors")
    arguments = {"checkpoint": checkpoint, "device": "cpu"}
    return labelling_calculator("ase_biasgrad.calculators:BiasGradCalculator", arguments)
