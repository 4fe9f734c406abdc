"""Operations of networks that are evaluated in four passes (`passes`): layers and activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ase_biasgrad.backbones.passes import Network, Value

# value, first and second derivative of an activation
Jet = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


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
            self.x.add_gradient(_like(rows @ self.weight.data, gradient))
            of_weight = self.weight.own_gradient()
            of_weight.addmm_(rows.t(), _rows(self.x.data))
            if self.bias is not None:
                self.bias.add_gradient(rows.sum(0))
        if slope is not None and tangent is not None:
            self.weight.own_gradient().addmm_(_rows(slope).t(), _rows(tangent))


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
            self.x.add_gradient(gradient * self.first)
        if slope is not None and tangent is not None:
            self.x.add_gradient((slope * self.second).mul_(tangent))


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


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows if x.dim() == 2 else rows.view(*x.shape[:-1], -1)
