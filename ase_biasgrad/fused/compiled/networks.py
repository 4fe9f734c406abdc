"""Networks that have a program, by the names of their backbones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_biasgrad.fused.compiled import painn, schnet, tensornet
from ase_biasgrad.fused.compiled.program import Compiled
from ase_biasgrad.numerics.splines import Knots, sampled

NETWORKS = {"schnet": schnet, "painn": painn, "tensornet": tensornet}


@dataclass(frozen=True)
class CompiledNetwork:
    """A program, and the grid on which its filters are splines."""

    program: Compiled
    knots: Knots


def compiled_network(
    name: str, arguments: Mapping[str, Any], weights: Mapping[str, np.ndarray], dtype: np.dtype
) -> CompiledNetwork:
    """The program of a backbone of this name, with its arguments and parameters.

    Raises
    ------
    ase_biasgrad.numerics.splines.SplineError
        If its filters cannot be sampled.
    """
    network = NETWORKS[name]
    weights = {key: np.asarray(value, np.float64) for key, value in weights.items()}
    table = sampled(
        lambda r: network.filters(arguments, weights, r),
        float(arguments["cutoff"]),
        network.radial_functions(arguments),
    )
    program = network.describe(arguments, weights, table).finish().as_type(dtype)
    return CompiledNetwork(program, table.knots)
