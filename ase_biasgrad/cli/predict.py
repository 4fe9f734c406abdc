"""`biasgrad predict`: energies, forces, properties or motion of structures by a trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.options import Device, Overwrite
from ase_biasgrad.files import refuse_existing, whole_file

if TYPE_CHECKING:
    from ase import Atoms

POTENTIALS = ("ase-biasgrad checkpoint", "ase-biasgrad dense network")


def predict(
    network: Annotated[
        Path, typer.Argument(help="checkpoint, or a network of `benchmark qm7`, `qm9` or `nbody`")
    ],
    structures: Annotated[list[Path], typer.Argument(help="files that ASE reads, datasets too")],
    output: Annotated[Path, typer.Option("--output", "-o", help="new file (extxyz)")],
    steps: Annotated[
        int, typer.Option(min=1, help="time steps of particles, each from the one before")
    ] = 1,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Predict energies, forces or properties of every frame, written as `predicted_…`.

    A potential gives energy, forces and, in a cell, stress; a network of QM9 its property. A
    network of N-body dynamics moves particles with velocities and charges (`momenta` and
    `initial_charges`), in time steps of its own.
    """
    from ase.io import write

    from ase_biasgrad.machine import torch_device

    refuse_existing(output, overwrite, [network, *structures])
    on = str(torch_device(device))
    kind = _format(network)
    frames = [frame for path in structures for frame in _frames(path)]
    if not frames:
        raise ValueError(f"{', '.join(map(str, structures))}: hold no frames")
    if kind in POTENTIALS:
        results = _by_calculator(network, kind, frames, on)
    elif kind == "ase-biasgrad qm9 network":
        results = _property(network, frames, on)
    elif kind == "ase-biasgrad nbody network":
        results = _motion(network, frames, steps, on)
    else:
        raise ValueError(f"{network}: is no network of ase-biasgrad, but {kind!r}")
    with whole_file(output) as temporary:
        write(temporary, results, format="extxyz")
    there = [*results[0].info, *results[0].arrays]
    names = ", ".join(name for name in there if name.startswith("predicted_"))
    typer.echo(f"{output}: {len(results)} frames with {names}")


def _format(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such network")
    try:
        with safe_open(str(path), "np") as file:
            metadata = json.loads((file.metadata() or {}).get("ase_biasgrad", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path}: is no network of ase-biasgrad: {error}") from error
    return metadata.get("format")


def _frames(path: Path) -> list[tuple[str, Atoms]]:
    """Frames of a file, each with its place in words."""
    from ase.io import iread

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    read = iread(path, ":", do_not_split_by_at_sign=True)
    return [(f"{path}: frame {number}", atoms) for number, atoms in enumerate(read)]


def _by_calculator(
    path: Path, kind: str, frames: list[tuple[str, Atoms]], device: str
) -> list[Atoms]:
    from ase_biasgrad.calculators import BiasGradCalculator, DenseCalculator

    calculator: Any = (
        BiasGradCalculator(path, device=device) if kind == POTENTIALS[0] else DenseCalculator(path)
    )
    results = []
    for where, atoms in frames:
        try:
            calculator.calculate(atoms, ["energy", "forces"])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{where}: {error}") from error
        found = calculator.results
        result = atoms.copy()
        result.calc = atoms.calc
        result.info["predicted_energy"] = float(found["energy"])
        result.arrays["predicted_forces"] = found["forces"].copy()
        if atoms.pbc.any() and "stress" in found:
            result.info["predicted_stress"] = found["stress"].copy()
        results.append(result)
    return results


def _property(path: Path, frames: list[tuple[str, Atoms]], device: str) -> list[Atoms]:
    from ase_biasgrad.training.benchmarks.loop import load_network
    from ase_biasgrad.training.benchmarks.qm9.network import ELEMENTS, QM9Network
    from ase_biasgrad.training.benchmarks.qm9.training import predict as predicted

    network, training = load_network(path, QM9Network)
    for where, atoms in frames:
        if strange := sorted({*atoms.symbols[[z not in ELEMENTS for z in atoms.numbers]]}):
            raise ValueError(f"{where}: holds {', '.join(strange)}, which QM9 has not")
        if atoms.pbc.any():
            raise ValueError(f"{where}: is periodic, and this network is for molecules")
    name, cutoff = training["options"]["property"], training["options"]["cutoff"]
    molecules = [(atoms.numbers, atoms.positions) for _, atoms in frames]
    values = predicted(network.to(device), molecules, cutoff)
    results = [atoms for _, atoms in frames]
    for atoms, value in zip(results, values, strict=True):
        atoms.info[f"predicted_{name}"] = float(value)
    typer.echo(f"predicted_{name} in {training['unit']}")
    return results


def _motion(path: Path, frames: list[tuple[str, Atoms]], steps: int, device: str) -> list[Atoms]:
    import numpy as np

    from ase_biasgrad.data.sets.nbody import VARIANTS
    from ase_biasgrad.training.benchmarks.loop import load_network
    from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, rollout

    network, training = load_network(path, NBodyNetwork)
    if training.get("variant") not in VARIANTS:
        raise ValueError(f"{path}: does not say which system it was trained on")
    variant = VARIANTS[training["variant"]]
    system, network = variant.system, network.to(device)
    step = variant.ahead * system.interval * system.timestep
    results = []
    for where, atoms in frames:
        charges = atoms.get_initial_charges()
        if len(atoms) != system.particles or not (np.abs(charges) == 1).all():
            raise ValueError(
                f"{where}: this network knows {system.particles} particles with initial_charges "
                f"of 1 or -1, not {len(atoms)} with {charges.tolist()}"
            )
        start = (atoms.positions, atoms.get_velocities(), charges)
        for number, (x, v) in enumerate(zip(*rollout(network, *start, steps), strict=True)):
            moved = atoms.copy()
            moved.positions[:] = x
            moved.set_velocities(v)
            moved.info["predicted_time"] = number * step
            results.append(moved)
    typer.echo(f"a step is {step:g} in time; velocities are momenta over masses")
    return results
