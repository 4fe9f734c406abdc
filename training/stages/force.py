"""The force stage: fit the backbone to forces, and stress where there is some."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ase_biasgrad.fused.registry import fused_form
from ase_biasgrad.potential import Potential
from ase_biasgrad.training.config import ForceStageOptions
from ase_biasgrad.training.elastic import springs_of
from ase_biasgrad.training.frames.device_frames import Batch, DeviceFrames

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
        # the same parameters in their form for training; a tuple, so that they count once
        self._in_training = (Potential(fused_form(potential.backbone), potential.bias),)
        self._trained: list[torch.nn.Parameter] | None = None
        self.options = options
        self.force_unit = force_unit
        self.stress_unit = stress_unit if options.stress_weight > 0 else None
        self._training_losses: list[Tensor] = []
        self._validation: list[tuple[Tensor, ...]] = []

    @property
    def properties(self) -> tuple[str, ...]:
        return ("forces",) if self.stress_unit is None else ("forces", "stress")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        """Frames are resident on the device already."""
        return batch

    def loss(
        self, batch: Batch, predicted: dict[str, Tensor], share: Tensor | float = 1.0
    ) -> Tensor:
        """Loss of one batch, a scalar; `share` multiplies what is a mean over atoms."""
        of_atoms, of_structures = self.loss_terms(batch, predicted)
        return share * of_atoms + of_structures

    def loss_terms(self, batch: Batch, predicted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The part of the loss that is a mean over atoms, and that which is one over structures.

        Forces count by the length of each atom's error, whatever its direction, and by each
        structure's `Springs.lengths`; stress by component.
        """
        assert batch.forces is not None
        errors = (predicted["forces"] - batch.forces) / self.force_unit  # (n, 3)
        of_atoms = self._norm(torch.linalg.vector_norm(errors, dim=1) / 3**0.5)
        of_structures = torch.zeros_like(of_atoms)
        if self.options.elastic_weight > 0:
            springs = batch.springs or springs_of(batch.graph, batch.counts, batch.largest)
            lengths = springs.lengths(errors)  # (b,)
            of_structures = self.options.elastic_weight * self._norm(lengths)
        if self.stress_unit is not None and batch.stress is not None:
            known = torch.isfinite(batch.stress)
            residual = torch.where(known, predicted["stress"] - batch.stress, 0.0)
            stress = self._norm(residual / self.stress_unit)
            of_structures = of_structures + self.options.stress_weight * stress
        return of_atoms, of_structures

    @cached_property
    def loss_without_forces(self) -> float:
        """Loss of a typical structure for a potential that gives no forces at all."""
        one = self._norm(torch.ones(1))
        return float((1 + self.options.elastic_weight) * one)

    def _norm(self, residual: Tensor) -> Tensor:
        if self.options.loss == "l1":
            return residual.abs().mean()
        if self.options.loss == "l2":
            return residual.square().mean()
        delta = self.options.huber_delta
        return torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), delta=delta)

    def predicted_in_training(self, batch: Batch) -> dict[str, Tensor]:
        """`properties` of the batch, differentiable in the parameters."""
        (potential,) = self._in_training
        return potential.evaluate(batch.graph, self.properties, create_graph=True)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        predicted = self.predicted_in_training(batch)
        loss = self.loss(batch, predicted, self._share_of_atoms(batch))
        self._training_losses.append(loss.detach())
        return loss

    def _share_of_atoms(self, batch: Batch) -> Tensor | float:
        """Atoms of this process over the mean of all: DDP takes the mean over processes, and a
        loss should be the mean over atoms. Structures are as many in each."""
        if self.trainer.world_size == 1:
            return 1.0
        assert batch.forces is not None
        own = batch.forces.new_tensor(float(len(batch.forces)))
        return own / self.all_gather(own).mean()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the parameters alone: those of the positions would cost as much again."""
        loss.backward(inputs=self._learning())

    def _learning(self) -> list[torch.nn.Parameter]:
        if self._trained is None:  # once: searching all modules takes as long as some layers
            self._trained = [p for p in self.potential.parameters() if p.requires_grad]
        return self._trained

    def mean_training_loss(self) -> Tensor:
        """Mean loss over the batches of this epoch so far, of all processes: a scalar."""
        return self.all_gather(torch.stack(self._training_losses).mean()).mean()

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
        self._training_losses.clear()

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.mean_training_loss())
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def validation_step(self, batch: Batch, _: int) -> None:
        properties = ("energy", *self.properties)
        predicted = {
            name: value.detach()
            for name, value in self.potential.evaluate(batch.graph, properties).items()
        }
        assert batch.forces is not None
        error = predicted["forces"] - batch.forces
        of_atoms, of_structures = self.loss_terms(batch, predicted)
        atoms = error.new_tensor(float(len(error)))
        structures = error.new_tensor(float(batch.graph.n_structures))
        self._validation.append(
            (
                of_atoms * atoms,
                of_structures * structures,
                error.abs().sum() / 3,
                error.square().sum() / 3,
                atoms,
                structures,
            )
        )

    def on_validation_epoch_end(self) -> None:
        sums = torch.stack([torch.stack(row) for row in self._validation]).sum(dim=0)
        self._validation.clear()
        # every process has all validation frames
        of_atoms, of_structures, absolute, square, atoms, structures = sums
        self.log("val_loss", of_atoms / atoms + of_structures / structures, sync_dist=True)
        self.log("val_force_mae", absolute / atoms, sync_dist=True)
        self.log("val_force_rmse", (square / atoms).sqrt(), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        options, schedule = self.options, self.options.schedule
        parameters = [p for p in self.potential.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            amsgrad=options.amsgrad,
            fused=True,
        )
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

    def loss_terms(self, batch: Batch, predicted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        assert self.options.joint is not None
        assert batch.energy is not None
        of_atoms, of_structures = super().loss_terms(batch, predicted)
        # float64 here, whatever the networks use: energies may be −1e4 eV
        residual = (predicted["energy"] - batch.energy) / self.force_unit
        weight = self.options.joint.energy_weight
        return of_atoms, of_structures + weight * self._norm(residual)


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
    lengths = torch.linalg.vector_norm(forces, dim=1).nan_to_num()
    typical = _typical(lengths)
    rows = (
        (lengths > WILD * typical).nonzero()[:, 0] if typical > 0 else lengths.new_zeros(0).long()
    )
    return rows[lengths[rows].argsort(descending=True)]


def _typical(lengths: Tensor) -> float:
    return float(np.quantile(lengths.cpu().numpy(), 0.9))


def check_labels(frames: DeviceFrames, needs: tuple[str, ...], where: str) -> None:
    """Raise `ValueError` naming the first frame that lacks a label in `needs`."""
    for name in needs:
        values = getattr(frames, name)
        if values is None:
            raise ValueError(f"{where}: has no {name}, which this training needs")
        finite = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
        if name == "forces":
            owner = torch.repeat_interleave(
                torch.arange(len(frames)), torch.from_numpy(frames.atom_counts)
            ).to(values.device)
            bad = torch.zeros(len(frames), device=values.device, dtype=torch.int64)
            finite = bad.index_add_(0, owner, (~finite).long()) == 0
        if not bool(finite.all()):
            frame = int(frames.frames[int((~finite).nonzero()[0])])
            raise ValueError(f"{where}: frame {frame} has no finite {name}")
