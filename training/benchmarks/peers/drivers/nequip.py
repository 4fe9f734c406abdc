"""NequIP (Batzner et al. 2022, Nat. Commun. 13, 2453), package nequip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.training.benchmarks.peers.protocol import Frames, Job

TITLE = "NequIP"
REQUIREMENTS = ("nequip==0.19.1",)
SOURCE = "https://github.com/mir-group/nequip-input-files, revmd17/revmd17-ethanol-n950-l3.yaml"
# the authors' size first: features, highest degree, layers
SIZES = ([64, 3, 5], [64, 2, 5], [64, 1, 5], [32, 1, 4], [16, 1, 3], [16, 1, 2])
BATCH_SIZE = 5
LEARNING_RATE = 0.01
EMA_DECAY = 0.99
FORCES_WEIGHT, ENERGY_WEIGHT = 1000.0, 1.0  # of mean squares; total energies
OPTIONS: dict[str, Any] = {
    "r_max": 4.0,
    "parity": True,
    "num_bessels": 8,
    "bessel_trainable": True,
    "polynomial_cutoff_p": 6,
    "radial_mlp_depth": 3,
    "radial_mlp_width": 64,
    "per_type_energy_scales_trainable": True,
    "per_type_energy_shifts_trainable": True,
}


def settings() -> dict[str, Any]:
    """All settings of the authors."""
    return {
        **OPTIONS,
        "sizes": SIZES,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "ema_decay": EMA_DECAY,
        "forces_weight": FORCES_WEIGHT,
        "energy_weight": ENERGY_WEIGHT,
        "optimizer": "Adam, AMSGrad",
    }


def train(job: Job) -> dict[str, Any]:
    """Train the largest NequIP that finishes in the time."""
    import torch
    from nequip.data import AtomicDataDict, from_ase

    symbols = sorted(set(job.train.atoms()[0].get_chemical_symbols()))
    transforms = _transforms(symbols)

    def graphs(frames: Frames) -> list[Any]:
        found = []
        for atoms in frames.atoms():
            graph = from_ase(atoms)
            for transform in transforms:
                graph = transform(graph)
            found.append(_in_float64_positions(graph))
        return found

    batch = AtomicDataDict.batched_from_list
    training, validation = graphs(job.train), batch(graphs(job.validation))
    assert job.train.forces is not None
    arguments = {
        "type_names": symbols,
        "avg_num_neighbors": float(
            np.mean([g["edge_index"].shape[1] / len(g["pos"]) for g in training])
        ),
        "per_type_energy_scales": float(np.sqrt(np.mean(job.train.forces**2))),
        "per_type_energy_shifts": 0.0,  # the zero is the mean of the training frames
        "seed": job.seed,
    }
    tool = job.tool("descent")

    def make(size: list[int]) -> Any:
        network = _network(size, arguments)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, amsgrad=True)

        def loss(places: np.ndarray) -> Any:
            chosen = batch([training[k] for k in places])
            found = network(dict(chosen))
            forces = (found["forces"] - chosen["forces"]).square().mean()
            energy = (found["total_energy"] - chosen["total_energy"]).square().mean()
            return FORCES_WEIGHT * forces + ENERGY_WEIGHT * energy

        def validate() -> float:
            found = network(dict(validation))["forces"]
            return float((found - validation["forces"]).abs().mean())

        return tool.Learner(network, optimizer, loss, validate)

    network, told = tool.train(job, SIZES, make, tool.Options(BATCH_SIZE, EMA_DECAY))
    torch.save(network.state_dict(), job.model / "weights.pt")
    record = {"size": told["size"], "arguments": arguments}
    (job.model / "network.json").write_text(json.dumps(record), encoding="utf-8")
    features, degree, layers = told["size"]
    parameters = sum(p.numel() for p in network.parameters())
    size = f"{features} features, l = {degree}, {layers} layers"
    return {**told, "size": size, "parameters": parameters}


def _network(size: list[int], arguments: dict[str, Any]) -> Any:
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state(allow_tf32=False)
    features, degree, layers = size
    return NequIPGNNModel(
        model_dtype="float32",
        num_features=features,
        type_embed_num_features=features,
        l_max=degree,
        num_layers=layers,
        **OPTIONS,
        **arguments,
    )


def _transforms(symbols: list[str]) -> list[Any]:
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    species = {symbol: symbol for symbol in symbols}
    mapper = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=symbols, chemical_species_to_atom_type_map=species
    )
    return [mapper, NeighborListTransform(r_max=OPTIONS["r_max"])]


def _in_float64_positions(graph: Any) -> Any:
    """The package keeps positions and labels in float64 whatever the network's precision."""
    import torch

    kinds = (torch.float32, torch.float64)
    return {k: v.to(torch.float64) if v.dtype in kinds else v for k, v in graph.items()}


def calculator(model: Path) -> Calculator:
    """Its own ASE calculator, by autograd in eager mode."""
    import torch

    torch.set_num_threads(1)
    from nequip.integrations.ase import NequIPCalculator

    record = json.loads((model / "network.json").read_text(encoding="utf-8"))
    network = _network(record["size"], record["arguments"])
    network.load_state_dict(torch.load(model / "weights.pt", weights_only=True))
    transforms = _transforms(record["arguments"]["type_names"])
    found: Calculator = NequIPCalculator(network.eval(), "cpu", transforms=transforms)
    return found
