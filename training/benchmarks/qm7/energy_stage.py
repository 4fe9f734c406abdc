"""The energy stage, for molecules without forces: bias first, then the backbone on what is left.

The bias (one number per element, least squares, in closed form) takes nearly all of the spread
between compositions; the backbone is fitted to the residuals, whose root mean square is the unit
of the loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ase_biasgrad.graph import sum_per_structure
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.evaluation.predict import batches_of_atoms
from ase_biasgrad.training.frames.batches import EpochBatches
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.force import check_labels


@dataclass(frozen=True)
class EnergyStageOptions:
    """Options of the fit; the stage ends with the first budget used up."""

    epochs: int = 300
    minutes: float = math.inf  # of processor time
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 500
    gradient_clip: float = 10.0
    ema_decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class EnergyProgress:
    """Progress of the stage after an epoch, or at its end."""

    epochs: int
    seconds: float  # of processor time
    loss: float  # mean absolute residual of this epoch's batches, eV


def fit_energies(
    potential: Potential,
    frames: DeviceFrames,
    options: EnergyStageOptions,
    on_epoch: Callable[[EnergyProgress], None] | None = None,
) -> EnergyProgress:
    """Fit bias and backbone of `potential` in place to the energies of `frames`.

    Minimises the mean absolute error with AdamW; the learning rate falls along a cosine with
    the share of the budget (epochs or minutes) that is used, and the weights left in `potential`
    are their exponential average. A budget in minutes ends as soon as it is used up, wherever the
    epoch is, and makes results depend on the machine's speed.

    Raises
    ------
    ValueError
        If a frame has no energy.
    """
    check_labels(frames, ("energy",), "the training frames", in_all=True)
    assert frames.energy is not None
    energies = frames.energy.cpu().numpy()
    freeze_energy_shifts(potential)
    potential.bias.fit(energies, frames.compositions(), "least-squares")
    fitted = frames.compositions() @ potential.bias.per_element.cpu().numpy()
    unit = float(np.sqrt(np.mean((energies - fitted) ** 2))) or 1.0
    _set_scale(potential, unit / math.sqrt(float(frames.atom_counts.mean())))
    targets = torch.from_numpy((energies - fitted) / unit).to(frames.device)
    return _minimise(potential, frames, targets, unit, options, on_epoch)


def _minimise(
    potential: Potential,
    frames: DeviceFrames,
    targets: torch.Tensor,
    unit: float,
    options: EnergyStageOptions,
    on_epoch: Callable[[EnergyProgress], None] | None,
) -> EnergyProgress:
    backbone = potential.backbone.train()
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    average = AveragedModel(backbone, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
    batches = EpochBatches(len(frames), options.batch_size, options.seed)
    begin, step, progress = time.process_time(), 0, EnergyProgress(0, 0.0, math.nan)
    used = 0.0  # share of the budget
    for epoch in range(options.epochs):
        batches.set_epoch(epoch)
        losses = []
        for places in batches:
            seconds = time.process_time() - begin
            used = max(step / (options.epochs * len(batches)), seconds / (60 * options.minutes))
            if used >= 1:
                break
            rate = (
                min(1.0, (step + 1) / options.warmup_steps) * 0.5 * (1 + math.cos(math.pi * used))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate * options.learning_rate
            graph = frames.batch(places).graph
            predicted = sum_per_structure(backbone(graph).double(), graph) / unit  # (b,)
            loss = (predicted - targets[torch.as_tensor(places)]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, options.gradient_clip)
            optimizer.step()
            average.update_parameters(backbone)
            losses.append(loss.detach())
            step += 1
        if losses:
            mean = float(torch.stack(losses).mean()) * unit
            progress = EnergyProgress(
                epoch + (len(losses) == len(batches)), time.process_time() - begin, mean
            )
        if on_epoch is not None and losses:
            on_epoch(progress)
        if used >= 1:
            break
    backbone.load_state_dict(average.module.state_dict())
    backbone.eval()
    return progress


def _set_scale(potential: Potential, scale: float) -> None:
    """Let outputs of order one mean residuals, where the backbone has such a unit."""
    if "scale" in potential.backbone.arguments:
        potential.backbone.scale = scale  # type: ignore[assignment]
        potential.backbone.arguments["scale"] = scale


def predict_energies(
    potential: Potential, frames: DeviceFrames, atoms_per_batch: int = 2000
) -> np.ndarray:
    """Energies `(m,)` eV of all frames, bias included; nothing is differentiated."""
    parts = [
        potential.evaluate(frames.batch(places).graph, ("energy",))["energy"].cpu().numpy()
        for places in batches_of_atoms(frames.atom_counts, atoms_per_batch)
    ]
    return np.concatenate(parts)
