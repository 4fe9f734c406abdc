"""`TensorNet` described with layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ase_biasgrad.fused.compiled.dense import SILU, Activation, Energies, LayerNorm, Linear
from ase_biasgrad.fused.compiled.messages import TensorCFConv, TensorMessage
from ase_biasgrad.fused.compiled.program import Program, Variable, widened
from ase_biasgrad.fused.compiled.radial import Weights, cosine_cutoff, dense, silu
from ase_biasgrad.fused.compiled.tensors import (
    AddSquare,
    IrrepsLinear,
    Normalise,
    ScaleIrreps,
    SquaredNorms,
    SymmetricProduct,
)
from ase_biasgrad.numerics.splines import RadialTable

EPSILON = 1e-5  # of the layer norms


def radial_functions(arguments: Mapping[str, Any]) -> int:
    """Number of evenly spaced Gaussians up to the cutoff that are as narrow as the filters."""
    return round(1.7 * arguments["radial_functions"])


def filters(arguments: Mapping[str, Any], w: Weights, r: np.ndarray) -> np.ndarray:
    """Filters `(m, layers × 3 × f)` of the embedding and of each interaction."""
    cutoff, count = float(arguments["cutoff"]), int(arguments["radial_functions"])
    envelope, lowest = cosine_cutoff(r, cutoff)[:, None], np.exp(-cutoff)
    sharpness = (2.0 / count * (1.0 - lowest)) ** -2
    mapped = np.exp(-5.0 / cutoff * r)[:, None] - np.linspace(lowest, 1.0, count)
    basis = np.exp(-sharpness * mapped**2) * envelope
    found = [dense(w, "embedding.radial", basis)]
    for k in range(int(arguments["interactions"])):
        hidden = basis
        for layer in range(3):
            hidden = silu(dense(w, f"layers.{k}.radial.{layer}", hidden))
        found.append(hidden)
    return np.concatenate(found, axis=1) * envelope


def describe(arguments: Mapping[str, Any], w: Weights, table: RadialTable) -> Program:
    """The program of a `TensorNet` of these arguments and parameters; `table` has its filters."""
    f, layers = int(arguments["features"]), 1 + int(arguments["interactions"])
    shape = (layers, 3, f)
    coefficients = widened(table.coefficients.reshape(-1, *shape), (1, f))
    own = widened(filters(arguments, w, np.zeros(1)).reshape(shape), (1, f))
    p = Program()

    # embedding: tensors from elements and directions, times functions of their norms
    element = w["embedding.element.weight"]
    centre = element @ w["embedding.centre.weight"].T + w["embedding.centre.bias"]
    neighbour = element @ w["embedding.neighbour.weight"].T
    x = TensorMessage(
        p, widened(centre, (1, f)), widened(neighbour, (1, f)), coefficients[:, 0],
        3**0.5 * own[0, 0],
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
    scale = float(arguments["scale"])
    last = scale * widened(w["readout.2.weight"][0], (1, half))
    Energies(p, hidden, last, scale * float(w["readout.2.bias"][0]))
    return p


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
