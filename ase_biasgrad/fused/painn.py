"""`PaiNN` described with layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ase_biasgrad.fused.dense import SILU, Activation, Embedding, Linear
from ase_biasgrad.fused.messages import VectorMessage
from ase_biasgrad.fused.program import Program, Variable, widened
from ase_biasgrad.fused.radial import Functions, Weights, basis_and_cutoff, dense
from ase_biasgrad.fused.schnet import linear, read_out, scaled_readout
from ase_biasgrad.fused.vectors import Mix, NormsAndProducts
from ase_biasgrad.numerics.simd import WIDTH

EPSILON = 1e-8  # under the root of |V|

basis = basis_and_cutoff


def radial_functions(arguments: Mapping[str, Any]) -> int:
    """Number of evenly spaced Gaussians up to the cutoff that are as narrow as the filters."""
    count = int(arguments["radial_functions"])
    return 2 * count if arguments["radial_basis"] == "bessel" else count


def filters(
    arguments: Mapping[str, Any], w: Weights, basis: Any, envelope: Any, f: Functions
) -> Any:
    """Filters `(m, interactions × 3 × f)`."""
    return dense(w, "representation.filter_net", basis) * envelope


def derived(arguments: Mapping[str, Any], w: Weights, f: Functions) -> dict[str, Any]:
    """Further weights, made of parameters alone."""
    name = "representation.interactions.0.interatomic_context_net"
    hidden = f.silu(dense(w, f"{name}.0", w["representation.embedding.weight"]))
    # atoms of one element are still the same
    return {"context": dense(w, f"{name}.1", hidden), **scaled_readout(arguments, w)}


def describe(arguments: Mapping[str, Any], w: Weights, p: Program) -> None:
    """Append a `PaiNN` of these arguments and weights, those of `networks.all_weights`."""
    f, interactions = int(arguments["features"]), int(arguments["interactions"])
    coefficients = widened(w["filters"].reshape(-1, interactions, 3, f), (1, f))
    embedding = w["representation.embedding.weight"]
    q, mu = Embedding(p, widened(embedding, (1, f))).y, None
    for k in range(interactions):
        name = f"representation.interactions.{k}.interatomic_context_net"
        if k == 0:
            x = Embedding(p, interleaved(w["context"], f)).y
        else:
            hidden = Activation(p, linear(p, q, w, f"{name}.0", f, f), SILU).y
            x = _three_parts(p, hidden, w, f"{name}.1", f, (0, 1, 2))
        message = VectorMessage(p, q, mu, x, coefficients[:, k])
        q, mu = message.out_q, message.out_mu

        name = f"representation.mixing.{k}"
        both = widened(w[f"{name}.mu_channel_mix.weight"].T, (1, f), (2, f))
        vw = Linear(p, mu, both, rows=3).y
        joint = NormsAndProducts(p, q, vw, EPSILON)
        name = f"{name}.intraatomic_context_net"
        weight = widened(w[f"{name}.0.weight"].T, (2, f), (1, f))
        hidden = Linear(p, joint.joint, weight, widened(w[f"{name}.0.bias"], (1, f))).y
        hidden = Activation(p, hidden, SILU).y
        # a¹, a², a³ follow the formulas; SchNetPack's order is a¹, a³, a²
        a = _three_parts(p, hidden, w, f"{name}.1", f, (0, 2, 1))
        mixed = Mix(p, q, mu, a, joint.dots, vw)
        q, mu = mixed.out_q, mixed.out_mu
    read_out(p, q, arguments, w)


def interleaved(array: np.ndarray, features: int, order: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """The last axis, three parts of `features`, as `(f / w, 3, w)`."""
    parts = widened(array, (3, features))
    parts = parts.reshape(*array.shape[:-1], 3, -1, WIDTH)[..., order, :, :]
    return np.moveaxis(parts, -3, -2).reshape(*array.shape[:-1], -1)


def _three_parts(
    p: Program, x: Variable, w: Weights, name: str, f: int, order: tuple[int, ...]
) -> Variable:
    weight = widened(interleaved(w[f"{name}.weight"].T, f, order).T, (1, f)).T
    return Linear(p, x, weight, interleaved(w[f"{name}.bias"], f, order)).y
