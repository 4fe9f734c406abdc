"""TensorNet of TorchMD-Net (Simeon and De Fabritiis 2023, arXiv:2306.06482)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.training.benchmarks.peers.protocol import Frames, Job

TITLE = "TorchMD-Net TensorNet"
REQUIREMENTS = ("torchmd-net==3.1.0",)
SOURCE = "https://github.com/torchmd/torchmd-net, examples/TensorNet-rMD17.yaml"
# the authors' size first: embedding dimension and layers
SIZES = ([128, 2], [64, 2], [32, 2], [32, 1], [16, 1])
BATCH_SIZE = 8
LEARNING_RATE = 1e-3
WARMUP_STEPS = 500
LARGEST_GRADIENT = 40.0
FORCES_WEIGHT, ENERGY_WEIGHT = 0.5, 0.5
# of a smoothed energy loss only this share has a gradient (`ema_alpha_y`)
ENERGY_SHARE = 0.01
KCAL_MOL = 23.060548  # in an eV; the authors train in kcal/mol, which sets what gradients are large
OPTIONS: dict[str, Any] = {
    "model": "tensornet",
    "activation": "silu",
    "aggr": "add",
    "atom_filter": -1,
    "cutoff_lower": 0.0,
    "cutoff_upper": 4.5,
    "derivative": True,
    "equivariance_invariance_group": "O(3)",
    "max_num_neighbors": 32,
    "max_z": 100,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "output_model": "Scalar",
    "reduce_op": "add",
    "prior_model": None,
    "precision": 32,
    "static_shapes": False,  # the authors' True serves CUDA graphs
    "remove_ref_energy": False,
}


def settings() -> dict[str, Any]:
    """All settings of the authors."""
    return {
        **OPTIONS,
        "sizes": SIZES,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": WARMUP_STEPS,
        "largest_gradient": LARGEST_GRADIENT,
        "forces_weight": FORCES_WEIGHT,
        "energy_weight": ENERGY_WEIGHT,
        "energy_share": ENERGY_SHARE,
        "optimizer": "AdamW",
    }


def train(job: Job) -> dict[str, Any]:
    """Train the largest TensorNet that finishes in the time."""
    import torch

    def tensors(frames: Frames) -> tuple[Any, Any, Any]:
        arrays = (frames.positions, frames.energy, frames.forces)
        return tuple(torch.tensor(array, dtype=torch.float32) for array in arrays)  # type: ignore[return-value]

    def evaluated(network: Any, positions: Any) -> tuple[Any, Any]:
        frames, atoms = positions.shape[:2]
        numbers = torch.as_tensor(job.train.numbers, dtype=torch.long).repeat(frames)
        owner = torch.arange(frames).repeat_interleave(atoms)
        energy, forces = network(numbers, positions.reshape(-1, 3).clone(), batch=owner)
        return energy.flatten(), forces.view(frames, atoms, 3)

    training, validation = tensors(job.train), tensors(job.validation)
    assert job.train.energy is not None
    spread = float(np.std(job.train.energy))
    tool = job.tool("descent")

    def make(size: list[int]) -> Any:
        network = _network(size, spread)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

        def loss(places: np.ndarray) -> Any:
            positions, energy, forces = (values[places] for values in training)
            found, found_forces = evaluated(network, positions)
            of_forces = FORCES_WEIGHT * (found_forces - forces).square().mean()
            of_energy = ENERGY_WEIGHT * ENERGY_SHARE * (found - energy).square().mean()
            return KCAL_MOL**2 * (of_forces + of_energy)

        def validate() -> float:
            found = evaluated(network, validation[0])[1]
            return float((found - validation[2]).abs().mean())

        return tool.Learner(network, optimizer, loss, validate)

    options = tool.Options(BATCH_SIZE, largest_gradient=LARGEST_GRADIENT, warmup_steps=WARMUP_STEPS)
    network, told = tool.train(job, SIZES, make, options)
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {"hyper_parameters": _arguments(told["size"]), "state_dict": weights}
    torch.save(checkpoint, job.model / "potential.ckpt")
    width, layers = told["size"]
    parameters = sum(p.numel() for p in network.parameters())
    return {**told, "size": f"{width} × {layers}", "parameters": parameters}


def _arguments(size: list[int]) -> dict[str, Any]:
    return {**OPTIONS, "embedding_dimension": size[0], "num_layers": size[1]}


def _network(size: list[int], spread: float) -> Any:
    import torch
    from torchmdnet.models.model import create_model

    return create_model(_arguments(size), mean=torch.tensor(0.0), std=torch.tensor(spread))


def calculator(model: Path) -> Calculator:
    """Its own ASE calculator."""
    import torch

    torch.set_num_threads(1)
    from torchmdnet.calculators import TMDNETCalculator

    class Neutral(TMDNETCalculator):  # type: ignore[misc]  # asks each structure for its charge
        def calculate(self, atoms: Any = None, *arguments: Any, **keywords: Any) -> None:
            atoms.info.setdefault("charge", 0)
            super().calculate(atoms, *arguments, **keywords)

    found: Calculator = Neutral(str(model / "potential.ckpt"), max_num_neighbors=32)
    return found
