"""`TensorNet` described with layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ase_biasgrad.fused.dense import SILU, Activation, Energies, LayerNorm, Linear
from ase_biasgrad.fused.messages import TensorCFConv, TensorMessage
from ase_biasgrad.fused.program import Program, Variable, widened
from ase_biasgrad.fused.radial import Functions, Weights, cosine_cutoff, dense
from ase_biasgrad.fused.tensors import (
    AddSquare,
    IrrepsLinear,
    Normalise,
    ScaleIrreps,
    SquaredNorms,
    SymmetricProduct,
)

EPSILON = 1e-5  # of the layer norms


def radial_functions(arguments: Mapping[str, Any]) -> int:
    """Number of evenly spaced Gaussians up to the cutoff that are as narrow as the filters."""
    return round(1.3 * arguments["radial_functions"])


def basis(arguments: Mapping[str, Any], w: Weights, r: np.ndarray) -> tuple[Any, Any]:
    """Radial basis `(m, functions)` and cutoff function `(m, 1)` at distances `(m,)` in Å."""
    cutoff, count = float(arguments["cutoff"]), int(arguments["radial_functions"])
    envelope, lowest = cosine_cutoff(r, cutoff)[:, None], np.exp(-cutoff)
    sharpness = (2.0 / count * (1.0 - lowest)) ** -2
    mapped = np.exp(-5.0 / cutoff * r)[:, None] - np.linspace(lowest, 1.0, count)
    return np.exp(-sharpness * mapped**2) * envelope, envelope


def filters(
    arguments: Mapping[str, Any], w: Weights, basis: Any, envelope: Any, f: Functions
) -> Any:
    """Filters `(m, layers × 3 × f)` of the embedding and of each interaction."""
    found = [dense(w, "embedding.radial", basis)]
    for k in range(int(arguments["interactions"])):
        hidden = basis
        for layer in range(3):
            hidden = f.silu(dense(w, f"layers.{k}.radial.{layer}", hidden))
        found.append(hidden)
    return f.concatenate(found, 1) * envelope


def derived(arguments: Mapping[str, Any], w: Weights, f: Functions) -> dict[str, Any]:
    """Further weights, made of parameters alone."""
    element, scale = w["embedding.element.weight"], float(arguments["scale"])
    return {
        "centre": element @ w["embedding.centre.weight"].T + w["embedding.centre.bias"],
        "neighbour": element @ w["embedding.neighbour.weight"].T,
        # the unit matrix is the first component times √3
        "own": 3**0.5 * w["filters.at_zero"][: int(arguments["features"])],
        "last.weight": scale * w["readout.2.weight"][0],
        "last.bias": scale * w["readout.2.bias"],
    }


def describe(arguments: Mapping[str, Any], w: Weights, p: Program) -> None:
    """Append a `TensorNet` of these arguments and weights, those of `networks.all_weights`."""
    f, layers = int(arguments["features"]), 1 + int(arguments["interactions"])
    shape = (layers, 3, f)
    coefficients = widened(w["filters"].reshape(-1, *shape), (1, f))
    own = widened(w["filters.at_zero"].reshape(shape), (1, f))

    # embedding: tensors from elements and directions, times functions of their norms
    x = TensorMessage(
        p, widened(w["centre"], (1, f)), widened(w["neighbour"], (1, f)), coefficients[:, 0],
        widened(w["own"], (1, f)),
    ).y  # fmt: skip
    scalars = _normed(p, SquaredNorms(p, x, parts=False).y, w, "embedding.norm", (1, f))
    scalars = _silu(p, scalars, w, "embedding.scalars.0", (1, f), (1, 2 * f))
    scalars = _silu(p, scalars, w, "embedding.scalars.1", (1, 2 * f), (3, f))
    x = ScaleIrreps(p, _irreps_linear(p, x, w, "embedding.mix", f), scalars).y

    for k in range(1, layers):
        x = Normalise(p, x).y
        y = _irreps_linear(p, x, w, f"layers.{k - 1}.before", f)
        message = TensorCFConv(p, y, coefficients[:, k], own[k]).y
        product = Normalise(p, SymmetricProduct(p, y, message).z).y
        x = AddSquare(p, x, _irreps_linear(p, product, w, f"layers.{k - 1}.after", f)).y

    half = max(1, f // 2)
    hidden = _normed(p, SquaredNorms(p, x, parts=True).y, w, "norm", (3, f))
    hidden = _silu(p, hidden, w, "readout.0", (3, f), (1, f))
    hidden = _silu(p, hidden, w, "readout.1", (1, f), (1, half))
    Energies(p, hidden, widened(w["last.weight"], (1, half)), w["last.bias"])


def _silu(
    p: Program, x: Variable, w: Weights, name: str, inputs: tuple[int, int],
    outputs: tuple[int, int],
) -> Variable:  # fmt: skip
    weight = widened(w[f"{name}.weight"].T, inputs, outputs)
    return Activation(p, Linear(p, x, weight, widened(w[f"{name}.bias"], outputs)).y, SILU).y


def _normed(p: Program, x: Variable, w: Weights, name: str, parts: tuple[int, int]) -> Variable:
    scale, shift = w[f"{name}.weight"], w[f"{name}.bias"]
    mask = widened(np.ones_like(scale), parts)
    return LayerNorm(p, x, widened(scale, parts), widened(shift, parts), mask, EPSILON).y


def _irreps_linear(p: Program, x: Variable, w: Weights, name: str, f: int) -> Variable:
    matrices = [widened(w[f"{name}.parts.{part}.weight"].T, (1, f), (1, f)) for part in range(3)]
    return IrrepsLinear(p, x, matrices).y
