"""Operations of networks that are evaluated in four passes (`passes`): layers and activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.fused.tape import Network, Value
from ase_biasgrad.numerics.activations import Jet

Tensors = tuple[Tensor, ...]


class Linear:
    """x Wᵀ + b over the last dimension of x `(…, in)`, W `(out, in)`, b `(out,)` or None."""

    def __init__(self, x: Value, weight: Value, bias: Value | None = None) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        rows = _rows(x.data)
        if bias is None:
            y = rows @ weight.data.t()
        else:
            y = torch.addmm(bias.data, rows, weight.data.t())
        self.y = Value(_like(y, x.data), x.moves)
        self.results = (self.y,)

    def reverse(self) -> None:
        if self.x.moves and self.y.slope is not None:
            self.x.add_slope(_like(_rows(self.y.slope) @ self.weight.data, self.y.data))

    def tangent(self) -> None:
        if self.x.tangent is not None:
            tangent = _rows(self.x.tangent) @ self.weight.data.t()
            self.y.tangent = _like(tangent, self.x.data)

    def learn(self) -> None:
        gradient, slope, tangent = self.y.gradient, self.y.slope, self.x.tangent
        if gradient is not None:
            rows = _rows(gradient)
            self.x.give_gradient(_like(rows @ self.weight.data, gradient))
            self.weight.add_product(rows, _rows(self.x.data))
            if self.bias is not None:
                self.bias.give_gradient(rows.sum(0))
        if slope is not None and tangent is not None:
            self.weight.add_product(_rows(slope), _rows(tangent))


class Activation:
    """f(x) for each number of x."""

    def __init__(self, x: Value, jet: Jet) -> None:
        self.x = x
        y, self.first, self.second = jet(x.data)
        self.y = Value(y, x.moves)
        self.results = (self.y,)

    def reverse(self) -> None:
        if self.x.moves and self.y.slope is not None:
            self.x.add_slope(self.y.slope * self.first)

    def tangent(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self.x.tangent * self.first

    def learn(self) -> None:
        gradient, slope, tangent = self.y.gradient, self.y.slope, self.x.tangent
        if gradient is not None:
            self.x.give_gradient(gradient * self.first)
        if slope is not None and tangent is not None:
            self.x.give_gradient((slope * self.second).mul_(tangent))


class Sum:
    """x + y + …, all of one shape."""

    def __init__(self, *terms: Value) -> None:
        self.terms = terms
        first, second, *others = (term.data for term in terms)
        total = first + second
        for other in others:
            total += other
        self.y = Value(total, any(term.moves for term in terms))
        self.results = (self.y,)

    def reverse(self) -> None:
        for term in self.terms:
            if term.moves and self.y.slope is not None:
                term.add_slope(self.y.slope)

    def tangent(self) -> None:
        moving = [term.tangent for term in self.terms if term.tangent is not None]
        if moving:
            total = moving[0]
            for tangent in moving[1:]:
                total = total + tangent
            self.y.tangent = total

    def learn(self) -> None:
        if self.y.gradient is not None:
            for term in self.terms:
                term.add_gradient(self.y.gradient)


class WrittenOut(ABC):
    """An operation by three functions of its inputs' data."""

    def __init__(self, *inputs: Value) -> None:
        self.inputs = inputs
        moves = any(value.moves for value in inputs)
        self.results = tuple(Value(y, moves) for y in self.forward(*self._data()))

    def _data(self) -> Tensors:
        return tuple(value.data for value in self.inputs)

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensors:
        """The results."""

    @abstractmethod
    def slopes(self, g: Tensors, *inputs: Tensor) -> Tensors:
        """Of Σ g · results in the inputs; new tensors, as below."""

    @abstractmethod
    def curvature(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        """How results change with inputs that change by d, and slopes of the sum of that times
        g in the inputs."""

    def reverse(self) -> None:
        slopes = self.slopes(self._slopes_of_results(), *self._data())
        for value, slope in zip(self.inputs, slopes, strict=True):
            if value.moves:
                value.add_slope(slope)

    def tangent(self) -> None:
        unused = all(value.slope is None for value in self.results)
        if unused or all(value.tangent is None for value in self.inputs):
            return
        moved = filled([value.tangent for value in self.inputs], self.inputs)
        changes, bent = self.curvature(self._slopes_of_results(), moved, *self._data())
        for value, change in zip(self.results, changes, strict=True):
            value.tangent = change
        for value, gradient in zip(self.inputs, bent, strict=True):
            value.give_gradient(gradient)

    def learn(self) -> None:
        if any(value.gradient is not None for value in self.results):
            g = filled([value.gradient for value in self.results], self.results)
            for value, gradient in zip(self.inputs, self.slopes(g, *self._data()), strict=True):
                value.give_gradient(gradient)

    def _slopes_of_results(self) -> Tensors:
        return filled([value.slope for value in self.results], self.results)


class Columns:
    """x[:, start:stop] of x `(n, f)`."""

    def __init__(self, x: Value, start: int, stop: int) -> None:
        self.x, self.columns = x, slice(start, stop)
        self.y = Value(x.data[:, self.columns].contiguous(), x.moves)
        self.results = (self.y,)

    def reverse(self) -> None:
        if self.x.moves and self.y.slope is not None:
            slope = torch.zeros_like(self.x.data)
            slope[:, self.columns] = self.y.slope
            self.x.add_slope(slope)

    def tangent(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self.x.tangent[:, self.columns].contiguous()

    def learn(self) -> None:
        if self.y.gradient is not None:
            self.x.own_gradient()[:, self.columns] += self.y.gradient


class Joined:
    """x and y side by side, `(n, f + g)`."""

    def __init__(self, x: Value, y: Value) -> None:
        self.parts = x, y
        self.z = Value(torch.cat([x.data, y.data], dim=1), x.moves or y.moves)
        self.results = (self.z,)

    def _split(self, z: Tensor) -> Iterator[tuple[Value, Tensor]]:
        widths = [part.data.shape[1] for part in self.parts]
        return zip(self.parts, z.split(widths, dim=1), strict=True)

    def reverse(self) -> None:
        if self.z.slope is not None:
            for part, slope in self._split(self.z.slope):
                if part.moves:
                    part.add_slope(slope)

    def tangent(self) -> None:
        tangents = [part.tangent for part in self.parts]
        if any(tangent is not None for tangent in tangents):
            known = [
                torch.zeros_like(part.data) if part.tangent is None else part.tangent
                for part in self.parts
            ]
            self.z.tangent = torch.cat(known, dim=1)

    def learn(self) -> None:
        if self.z.gradient is not None:
            for part, gradient in self._split(self.z.gradient):
                part.add_gradient(gradient)


class Scaled:
    """`factor` times x."""

    def __init__(self, x: Value, factor: float) -> None:
        self.x, self.factor = x, factor
        self.y = Value(factor * x.data, x.moves)
        self.results = (self.y,)

    def reverse(self) -> None:
        if self.x.moves and self.y.slope is not None:
            self.x.add_slope(self.factor * self.y.slope)

    def tangent(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self.factor * self.x.tangent

    def learn(self) -> None:
        if self.y.gradient is not None:
            self.x.add_gradient(self.factor * self.y.gradient)


class LayerNorm:
    """x̂ w + b with x̂ = (x − mean)/√(variance + ε), over the features of x `(n, f)`."""

    def __init__(self, x: Value, weight: Value, bias: Value, epsilon: float) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        centred = x.data - x.data.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        self.inverse = (variance + epsilon).rsqrt_()  # (n, 1), 1/σ
        self.unit = centred * self.inverse  # x̂
        self.y = Value(torch.addcmul(bias.data, self.unit, weight.data), x.moves)
        self.results = (self.y,)

    def _along(self, v: Tensor) -> Tensor:
        """⟨v x̂⟩, `(n, 1)`."""
        return (v * self.unit).mean(dim=1, keepdim=True)

    def _across(self, v: Tensor) -> Tensor:
        """v without its mean and without what it has of x̂: σ times the derivative of x̂."""
        across = v - v.mean(dim=1, keepdim=True)
        return across.addcmul_(self.unit, self._along(v), value=-1)

    def reverse(self) -> None:
        if self.x.moves and self.y.slope is not None:
            self.x.add_slope(self._across(self.y.slope * self.weight.data).mul_(self.inverse))

    def tangent(self) -> None:
        if self.x.tangent is not None:
            self.moved = self._across(self.x.tangent).mul_(self.inverse)  # of x̂
            self.y.tangent = self.moved * self.weight.data

    def learn(self) -> None:
        gradient, slope, tangent = self.y.gradient, self.y.slope, self.x.tangent
        if gradient is not None:
            self.weight.add_gradient((gradient * self.unit).sum(0))
            self.bias.add_gradient(gradient.sum(0))
            self.x.add_gradient(self._across(gradient * self.weight.data).mul_(self.inverse))
        if slope is not None and tangent is not None:
            self.weight.add_gradient((slope * self.moved).sum(0))
            self.x.add_gradient(self._bent(slope * self.weight.data, tangent))

    def _bent(self, g: Tensor, d: Tensor) -> Tensor:
        """Slope in x of Σ g times the change of x̂ along d."""
        across_g, across_d = self._across(g), self._across(d)
        change = (g * across_d).mean(dim=1, keepdim=True)
        bent = self.unit * change
        bent.addcmul_(across_g, self._along(d)).addcmul_(across_d, self._along(g))
        return bent.mul_(-self.inverse.square())


class Energies:
    """`scale` times x `(n, 1)` in eV, `(n,)` float64."""

    def __init__(self, x: Value, scale: float) -> None:
        self.x, self.scale = x, scale
        self.y = Value(self._of(x.data), x.moves)
        self.results = (self.y,)

    def _of(self, x: Tensor) -> Tensor:
        return (self.scale * x[:, 0]).to(torch.float64)

    def _back(self, g: Tensor) -> Tensor:
        return self.scale * g.to(self.x.data.dtype)[:, None]

    def reverse(self) -> None:
        if self.x.moves and self.y.slope is not None:
            self.x.add_slope(self._back(self.y.slope))

    def tangent(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self._of(self.x.tangent)

    def learn(self) -> None:
        if self.y.gradient is not None:
            self.x.add_gradient(self._back(self.y.gradient))


def two_layers(network: Network, x: Value, layers: torch.nn.Sequential, jet: Jet) -> Value:
    """W₂ f(W₁ x + b₁) + b₂; activations of the layers' own are not applied."""
    first, second = layers
    hidden = linear(network, x, first)
    return linear(network, network.add(Activation(hidden, jet)), second)


def linear(network: Network, x: Value, layer: torch.nn.Module) -> Value:
    """A `torch.nn.Linear` or SchNetPack's `Dense`, without its activation."""
    weight, bias = network.learns(layer.weight), layer.bias
    return network.add(Linear(x, weight, None if bias is None else network.learns(bias)))


def layer_norm(network: Network, x: Value, layer: torch.nn.LayerNorm) -> Value:
    """A `torch.nn.LayerNorm` over the last dimension of x `(n, f)`."""
    weight, bias = network.learns(layer.weight), network.learns(layer.bias)
    return network.add(LayerNorm(x, weight, bias, layer.eps))


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.flatten(0, -2)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows if x.dim() == 2 else rows.view(*x.shape[:-1], rows.shape[1])


def filled(tensors: Sequence[Tensor | None], values: Sequence[Value]) -> Tensors:
    """Zeros for None."""
    return tuple(
        torch.zeros_like(value.data) if tensor is None else tensor
        for tensor, value in zip(tensors, values, strict=True)
    )


def array(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().numpy()
