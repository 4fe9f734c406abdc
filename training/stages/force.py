"""The force stage: fit the backbone to forces, and stress where there is some."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ase_biasgrad.fused.networks import NETWORKS
from ase_biasgrad.fused.training import TrainingNetwork
from ase_biasgrad.graph import AtomGraph, sum_per_structure
from ase_biasgrad.numerics.threads import fixed_threads
from ase_biasgrad.potential import Potential, voigt_stress
from ase_biasgrad.training.config import ForceStageOptions
from ase_biasgrad.training.elastic import springs_of
from ase_biasgrad.training.frames.device_frames import Batch, DeviceFrames
from ase_biasgrad.training.muon import Muon, hidden_matrices

LONGEST, WILD = 10.0, 100.0  # times the typical length of a force


class ForceStage(pl.LightningModule):
    """Minimises the force loss; residuals count in units of the RMS training force.

    Parameters
    ----------
    potential
        Changed in place.
    options
        Loss, optimizer, schedule.
    force_unit, stress_unit
        RMS force (eV/Å) and stress (eV/Å³) of the training frames; `stress_unit=None` leaves
        stress out.
    """

    def __init__(
        self,
        potential: Potential,
        options: ForceStageOptions,
        force_unit: float,
        stress_unit: float | None = None,
    ) -> None:
        super().__init__()
        self.potential = potential
        # the same parameters in a program; without one, autograd goes through the backbone
        self.network: TrainingNetwork | None = None
        if potential.backbone.name in NETWORKS:
            self.network = TrainingNetwork(potential.backbone)
        self._trained: list[torch.nn.Parameter] | None = None
        self.options = options
        self.force_unit = force_unit
        self.stress_unit = stress_unit if options.stress_weight > 0 else None
        self._training: list[Tensor] = []  # sums and counts of each batch, (2, t)
        self._mean_loss: Tensor | None = None  # of the epoch, when it is over
        self._validation: list[tuple[Tensor, Tensor]] = []

    @property
    def properties(self) -> tuple[str, ...]:
        return ("forces",) if self.stress_unit is None else ("forces", "stress")

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Torch on one thread, and the program on all that it had; nothing without a program.

        What torch computes beside a program is small, and its threads wait for each other in a
        loop: on a machine with other work a training would take many times as long.
        """
        count = torch.get_num_threads()
        if self.network is not None:
            torch.set_num_threads(1)
        try:
            with fixed_threads(count):
                yield
        finally:
            if self.network is not None:
                torch.set_num_threads(count)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        """Frames are resident on the device already."""
        return batch

    def loss(self, batch: Batch, predicted: dict[str, Tensor]) -> Tensor:
        """Loss of one batch, a scalar: the sum of its terms, each a mean over its labels."""
        return _sum_of_means(*self.loss_terms(batch, predicted))

    def loss_terms(self, batch: Batch, predicted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weighted sums `(t,)` of the terms over their labels, and the numbers of these `(t,)`."""
        terms = self._terms(batch, predicted)
        sums = torch.stack([weight * self._norm(residual).sum() for weight, residual, _ in terms])
        return sums, torch.stack([known.sum() for _, _, known in terms]).to(sums)

    def _terms(
        self, batch: Batch, predicted: dict[str, Tensor]
    ) -> list[tuple[float, Tensor, Tensor]]:
        """Weight, residuals and known labels of each term; a missing label has the residual 0.

        Forces count by the length of each atom's error, whatever its direction, and by each
        structure's `Springs.lengths`; stress by component.
        """
        known, errors = _force_errors(batch, predicted)
        errors = errors / self.force_unit
        terms = [(1.0, torch.linalg.vector_norm(errors, dim=1) / 3**0.5, known)]
        if self.options.elastic_weight > 0:
            springs = batch.springs or springs_of(batch.graph, batch.counts)
            first = torch.cumsum(batch.counts, 0) - batch.counts
            terms.append((self.options.elastic_weight, springs.lengths(errors), known[first]))
        if self.stress_unit is not None and batch.stress is not None:
            known = torch.isfinite(batch.stress)
            residual = torch.where(known, predicted["stress"] - batch.stress, 0.0)
            terms.append((self.options.stress_weight, residual / self.stress_unit, known))
        return terms

    @cached_property
    def loss_without_forces(self) -> float:
        """Loss of a typical structure for a potential that gives no forces at all."""
        one = self._norm(torch.ones(1))
        return float((1 + self.options.elastic_weight) * one)

    def _norm(self, residual: Tensor) -> Tensor:
        if self.options.loss == "l1":
            return residual.abs()
        if self.options.loss == "l2":
            return residual.square()
        zero, delta = torch.zeros_like(residual), self.options.huber_delta
        return torch.nn.functional.huber_loss(residual, zero, reduction="none", delta=delta)

    def predicted_in_training(self, batch: Batch) -> dict[str, Tensor]:
        """`properties` of the batch, differentiable in the parameters."""
        if self._has_program_for(batch):
            return self._by_program(batch.graph)
        return self.potential.evaluate(batch.graph, self.properties, create_graph=True)

    def predicted(self, batch: Batch) -> dict[str, Tensor]:
        """`properties` of the batch as constants."""
        if self._has_program_for(batch):
            with torch.no_grad():
                return self._by_program(batch.graph)
        values = self.potential.evaluate(batch.graph, self.properties)
        return {name: value.detach() for name, value in values.items()}

    def _has_program_for(self, batch: Batch) -> bool:
        return self.network is not None and batch.graph.device.type == "cpu"

    def _by_program(self, graph: AtomGraph) -> dict[str, Tensor]:
        assert self.network is not None
        energies, forces, strain_gradient = self.network.evaluate(graph)
        values = {"forces": forces}
        if "stress" in self.properties:
            values["stress"] = voigt_stress(strain_gradient, graph.cell)
        if "energy" in self.properties:
            bias = self.potential.bias(graph.numbers, graph.batch, graph.n_structures)
            values["energy"] = sum_per_structure(energies, graph) + bias
        return values

    def training_step(self, batch: Batch, _: int) -> Tensor:
        sums, counts = self.loss_terms(batch, self.predicted_in_training(batch))
        self._training.append(torch.stack([sums.detach(), counts]))
        if self.trainer.world_size > 1:
            # DDP takes the mean of gradients over processes, of which some have more labels
            counts = self.all_gather(counts).mean(dim=0)
        return _sum_of_means(sums, counts)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the parameters alone: those of the positions would cost as much again."""
        loss.backward(inputs=self._learning())

    def _learning(self) -> list[torch.nn.Parameter]:
        if self._trained is None:  # once: searching all modules takes as long as some layers
            self._trained = [p for p in self.potential.parameters() if p.requires_grad]
        return self._trained

    def mean_training_loss(self) -> Tensor:
        """Loss over all labels of an epoch that is over, of all processes: a scalar."""
        if self._mean_loss is None:  # the processes meet once an epoch for it
            total = torch.stack(self._training).sum(dim=0)  # (2, t)
            sums, counts = self.all_gather(total).reshape(-1, *total.shape).sum(dim=0)
            self._mean_loss = _sum_of_means(sums, counts)
        return self._mean_loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm, as Lightning does, but all parameters at once."""
        if gradient_clip_algorithm not in (None, "norm"):
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self._learning(), gradient_clip_val, foreach=True)

    def on_train_epoch_start(self) -> None:
        self._training.clear()
        self._mean_loss = None

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.mean_training_loss())
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def validation_step(self, batch: Batch, _: int) -> None:
        predicted = self.predicted(batch)
        known, error = _force_errors(batch, predicted)
        of_forces = torch.stack([error.abs().sum(), error.square().sum(), known.sum()])
        self._validation.append((torch.stack(self.loss_terms(batch, predicted)), of_forces))

    def on_validation_epoch_end(self) -> None:
        # every process has all validation frames
        of_terms, of_forces = (
            torch.stack(rows).sum(dim=0) for rows in zip(*self._validation, strict=True)
        )
        self._validation.clear()
        absolute, square, atoms = of_forces
        self.log("val_loss", _sum_of_means(*of_terms), sync_dist=True)
        self.log("val_force_mae", absolute / (3 * atoms), sync_dist=True)
        self.log("val_force_rmse", (square / (3 * atoms)).sqrt(), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        options, schedule = self.options, self.options.schedule
        optimizer = self._optimizer()
        if schedule.name == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer,
                factor=schedule.factor,
                patience=schedule.patience,
                min_lr=schedule.minimum,
            )
            per_epoch = {
                "scheduler": plateau,
                "monitor": "val_loss",
                "frequency": options.validate_every,
            }
            return {"optimizer": optimizer, "lr_scheduler": per_epoch}
        total = int(self.trainer.estimated_stepping_batches)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def _optimizer(self) -> torch.optim.Optimizer:
        rate, decay = self.options.learning_rate, self.options.weight_decay
        learning = self._learning()
        if self.options.optimizer == "adamw":
            return torch.optim.AdamW(learning, rate, weight_decay=decay, amsgrad=True, fused=True)
        matrices = hidden_matrices(self.potential.backbone)
        among = set(map(id, matrices))
        return Muon(matrices, [p for p in learning if id(p) not in among], rate, decay)

    def _rate(self, step: int, total: int) -> float:
        """Learning rate relative to its largest value: linear warm-up, then cosine or constant."""
        schedule = self.options.schedule
        if step < schedule.warmup_steps:
            return (step + 1) / schedule.warmup_steps
        if schedule.name == "constant":
            return 1.0
        lowest = min(1.0, schedule.minimum / self.options.learning_rate)
        done = (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Warm up for plateau, whose schedule knows epochs only."""
        schedule = self.options.schedule
        step = self.trainer.global_step
        if schedule.name == "plateau" and step < schedule.warmup_steps:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.options.learning_rate * (step + 1) / schedule.warmup_steps
        super().optimizer_step(*args, **kwargs)


class JointStage(ForceStage):
    """The baseline: forces and energies in one loss. Energies are relative to the bias.

    The bias holds the mean energy of each composition (float64), so that the loss sees centred
    energies; per structure, residuals count in units of RMS force × 1 Å.
    """

    @property
    def properties(self) -> tuple[str, ...]:
        return ("energy", *super().properties)

    def _terms(
        self, batch: Batch, predicted: dict[str, Tensor]
    ) -> list[tuple[float, Tensor, Tensor]]:
        assert self.options.joint is not None
        assert batch.energy is not None
        known = torch.isfinite(batch.energy)
        # float64 here, whatever the networks use: energies may be −1e4 eV
        residual = torch.where(known, predicted["energy"] - batch.energy, 0.0) / self.force_unit
        return [
            *super()._terms(batch, predicted),
            (self.options.joint.energy_weight, residual, known),
        ]


def _sum_of_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Σ of `sums / counts` over terms, a scalar; terms without any label are 0."""
    return (sums / torch.where(counts > 0, counts, 1.0)).sum()


def _force_errors(batch: Batch, predicted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Atoms with a force label `(n,)`, and errors of forces `(n, 3)`, 0 at the others."""
    assert batch.forces is not None
    known = torch.isfinite(batch.forces).all(dim=1)
    return known, torch.where(known[:, None], predicted["forces"] - batch.forces, 0.0)


def robust_rms(values: Tensor | None) -> float | None:
    """Root mean square of the components, in which no row counts above `LONGEST` typical lengths.

    The typical length is that of the 90th percentile of rows `(m, k)`, so that up to a tenth of the
    rows may be wild; without wild rows it is the plain root mean square. None without finite rows.
    """
    if values is None:
        return None
    lengths = torch.linalg.vector_norm(values[torch.isfinite(values).all(dim=1)], dim=1)
    if not len(lengths):
        return None
    longest = LONGEST * _typical(lengths) or float("inf")
    return float(lengths.clamp(max=longest).square().mean().sqrt() / values.shape[1] ** 0.5)


def wild_atoms(forces: Tensor) -> Tensor:
    """Rows of forces `(n, 3)` that are `WILD` times as long as the typical one, longest first."""
    lengths = torch.linalg.vector_norm(forces, dim=1)
    known = torch.isfinite(lengths)
    typical = _typical(lengths[known]) if bool(known.any()) else 0.0
    wild = known & (lengths > WILD * typical) & (typical > 0)
    rows = wild.nonzero()[:, 0]
    return rows[lengths[rows].argsort(descending=True)]


def _typical(lengths: Tensor) -> float:
    return float(np.quantile(lengths.cpu().numpy(), 0.9))


def check_labels(
    frames: DeviceFrames, needs: tuple[str, ...], where: str, in_all: bool = False
) -> None:
    """Require that some frame has each label in `needs`, or all frames (`in_all`).

    Raises
    ------
    ValueError
        Naming the label, and the first frame whose label is not finite. NaN all over is a missing
        label; forces of a frame are all there or all missing.
    """
    for name in needs:
        values = getattr(frames, name)
        if values is None:
            raise ValueError(f"{where}: has no {name} in any frame, which this training needs")
        rows = values.reshape(len(values), -1).cpu().numpy()
        finite, missing = np.isfinite(rows).all(axis=1), np.isnan(rows).all(axis=1)
        if name == "forces":
            first = np.cumsum(frames.atom_counts) - frames.atom_counts
            finite, missing = (np.logical_and.reduceat(of, first) for of in (finite, missing))
        fine = finite if in_all else finite | missing
        if not fine.all():
            frame = frames.frames[np.argmin(fine)]
            raise ValueError(f"{where}: frame {frame} has no finite {name}")
