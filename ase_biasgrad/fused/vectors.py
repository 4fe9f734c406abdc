"""PaiNN's products of vector features, and as operations in four passes (`passes`) on the CPU.

`v` and `w` are the halves of mixed vectors `(n, 3, 2f)`: products of their components summed over
the three directions, and what they add to the features of an atom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.fused.layers import Tensors, WrittenOut, array, filled
from ase_biasgrad.fused.tape import Value
from ase_biasgrad.fused.vector_loops import (
    norm_curvature_loop,
    norm_loop,
    norm_slopes_loop,
    send_loop,
    send_slopes_loop,
    update_curvature_loop,
    update_loop,
    update_slopes_loop,
)


class Norms(WrittenOut):
    """√(v·v + ε) `(n, f)` of mixed vectors `(n, 3, 2f)`."""

    def __init__(self, mixed: Value, epsilon: float) -> None:
        self.epsilon = epsilon
        super().__init__(mixed)

    def forward(self, *inputs: Tensor) -> Tensors:
        (mixed,) = inputs
        self.norm = mixed.new_empty((len(mixed), mixed.shape[2] // 2))
        norm_loop(_halves(mixed), self.norm.numpy(), self.epsilon)
        return (self.norm,)

    def slopes(self, g: Tensors, *inputs: Tensor) -> Tensors:
        (mixed,) = inputs
        slopes = torch.empty_like(mixed)
        norm_slopes_loop(array(g[0]), _halves(mixed), self.norm.numpy(), _halves(slopes))
        return (slopes,)

    def curvature(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        (mixed,) = inputs
        change, slopes = torch.empty_like(self.norm), torch.empty_like(mixed)
        norm_curvature_loop(
            array(g[0]), _halves(mixed), self.norm.numpy(), _halves(d[0]),
            change.numpy(), _halves(slopes),
        )  # fmt: skip
        return (change,), (slopes,)


class Updates(WrittenOut):
    """a⁰ + a² v·w `(n, f)` and a¹ w `(n, 3, f)` of factors a `(n, 3f)` and mixed vectors."""

    def forward(self, *inputs: Tensor) -> Tensors:
        factors, mixed = inputs
        features = mixed.shape[2] // 2
        scalar = mixed.new_empty((len(mixed), features))
        vector = mixed.new_empty((len(mixed), 3, features))
        update_loop(_three(factors), _halves(mixed), scalar.numpy(), vector.numpy())
        return scalar, vector

    def slopes(self, g: Tensors, *inputs: Tensor) -> Tensors:
        factors, mixed = inputs
        slopes = torch.empty_like(factors), torch.empty_like(mixed)
        update_slopes_loop(
            *map(array, g), _three(factors), _halves(mixed), _three(slopes[0]), _halves(slopes[1])
        )
        return slopes

    def curvature(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        factors, mixed = inputs
        changes = torch.empty_like(g[0]), torch.empty_like(g[1])
        slopes = torch.empty_like(factors), torch.empty_like(mixed)
        update_curvature_loop(
            *map(array, g), _three(factors), _halves(mixed), _three(d[0]), _halves(d[1]),
            *map(array, changes), _three(slopes[0]), _halves(slopes[1]),
        )  # fmt: skip
        return changes, slopes


class Send(WrittenOut):
    """a⁰ and a² mu, `(n, 4, f)`, of factors a `(n, 3f)` and vectors mu `(n, 3, f)`."""

    def forward(self, *inputs: Tensor) -> Tensors:
        factors, mu = inputs
        return (self._sent(factors, (factors, mu)),)

    def slopes(self, g: Tensors, *inputs: Tensor) -> Tensors:
        factors, mu = inputs
        of_factors, of_mu = self._slopes(g[0], factors, mu)
        of_factors[:, : mu.shape[2]] = g[0][:, 0]
        return of_factors, of_mu

    def curvature(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        factors, mu = inputs
        dfactors, dmu = d
        return (self._sent(dfactors, (dfactors, mu), (factors, dmu)),), self._slopes(g[0], *d)

    @staticmethod
    def _sent(first: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
        n, _, features = products[0][1].shape
        sent = first.new_zeros((n, 4, features))
        sent[:, 0] = first[:, :features]
        for factors, mu in products:
            send_loop(_three(factors), array(mu), sent.numpy())
        return sent

    @staticmethod
    def _slopes(g: Tensor, factors: Tensor, mu: Tensor) -> Tensors:
        slopes = torch.zeros_like(factors), torch.zeros_like(mu)
        send_slopes_loop(array(g), _three(factors), array(mu), _three(slopes[0]), slopes[1].numpy())
        return slopes


class Receive:
    """What was received `(n, 4, f)`, added to scalars `(n, f)` and vectors `(n, 3, f)`."""

    def __init__(self, scalars: Value, vectors: Value, received: Value) -> None:
        self.inputs = scalars, vectors, received
        self.results = tuple(map(Value, self._sums([value.data for value in self.inputs])))

    @staticmethod
    def _sums(terms: Sequence[Tensor]) -> Tensors:
        scalars, vectors, received = terms
        return scalars + received[:, 0], vectors + received[:, 1:]

    def reverse(self) -> None:
        slopes = filled([value.slope for value in self.results], self.results)
        for value, slope in zip(self.inputs, (*slopes, self._joined(slopes)), strict=True):
            if value.moves:
                value.add_slope(slope)

    @staticmethod
    def _joined(parts: Tensors) -> Tensor:
        return torch.cat([parts[0].unsqueeze(1), parts[1]], dim=1)

    def tangent(self) -> None:
        if any(value.tangent is not None for value in self.inputs):
            moved = filled([value.tangent for value in self.inputs], self.inputs)
            for value, tangent in zip(self.results, self._sums(moved), strict=True):
                value.tangent = tangent

    def learn(self) -> None:
        if any(value.gradient is not None for value in self.results):
            g = filled([value.gradient for value in self.results], self.results)
            for value, gradient in zip(self.inputs, (*g, self._joined(g)), strict=True):
                value.add_gradient(gradient)


def _three(factors: Tensor) -> np.ndarray:
    """`(n, 3f)` as `(n, 3, f)`."""
    return array(factors).reshape(len(factors), 3, factors.shape[1] // 3)


def _halves(mixed: Tensor) -> np.ndarray:
    """`(n, 3, 2f)` as `(n, 3, 2, f)`."""
    return array(mixed).reshape(len(mixed), 3, 2, mixed.shape[2] // 2)
