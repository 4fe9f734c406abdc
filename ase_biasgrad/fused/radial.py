"""Radial functions of the networks on NumPy arrays, real or complex.

Derivatives come from a complex step (Squire and Trapp 1998, SIAM Review 40, 110):
f′(r) = Im f(r + iε)/ε is exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# arrays or, in training, tensors
Weights = Mapping[str, Any]


class Functions(NamedTuple):
    """Functions of an array library by which networks make weights of their parameters."""

    silu: Callable[[Any], Any]
    shifted_softplus: Callable[[Any], Any]
    concatenate: Callable[[list[Any], int], Any]  # along an axis


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e⁻ˣ)."""
    e = np.exp(np.where(x.real < 0, x, -x))  # never overflows
    return x * np.where(x.real < 0, e, 1.0) / (1 + e)


def shifted_softplus(x: np.ndarray) -> np.ndarray:
    """ln(1 + eˣ) − ln 2."""
    e = np.exp(np.where(x.real < 0, x, -x))
    return np.where(x.real < 0, 0.0, x) + np.log1p(e) - np.log(2.0)


NUMPY = Functions(silu, shifted_softplus, np.concatenate)


def dense(w: Weights, name: str, x: Any) -> Any:
    """x Wᵀ + b of a linear layer."""
    weight, bias = w[f"{name}.weight"].T, w[f"{name}.bias"]
    if isinstance(x, np.ndarray) and np.iscomplexobj(x):  # two real products, not four
        y = np.empty((*x.shape[:-1], weight.shape[1]), x.dtype)
        y.real = np.ascontiguousarray(x.real) @ weight + bias
        y.imag = np.ascontiguousarray(x.imag) @ weight
        return y
    return x @ weight + bias


def basis_and_cutoff(
    arguments: Mapping[str, Any], w: Weights, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Radial basis `(m, functions)` and cutoff function `(m, 1)` of SchNet and PaiNN.

    Formulas in `backbones.radial`, constants in the buffers of the backbone.
    """
    basis, cutoff = "representation.radial_basis", "representation.cutoff_fn"
    r = r[:, None]
    if arguments["radial_basis"] == "gaussian":
        widths, centres = w[f"{basis}.widths"], w[f"{basis}.offsets"]
        functions = np.exp(-0.5 / widths**2 * (r - centres) ** 2)
    else:
        functions = np.sin(r * w[f"{basis}.freqs"]) / np.where(r == 0, 1.0, r)
    end = w[f"{cutoff}.cutoff"]
    if arguments["cutoff_function"] == "cosine":
        return functions, cosine_cutoff(r, end)
    inside = r.real + w[f"{cutoff}.eps"] < end
    envelope = np.exp(1.0 - 1.0 / (1.0 - (r * inside / end) ** 2)) * inside
    return functions, envelope


def cosine_cutoff(r: np.ndarray, cutoff: float | np.ndarray) -> np.ndarray:
    """½ (1 + cos(πr/cutoff)) below the cutoff, 0 beyond."""
    return 0.5 * (1 + np.cos(np.pi / cutoff * r)) * (r.real < cutoff)
