"""MACE (Batatia et al. 2022, arXiv:2206.07697), package mace-torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.training.benchmarks.peers.protocol import Frames, Job

TITLE = "MACE"
REQUIREMENTS = ("mace-torch==0.3.16",)
SOURCE = "https://github.com/ACEsuit/mace/issues/57, an author's input for results of the paper"
# the authors' size first: channels and the highest degree of messages
SIZES = ([256, 2], [128, 2], [128, 1], [64, 1], [32, 1], [16, 1], [16, 0])
CUTOFF = 5.0  # Å
BATCH_SIZE = 5
LEARNING_RATE = 0.01
WEIGHT_DECAY = 5e-7
EMA_DECAY = 0.99
FORCES_WEIGHT = 1000.0  # beside the number of atoms as weight of energies, which count per atom
OPTIONS: dict[str, Any] = {
    "num_bessel": 8,
    "num_polynomial_cutoff": 5,
    "max_ell": 3,
    "num_interactions": 2,
    "correlation": 3,
    "radial_MLP": [64, 64, 64],
}


def settings() -> dict[str, Any]:
    """All settings of the authors."""
    return {
        **OPTIONS,
        "sizes": SIZES,
        "cutoff": CUTOFF,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "ema_decay": EMA_DECAY,
        "forces_weight": FORCES_WEIGHT,
        "optimizer": "Adam, AMSGrad",
    }


def train(job: Job) -> dict[str, Any]:
    """Train the largest MACE that finishes in the time."""
    import torch
    from mace import data, modules
    from mace.tools import AtomicNumberTable, torch_geometric

    torch.set_default_dtype(torch.float32)
    table = AtomicNumberTable(sorted({int(z) for z in job.train.numbers}))

    def graphs(frames: Frames) -> list[Any]:
        keys = data.KeySpecification(
            info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"}
        )
        assert frames.energy is not None
        assert frames.forces is not None
        every = frames.atoms()
        for atoms, energy, forces in zip(every, frames.energy, frames.forces, strict=True):
            atoms.calc = None
            atoms.info["REF_energy"], atoms.arrays["REF_forces"] = float(energy), forces
        configurations = data.config_from_atoms_list(every, key_specification=keys)
        return [data.AtomicData.from_config(c, table, CUTOFF) for c in configurations]

    def batch(chosen: list[Any]) -> Any:
        return torch_geometric.Batch.from_data_list(chosen)

    training, validation = graphs(job.train), batch(graphs(job.validation))
    measure = modules.WeightedEnergyForcesLoss(len(job.train.numbers), FORCES_WEIGHT)
    assert job.train.forces is not None
    scale = float(np.sqrt(np.mean(job.train.forces**2)))
    neighbours = float(np.mean([g.edge_index.shape[1] / g.num_nodes for g in training]))
    tool = job.tool("descent")

    def make(size: list[int]) -> Any:
        network = _network(size, table, scale, neighbours)
        groups = _parameter_groups(network)
        optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE, amsgrad=True)

        def loss(places: np.ndarray) -> Any:
            chosen = batch([training[k] for k in places])
            return measure(chosen, network(chosen.to_dict(), training=True))

        def validate() -> float:
            found = network(validation.to_dict(), training=False)["forces"]
            return float((found - validation.forces).abs().mean())

        return tool.Learner(network, optimizer, loss, validate)

    network, told = tool.train(job, SIZES, make, tool.Options(BATCH_SIZE, EMA_DECAY))
    torch.save(network.eval(), job.model / "potential.model")
    channels, degree = told["size"]
    parameters = sum(p.numel() for p in network.parameters())
    return {**told, "size": f"{channels} channels, L = {degree}", "parameters": parameters}


def _network(size: list[int], table: Any, scale: float, neighbours: float) -> Any:
    import torch
    from e3nn import o3
    from mace import modules

    channels, degree = size
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    hidden = " + ".join(f"{channels}x{k}{'eo'[k % 2]}" for k in range(degree + 1))
    return modules.ScaleShiftMACE(
        atomic_inter_scale=scale,
        atomic_inter_shift=0.0,
        atomic_energies=np.zeros(len(table)),  # the zero is the mean of the training frames
        avg_num_neighbors=neighbours,
        atomic_numbers=table.zs,
        num_elements=len(table),
        r_max=CUTOFF,
        interaction_cls=block,
        interaction_cls_first=block,
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        **OPTIONS,
    )


def _parameter_groups(network: Any) -> list[dict[str, Any]]:
    """Weight decay as mace-torch's own training has it: linear weights and products."""
    decayed: list[Any] = []
    others: list[Any] = []
    for name, parameter in network.named_parameters():
        linear = "linear.weight" in name or "skip_tp_full.weight" in name
        decays = name.startswith("products") or (name.startswith("interactions") and linear)
        (decayed if decays else others).append(parameter)
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]


def calculator(model: Path) -> Calculator:
    """Its own ASE calculator."""
    import torch

    torch.set_num_threads(1)
    from mace.calculators import MACECalculator

    found: Calculator = MACECalculator(
        model_paths=str(model / "potential.model"), device="cpu", default_dtype="float32"
    )
    return found
