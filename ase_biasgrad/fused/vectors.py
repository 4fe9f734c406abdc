"""PaiNN's layers on vector features, on the CPU.

`v` and `w` are the halves of mixed vectors `(n, 3, 2f)`: products of their components summed over
the three directions, and what they add to the features of an atom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.fused.layers import FunctionLayer, Tensors, array, zeros_for_none
from ase_biasgrad.fused.tape import Variable
from ase_biasgrad.fused.vector_loops import (
    message_loop,
    message_vjp_loop,
    mixing_loop,
    mixing_second_order_loop,
    mixing_vjp_loop,
    norm_loop,
    norm_second_order_loop,
    norm_vjp_loop,
)


class VectorNorms(FunctionLayer):
    """√(v·v + ε) `(n, f)` of mixed vectors `(n, 3, 2f)`."""

    def __init__(self, mixed: Variable, epsilon: float) -> None:
        self.epsilon = epsilon
        super().__init__(mixed)

    def forward(self, *inputs: Tensor) -> Tensors:
        (mixed,) = inputs
        self.norm = mixed.new_empty((len(mixed), mixed.shape[2] // 2))
        norm_loop(_halves(mixed), self.norm.numpy(), self.epsilon)
        return (self.norm,)

    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        (mixed,) = inputs
        adjoints = torch.empty_like(mixed)
        norm_vjp_loop(array(g[0]), _halves(mixed), self.norm.numpy(), _halves(adjoints))
        return (adjoints,)

    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        (mixed,) = inputs
        change, gradients = torch.empty_like(self.norm), torch.empty_like(mixed)
        norm_second_order_loop(
            array(g[0]), _halves(mixed), self.norm.numpy(), _halves(d[0]),
            change.numpy(), _halves(gradients),
        )  # fmt: skip
        return (change,), (gradients,)


class PaiNNMixing(FunctionLayer):
    """a⁰ + a² v·w `(n, f)` and a¹ w `(n, 3, f)` of factors a `(n, 3f)` and mixed vectors."""

    def forward(self, *inputs: Tensor) -> Tensors:
        factors, mixed = inputs
        features = mixed.shape[2] // 2
        scalar = mixed.new_empty((len(mixed), features))
        vector = mixed.new_empty((len(mixed), 3, features))
        mixing_loop(_three(factors), _halves(mixed), scalar.numpy(), vector.numpy())
        return scalar, vector

    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        factors, mixed = inputs
        adjoints = torch.empty_like(factors), torch.empty_like(mixed)
        adj_factors, adj_mixed = _three(adjoints[0]), _halves(adjoints[1])
        mixing_vjp_loop(*map(array, g), _three(factors), _halves(mixed), adj_factors, adj_mixed)
        return adjoints

    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        factors, mixed = inputs
        changes = torch.empty_like(g[0]), torch.empty_like(g[1])
        gradients = torch.empty_like(factors), torch.empty_like(mixed)
        mixing_second_order_loop(
            *map(array, g), _three(factors), _halves(mixed), _three(d[0]), _halves(d[1]),
            *map(array, changes), _three(gradients[0]), _halves(gradients[1]),
        )  # fmt: skip
        return changes, gradients


class PaiNNMessage(FunctionLayer):
    """a⁰ and a² mu, `(n, 4, f)`, of factors a `(n, 3f)` and vectors mu `(n, 3, f)`."""

    def forward(self, *inputs: Tensor) -> Tensors:
        factors, mu = inputs
        return (self._sent(factors, (factors, mu)),)

    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        factors, mu = inputs
        adj_factors, adj_mu = self._adjoints(g[0], factors, mu)
        adj_factors[:, : mu.shape[2]] = g[0][:, 0]
        return adj_factors, adj_mu

    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        factors, mu = inputs
        dfactors, dmu = d
        return (self._sent(dfactors, (dfactors, mu), (factors, dmu)),), self._adjoints(g[0], *d)

    @staticmethod
    def _sent(first: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
        n, _, features = products[0][1].shape
        sent = first.new_zeros((n, 4, features))
        sent[:, 0] = first[:, :features]
        for factors, mu in products:
            message_loop(_three(factors), array(mu), sent.numpy())
        return sent

    @staticmethod
    def _adjoints(g: Tensor, factors: Tensor, mu: Tensor) -> Tensors:
        adjoints = torch.zeros_like(factors), torch.zeros_like(mu)
        message_vjp_loop(
            array(g), _three(factors), array(mu), _three(adjoints[0]), adjoints[1].numpy()
        )
        return adjoints


class PaiNNAggregate:
    """Messages received `(n, 4, f)`, added to scalars `(n, f)` and vectors `(n, 3, f)`."""

    def __init__(self, scalars: Variable, vectors: Variable, received: Variable) -> None:
        self.inputs = scalars, vectors, received
        self.results = tuple(map(Variable, self._sums([value.data for value in self.inputs])))

    @staticmethod
    def _sums(terms: Sequence[Tensor]) -> Tensors:
        scalars, vectors, received = terms
        return scalars + received[:, 0], vectors + received[:, 1:]

    def vjp(self) -> None:
        adjoints = zeros_for_none([value.adjoint for value in self.results], self.results)
        for value, adjoint in zip(self.inputs, (*adjoints, self._joined(adjoints)), strict=True):
            if value.active:
                value.add_adjoint(adjoint)

    @staticmethod
    def _joined(parts: Tensors) -> Tensor:
        return torch.cat([parts[0].unsqueeze(1), parts[1]], dim=1)

    def jvp(self) -> None:
        if any(value.tangent is not None for value in self.inputs):
            moved = zeros_for_none([value.tangent for value in self.inputs], self.inputs)
            for value, tangent in zip(self.results, self._sums(moved), strict=True):
                value.tangent = tangent

    def second_order(self) -> None:
        if any(value.gradient is not None for value in self.results):
            g = zeros_for_none([value.gradient for value in self.results], self.results)
            for value, gradient in zip(self.inputs, (*g, self._joined(g)), strict=True):
                value.add_gradient(gradient)


def _three(factors: Tensor) -> np.ndarray:
    """`(n, 3f)` as `(n, 3, f)`."""
    return array(factors).reshape(len(factors), 3, factors.shape[1] // 3)


def _halves(mixed: Tensor) -> np.ndarray:
    """`(n, 3, 2f)` as `(n, 3, 2, f)`."""
    return array(mixed).reshape(len(mixed), 3, 2, mixed.shape[2] // 2)
