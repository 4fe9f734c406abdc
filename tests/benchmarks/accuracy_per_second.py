"""Backbones at equal processor time: force errors on test frames after the same seconds.

    python tests/benchmarks/accuracy_per_second.py TRAIN.npz TEST.npz painn:features=64 \
        tensornet:features=64 --seconds 240

TRAIN and TEST are rMD17 files (kcal/mol). Every backbone trains on forces for the same processor
seconds (of this process, so that other work on the machine does not count), with the learning
rate following a cosine over that time. Prints a Markdown table.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.config import ForceStageOptions
from ase_biasgrad.training.evaluation.evaluate import evaluate
from ase_biasgrad.training.frames.batches import EpochBatches
from ase_biasgrad.training.frames.device_frames import Batch, DeviceFrames
from ase_biasgrad.training.stages.bias import fit_bias
from ase_biasgrad.training.stages.force import ForceStage, robust_rms

CUTOFF = 5.0
FRAMES = 950


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("backbones", nargs="+", help="name:argument=value,argument=value")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--elastic-weight", type=float, default=ForceStageOptions().elastic_weight)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| backbone | parameters | s | steps | force MAE, meV/Å | energy MAE, meV | EFwT |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        train, test = (Path(name) / f"{part}.h5" for part in ("train", "test"))
        units = ImportOptions(energy_unit="kcal/mol", length_unit="Angstrom")
        for source, target in ((options.train, train), (options.test, test)):
            import_files([source], target, units, progress=False)
        frames = DeviceFrames(Dataset(train), range(FRAMES), CUTOFF)
        tested = DeviceFrames(Dataset(test), range(len(Dataset(test))), CUTOFF)
        for text in options.backbones:
            print(measured(text, frames, tested, options), flush=True)


def measured(
    text: str, frames: DeviceFrames, tested: DeviceFrames, options: argparse.Namespace
) -> str:
    kind, _, rest = text.partition(":")
    arguments: dict[str, Any] = {"cutoff": CUTOFF}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        arguments[key] = int(value)
    torch.manual_seed(0)
    unit = robust_rms(frames.forces)
    assert unit is not None
    potential = Potential(build_backbone(kind, {**arguments, "scale": unit}))
    freeze_energy_shifts(potential)
    potential, steps = trained(potential, unit, frames, options)
    fit_bias(potential, frames, "mean")
    report = evaluate(potential, tested)
    assert report.energy is not None
    assert report.efwt is not None
    count = sum(p.numel() for p in potential.backbone.parameters())
    return (
        f"| {text} | {count} | {options.seconds:.0f} | {steps} | {1000 * report.forces.mae:.2f} "
        f"| {1000 * report.energy.mae:.2f} | {report.efwt.both:.3f} |"
    )


def trained(
    potential: Potential, unit: float, frames: DeviceFrames, options: argparse.Namespace
) -> tuple[Potential, int]:
    """Averaged weights, and the number of steps."""
    stage = ForceStage(potential, ForceStageOptions(elastic_weight=options.elastic_weight), unit)
    # buffers hold the bias and constants of the networks: nothing to average
    average = AveragedModel(potential, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    parameters = [p for p in potential.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=0.0, amsgrad=True, fused=True
    )
    batches = EpochBatches(len(frames), options.batch_size, 0)
    loss_of(stage, frames.batch([0])).backward()  # compiles the loops before the clock starts
    begin, steps = time.process_time(), 0
    while True:
        batches.set_epoch(batches.epoch + 1)
        for places in batches:
            done = (time.process_time() - begin) / options.seconds
            if done >= 1:
                return average.module.eval(), steps
            warm = min(1.0, (steps + 1) / 200)
            rate = (
                options.learning_rate
                * warm
                * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * done)))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            stage.backward(loss_of(stage, frames.batch(np.array(places))))
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            average.update_parameters(potential)
            steps += 1


def loss_of(stage: ForceStage, batch: Batch) -> torch.Tensor:
    return stage.loss(batch, stage.predicted_in_training(batch))


if __name__ == "__main__":
    main()
