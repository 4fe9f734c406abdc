"""The energy stage, for molecules without forces: bias first, then the backbone on what is left.

The bias (one number per element, least squares, in closed form) takes nearly all of the spread
between compositions; the backbone is fitted to the residuals, whose root mean square is the unit
of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.fused.networks import NETWORKS
from ase_biasgrad.fused.training import TrainingNetwork
from ase_biasgrad.graph import sum_per_structure
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.benchmarks.loop import TorchLearner, Trained, TrainingOptions, train
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.force import check_labels


def fit_energies(
    potential: Potential,
    frames: DeviceFrames,
    options: TrainingOptions,
    report: Callable[[str], None] = lambda line: None,
    state: Path | None = None,
) -> Trained[Backbone]:
    """Fit bias and backbone of `potential` in place to the energies of `frames`, on their device.

    Minimises the mean absolute error; the weights left in `potential` are their exponential
    average. A budget in minutes ends as soon as it is used up, wherever the epoch is, and makes
    results depend on the machine's speed. `report` and `state` are those of the loop; losses are
    in units of the residuals' root mean square.

    Raises
    ------
    ValueError
        If a frame has no energy.
    """
    check_labels(frames, ("energy",), "the training frames")
    assert frames.energy is not None
    energies = frames.energy.cpu().numpy()
    freeze_energy_shifts(potential)
    potential.bias.fit(energies, frames.compositions(), "least-squares")
    fitted = frames.compositions() @ potential.bias.per_element.cpu().numpy()
    unit = float(np.sqrt(np.mean((energies - fitted) ** 2))) or 1.0
    _set_scale(potential, unit / math.sqrt(float(frames.atom_counts.mean())))
    targets = torch.from_numpy((energies - fitted) / unit).to(frames.device)

    def batches(random: np.random.Generator) -> Iterator[np.ndarray]:
        order = random.permutation(len(frames))
        return (order[k : k + options.batch_size] for k in range(0, len(order), options.batch_size))

    # the same parameters in a program; without one, autograd goes through the backbone
    on_cpu = torch.device(frames.device).type == "cpu"
    has_program = on_cpu and potential.backbone.name in NETWORKS
    program = TrainingNetwork(potential.backbone) if has_program else None

    def loss(backbone: Backbone, places: np.ndarray) -> Tensor:
        graph = frames.batch(places).graph
        atoms = backbone(graph).double() if program is None else program.evaluate(graph)[0]
        predicted = sum_per_structure(atoms, graph) / unit  # (b,)
        return (predicted - targets[torch.from_numpy(places)]).abs().mean()

    learner = TorchLearner(potential.backbone, loss, options, frames.device)
    steps = -(-len(frames) // options.batch_size)
    trained = train(learner, options, steps, batches, report=report, state=state)
    potential.backbone.load_state_dict(trained.network.state_dict())
    potential.backbone.eval()
    return trained


def _set_scale(potential: Potential, scale: float) -> None:
    """Let outputs of order one mean residuals, where the backbone has such a unit."""
    if "scale" in potential.backbone.arguments:
        potential.backbone.scale = scale  # type: ignore[assignment]
        potential.backbone.arguments["scale"] = scale
