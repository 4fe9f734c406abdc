"""`SchNet` described with layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase_biasgrad.fused.dense import SHIFTED_SOFTPLUS, SILU, Activation, Embedding, Energies, Linear
from ase_biasgrad.fused.messages import CFConv
from ase_biasgrad.fused.program import Program, Variable, widened
from ase_biasgrad.fused.radial import Functions, Weights, basis_and_cutoff, dense

basis = basis_and_cutoff


def radial_functions(arguments: Mapping[str, Any]) -> int:
    """Number of evenly spaced Gaussians up to the cutoff that are as narrow as the filters."""
    count = int(arguments["radial_functions"])
    return 4 * count if arguments["radial_basis"] == "bessel" else count


def filters(
    arguments: Mapping[str, Any], w: Weights, basis: Any, envelope: Any, f: Functions
) -> Any:
    """Filters `(m, interactions × f)`."""
    found = []
    for k in range(int(arguments["interactions"])):
        name = f"representation.interactions.{k}.filter_network"
        found.append(dense(w, f"{name}.1", f.shifted_softplus(dense(w, f"{name}.0", basis))))
    return f.concatenate(found, 1) * envelope


def derived(arguments: Mapping[str, Any], w: Weights, f: Functions) -> dict[str, Any]:
    """Further weights, made of parameters alone."""
    inward = w["representation.interactions.0.in2f.weight"].T
    sent = w["representation.embedding.weight"] @ inward  # atoms of one element are still the same
    return {"sent": sent, **scaled_readout(arguments, w)}


def describe(arguments: Mapping[str, Any], w: Weights, p: Program) -> None:
    """Append a `SchNet` of these arguments and weights, those of `networks.all_weights`."""
    f, interactions = int(arguments["features"]), int(arguments["interactions"])
    coefficients = widened(w["filters"].reshape(-1, interactions, f), (1, f))
    x = Embedding(p, widened(w["representation.embedding.weight"], (1, f))).y
    for k in range(interactions):
        name = f"representation.interactions.{k}"
        if k == 0:
            y = Embedding(p, widened(w["sent"], (1, f))).y
        else:
            y = Linear(p, x, widened(w[f"{name}.in2f.weight"].T, (1, f), (1, f))).y
        message = CFConv(p, y, coefficients[:, k]).y
        hidden = linear(p, message, w, f"{name}.f2out.0", f, f)
        hidden = Activation(p, hidden, SHIFTED_SOFTPLUS).y
        x = linear(p, hidden, w, f"{name}.f2out.1", f, f, add=x)
    read_out(p, x, arguments, w)


def linear(
    p: Program, x: Variable, w: Weights, name: str, inputs: int, outputs: int,
    add: Variable | None = None,
) -> Variable:  # fmt: skip
    """x Wᵀ + b (+ `add`) of a layer by name."""
    weight = widened(w[f"{name}.weight"].T, (1, inputs), (1, outputs))
    return Linear(p, x, weight, widened(w[f"{name}.bias"], (1, outputs)), add=add).y


def scaled_readout(arguments: Mapping[str, Any], w: Weights) -> dict[str, Any]:
    """The last layer of the readout, in eV."""
    scale, last = float(arguments["scale"]), f"readout.{int(arguments['readout_layers']) - 1}"
    return {"last.weight": scale * w[f"{last}.weight"][0], "last.bias": scale * w[f"{last}.bias"]}


def read_out(p: Program, x: Variable, arguments: Mapping[str, Any], w: Weights) -> None:
    """The readout of SchNet and PaiNN: dense layers with SiLU, each half as wide as the last."""
    width = int(arguments["features"])
    for k in range(int(arguments["readout_layers"]) - 1):
        narrower = len(w[f"readout.{k}.bias"])
        x = Activation(p, linear(p, x, w, f"readout.{k}", width, narrower), SILU).y
        width = narrower
    Energies(p, x, widened(w["last.weight"], (1, width)), w["last.bias"])
