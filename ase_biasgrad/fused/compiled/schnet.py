"""`SchNet` described with layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ase_biasgrad.fused.compiled.dense import (
    SHIFTED_SOFTPLUS,
    SILU,
    Activation,
    Embedding,
    Energies,
    Linear,
)
from ase_biasgrad.fused.compiled.messages import CFConv
from ase_biasgrad.fused.compiled.program import Program, Variable, widened
from ase_biasgrad.fused.compiled.radial import Weights, basis_and_cutoff, dense, shifted_softplus
from ase_biasgrad.numerics.splines import RadialTable


def radial_functions(arguments: Mapping[str, Any]) -> int:
    """Number of evenly spaced Gaussians up to the cutoff that are as narrow as the filters."""
    count = int(arguments["radial_functions"])
    return 4 * count if arguments["radial_basis"] == "bessel" else count


def filters(arguments: Mapping[str, Any], w: Weights, r: np.ndarray) -> np.ndarray:
    """Filters `(m, interactions × f)`."""
    basis, envelope = basis_and_cutoff(arguments, w, r)
    found = []
    for k in range(int(arguments["interactions"])):
        name = f"representation.interactions.{k}.filter_network"
        found.append(dense(w, f"{name}.1", shifted_softplus(dense(w, f"{name}.0", basis))))
    return np.concatenate(found, axis=1) * envelope


def describe(arguments: Mapping[str, Any], w: Weights, table: RadialTable) -> Program:
    """The program of a `SchNet` of these arguments and parameters; `table` has its filters."""
    f, interactions = int(arguments["features"]), int(arguments["interactions"])
    coefficients = widened(table.coefficients.reshape(-1, interactions, f), (1, f))
    p = Program()
    embedding = w["representation.embedding.weight"]
    x = Embedding(p, widened(embedding, (1, f))).y
    for k in range(interactions):
        name = f"representation.interactions.{k}"
        inward = w[f"{name}.in2f.weight"].T
        if k == 0:  # atoms of one element are still the same
            y = Embedding(p, widened(embedding @ inward, (1, f))).y
        else:
            y = Linear(p, x, widened(inward, (1, f), (1, f))).y
        message = CFConv(p, y, coefficients[:, k]).y
        hidden = linear(p, message, w, f"{name}.f2out.0", f, f)
        hidden = Activation(p, hidden, SHIFTED_SOFTPLUS).y
        x = linear(p, hidden, w, f"{name}.f2out.1", f, f, add=x)
    read_out(p, x, arguments, w)
    return p


def linear(
    p: Program, x: Variable, w: Weights, name: str, inputs: int, outputs: int,
    add: Variable | None = None,
) -> Variable:  # fmt: skip
    """x Wᵀ + b (+ `add`) of a layer by name."""
    weight = widened(w[f"{name}.weight"].T, (1, inputs), (1, outputs))
    return Linear(p, x, weight, widened(w[f"{name}.bias"], (1, outputs)), add=add).y


def read_out(p: Program, x: Variable, arguments: Mapping[str, Any], w: Weights) -> None:
    """The readout of SchNet and PaiNN: dense layers with SiLU, each half as wide as the last."""
    layers, scale = int(arguments["readout_layers"]), float(arguments["scale"])
    width = int(arguments["features"])
    for k in range(layers - 1):
        narrower = len(w[f"readout.{k}.bias"])
        x = Activation(p, linear(p, x, w, f"readout.{k}", width, narrower), SILU).y
        width = narrower
    last = f"readout.{layers - 1}"
    weight = scale * widened(w[f"{last}.weight"][0], (1, width))
    Energies(p, x, weight, scale * float(w[f"{last}.bias"][0]))
