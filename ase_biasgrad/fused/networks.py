"""Networks that have a program, by the names of their backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ase_biasgrad.fused import painn, schnet, tensornet
from ase_biasgrad.fused.operations import Operation
from ase_biasgrad.fused.program import Program, Rule
from ase_biasgrad.fused.radial import NUMPY, Functions, Weights
from ase_biasgrad.fused.runtime import CompiledNetwork
from ase_biasgrad.numerics.splines import RadialTable, sampled

NETWORKS = {"schnet": schnet, "painn": painn, "tensornet": tensornet}


def compiled_network(
    name: str, arguments: Mapping[str, Any], weights: Mapping[str, np.ndarray], dtype: np.dtype,
    rules: Mapping[Operation, Rule] | None = None,
) -> CompiledNetwork:  # fmt: skip
    """The program of a backbone of this name, with its arguments and parameters.

    With `rules`, such as `tangents.HESSIAN`, tangents follow.

    Raises
    ------
    ase_biasgrad.numerics.splines.SplineError
        If its filters cannot be sampled.
    """
    parameters = {key: np.asarray(value, np.float64) for key, value in weights.items()}
    network, functions = NETWORKS[name], filters_of(name, arguments, parameters)
    table = sampled(functions, float(arguments["cutoff"]), network.radial_functions(arguments))
    program = described(name, arguments, parameters, table).finish(rules)
    return CompiledNetwork(program.as_type(dtype), table.knots)


def filters_of(
    name: str, arguments: Mapping[str, Any], parameters: Weights
) -> Callable[[np.ndarray], np.ndarray]:
    """Filters `(m, channels)` of a network as a function of distances `(m,)` in Å."""
    network = NETWORKS[name]

    def filters(r: np.ndarray) -> np.ndarray:
        basis = network.basis(arguments, parameters, r)
        return network.filters(arguments, parameters, *basis, NUMPY)  # type: ignore[no-any-return]

    return filters


def described(
    name: str, arguments: Mapping[str, Any], parameters: Weights, table: RadialTable
) -> Program:
    """The program of a network, not yet finished; `table` has its filters."""
    at_zero = filters_of(name, arguments, parameters)(np.zeros(1))[0]
    weights = all_weights(name, arguments, parameters, table.coefficients, at_zero, NUMPY)
    p = Program()
    NETWORKS[name].describe(arguments, weights, p)
    return p


def all_weights(
    name: str, arguments: Mapping[str, Any], parameters: Weights, coefficients: Any, at_zero: Any,
    functions: Functions,
) -> dict[str, Any]:  # fmt: skip
    """Arrays that the description of a network arranges: parameters and what is made of them.

    Filters have the spline coefficients `(knots, channels)`, and at distance 0 the values
    `at_zero (channels,)`.
    """
    w = {**parameters, "filters": coefficients, "filters.at_zero": at_zero}
    return {**w, **NETWORKS[name].derived(arguments, w, functions)}
