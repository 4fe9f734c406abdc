"""Layers with their derivatives (`tape`): linear layers, activations, sums, norms, energies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.fused.tape import Tape, Variable
from ase_biasgrad.numerics.activations import Jet

Tensors = tuple[Tensor, ...]


class Linear:
    """x Wᵀ + b over the last dimension of x `(…, in)`, W `(out, in)`, b `(out,)` or None."""

    def __init__(self, x: Variable, weight: Variable, bias: Variable | None = None) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        rows = _rows(x.data)
        if bias is None:
            y = rows @ weight.data.t()
        else:
            y = torch.addmm(bias.data, rows, weight.data.t())
        self.y = Variable(_like(y, x.data), x.active)
        self.results = (self.y,)

    def vjp(self) -> None:
        if self.x.active and self.y.adjoint is not None:
            self.x.add_adjoint(_like(_rows(self.y.adjoint) @ self.weight.data, self.y.data))

    def jvp(self) -> None:
        if self.x.tangent is not None:
            tangent = _rows(self.x.tangent) @ self.weight.data.t()
            self.y.tangent = _like(tangent, self.x.data)

    def second_order(self) -> None:
        gradient, adjoint, tangent = self.y.gradient, self.y.adjoint, self.x.tangent
        if gradient is not None:
            rows = _rows(gradient)
            self.x.give_gradient(_like(rows @ self.weight.data, gradient))
            self.weight.add_product(rows, _rows(self.x.data))
            if self.bias is not None:
                self.bias.give_gradient(rows.sum(0))
        if adjoint is not None and tangent is not None:
            self.weight.add_product(_rows(adjoint), _rows(tangent))


class Activation:
    """f(x) for each number of x."""

    def __init__(self, x: Variable, jet: Jet) -> None:
        self.x = x
        y, self.first, self.second = jet(x.data)
        self.y = Variable(y, x.active)
        self.results = (self.y,)

    def vjp(self) -> None:
        if self.x.active and self.y.adjoint is not None:
            self.x.add_adjoint(self.y.adjoint * self.first)

    def jvp(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self.x.tangent * self.first

    def second_order(self) -> None:
        gradient, adjoint, tangent = self.y.gradient, self.y.adjoint, self.x.tangent
        if gradient is not None:
            self.x.give_gradient(gradient * self.first)
        if adjoint is not None and tangent is not None:
            self.x.give_gradient((adjoint * self.second).mul_(tangent))


class Sum:
    """x + y + …, all of one shape."""

    def __init__(self, *terms: Variable) -> None:
        self.terms = terms
        first, second, *others = (term.data for term in terms)
        total = first + second
        for other in others:
            total += other
        self.y = Variable(total, any(term.active for term in terms))
        self.results = (self.y,)

    def vjp(self) -> None:
        for term in self.terms:
            if term.active and self.y.adjoint is not None:
                term.add_adjoint(self.y.adjoint)

    def jvp(self) -> None:
        moving = [term.tangent for term in self.terms if term.tangent is not None]
        if moving:
            total = moving[0]
            for tangent in moving[1:]:
                total = total + tangent
            self.y.tangent = total

    def second_order(self) -> None:
        if self.y.gradient is not None:
            for term in self.terms:
                term.add_gradient(self.y.gradient)


class FunctionLayer(ABC):
    """A layer by three functions of its inputs' data."""

    def __init__(self, *inputs: Variable) -> None:
        self.inputs = inputs
        active = any(value.active for value in inputs)
        self.results = tuple(Variable(y, active) for y in self.forward(*self._data()))

    def _data(self) -> Tensors:
        return tuple(value.data for value in self.inputs)

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensors:
        """The results."""

    @abstractmethod
    def adjoints(self, g: Tensors, *inputs: Tensor) -> Tensors:
        """Adjoints of the inputs from those of the results, g; new tensors."""

    @abstractmethod
    def jvp_adjoints(self, g: Tensors, d: Tensors, *inputs: Tensor) -> tuple[Tensors, Tensors]:
        """Change of the results with inputs that change by d, and adjoints of the inputs for the
        sum of g times that change."""

    def vjp(self) -> None:
        adjoints = self.adjoints(self._result_adjoints(), *self._data())
        for value, adjoint in zip(self.inputs, adjoints, strict=True):
            if value.active:
                value.add_adjoint(adjoint)

    def jvp(self) -> None:
        unused = all(value.adjoint is None for value in self.results)
        if unused or all(value.tangent is None for value in self.inputs):
            return
        moved = zeros_for_none([value.tangent for value in self.inputs], self.inputs)
        changes, bent = self.jvp_adjoints(self._result_adjoints(), moved, *self._data())
        for value, change in zip(self.results, changes, strict=True):
            value.tangent = change
        for value, gradient in zip(self.inputs, bent, strict=True):
            value.give_gradient(gradient)

    def second_order(self) -> None:
        if any(value.gradient is not None for value in self.results):
            g = zeros_for_none([value.gradient for value in self.results], self.results)
            for value, gradient in zip(self.inputs, self.adjoints(g, *self._data()), strict=True):
                value.give_gradient(gradient)

    def _result_adjoints(self) -> Tensors:
        return zeros_for_none([value.adjoint for value in self.results], self.results)


class Slice:
    """x[:, start:stop] of x `(n, f)`."""

    def __init__(self, x: Variable, start: int, stop: int) -> None:
        self.x, self.columns = x, slice(start, stop)
        self.y = Variable(x.data[:, self.columns].contiguous(), x.active)
        self.results = (self.y,)

    def vjp(self) -> None:
        if self.x.active and self.y.adjoint is not None:
            adjoint = torch.zeros_like(self.x.data)
            adjoint[:, self.columns] = self.y.adjoint
            self.x.add_adjoint(adjoint)

    def jvp(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self.x.tangent[:, self.columns].contiguous()

    def second_order(self) -> None:
        if self.y.gradient is not None:
            self.x.own_gradient()[:, self.columns] += self.y.gradient


class Concatenate:
    """x and y side by side, `(n, f + g)`."""

    def __init__(self, x: Variable, y: Variable) -> None:
        self.parts = x, y
        self.z = Variable(torch.cat([x.data, y.data], dim=1), x.active or y.active)
        self.results = (self.z,)

    def _split(self, z: Tensor) -> Iterator[tuple[Variable, Tensor]]:
        widths = [part.data.shape[1] for part in self.parts]
        return zip(self.parts, z.split(widths, dim=1), strict=True)

    def vjp(self) -> None:
        if self.z.adjoint is not None:
            for part, adjoint in self._split(self.z.adjoint):
                if part.active:
                    part.add_adjoint(adjoint)

    def jvp(self) -> None:
        tangents = [part.tangent for part in self.parts]
        if any(tangent is not None for tangent in tangents):
            known = [
                torch.zeros_like(part.data) if part.tangent is None else part.tangent
                for part in self.parts
            ]
            self.z.tangent = torch.cat(known, dim=1)

    def second_order(self) -> None:
        if self.z.gradient is not None:
            for part, gradient in self._split(self.z.gradient):
                part.add_gradient(gradient)


class Scale:
    """`factor` times x."""

    def __init__(self, x: Variable, factor: float) -> None:
        self.x, self.factor = x, factor
        self.y = Variable(factor * x.data, x.active)
        self.results = (self.y,)

    def vjp(self) -> None:
        if self.x.active and self.y.adjoint is not None:
            self.x.add_adjoint(self.factor * self.y.adjoint)

    def jvp(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self.factor * self.x.tangent

    def second_order(self) -> None:
        if self.y.gradient is not None:
            self.x.add_gradient(self.factor * self.y.gradient)


class LayerNorm:
    """x̂ w + b with x̂ = (x − mean)/√(variance + ε), over the features of x `(n, f)`."""

    def __init__(self, x: Variable, weight: Variable, bias: Variable, epsilon: float) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        centred = x.data - x.data.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        self.inverse = (variance + epsilon).rsqrt_()  # (n, 1), 1/σ
        self.unit = centred * self.inverse  # x̂
        self.y = Variable(torch.addcmul(bias.data, self.unit, weight.data), x.active)
        self.results = (self.y,)

    def _along(self, v: Tensor) -> Tensor:
        """⟨v x̂⟩, `(n, 1)`."""
        return (v * self.unit).mean(dim=1, keepdim=True)

    def _across(self, v: Tensor) -> Tensor:
        """v without its mean and without what it has of x̂: σ times the derivative of x̂."""
        across = v - v.mean(dim=1, keepdim=True)
        return across.addcmul_(self.unit, self._along(v), value=-1)

    def vjp(self) -> None:
        if self.x.active and self.y.adjoint is not None:
            self.x.add_adjoint(self._across(self.y.adjoint * self.weight.data).mul_(self.inverse))

    def jvp(self) -> None:
        if self.x.tangent is not None:
            self.moved = self._across(self.x.tangent).mul_(self.inverse)  # of x̂
            self.y.tangent = self.moved * self.weight.data

    def second_order(self) -> None:
        gradient, adjoint, tangent = self.y.gradient, self.y.adjoint, self.x.tangent
        if gradient is not None:
            self.weight.add_gradient((gradient * self.unit).sum(0))
            self.bias.add_gradient(gradient.sum(0))
            self.x.add_gradient(self._across(gradient * self.weight.data).mul_(self.inverse))
        if adjoint is not None and tangent is not None:
            self.weight.add_gradient((adjoint * self.moved).sum(0))
            self.x.add_gradient(self._bent(adjoint * self.weight.data, tangent))

    def _bent(self, g: Tensor, d: Tensor) -> Tensor:
        """Gradient in x of Σ g times the change of x̂ along d."""
        across_g, across_d = self._across(g), self._across(d)
        change = (g * across_d).mean(dim=1, keepdim=True)
        bent = self.unit * change
        bent.addcmul_(across_g, self._along(d)).addcmul_(across_d, self._along(g))
        return bent.mul_(-self.inverse.square())


class Energies:
    """`scale` times x `(n, 1)` in eV, `(n,)` float64."""

    def __init__(self, x: Variable, scale: float) -> None:
        self.x, self.scale = x, scale
        self.y = Variable(self._of(x.data), x.active)
        self.results = (self.y,)

    def _of(self, x: Tensor) -> Tensor:
        return (self.scale * x[:, 0]).to(torch.float64)

    def _back(self, g: Tensor) -> Tensor:
        return self.scale * g.to(self.x.data.dtype)[:, None]

    def vjp(self) -> None:
        if self.x.active and self.y.adjoint is not None:
            self.x.add_adjoint(self._back(self.y.adjoint))

    def jvp(self) -> None:
        if self.x.tangent is not None:
            self.y.tangent = self._of(self.x.tangent)

    def second_order(self) -> None:
        if self.y.gradient is not None:
            self.x.add_gradient(self._back(self.y.gradient))


def two_layers(tape: Tape, x: Variable, layers: torch.nn.Sequential, jet: Jet) -> Variable:
    """W₂ f(W₁ x + b₁) + b₂; activations of the layers' own are not applied."""
    first, second = layers
    hidden = linear(tape, x, first)
    return linear(tape, tape.add(Activation(hidden, jet)), second)


def linear(tape: Tape, x: Variable, layer: torch.nn.Module) -> Variable:
    """A `torch.nn.Linear` or SchNetPack's `Dense`, without its activation."""
    weight, bias = tape.parameter(layer.weight), layer.bias
    return tape.add(Linear(x, weight, None if bias is None else tape.parameter(bias)))


def layer_norm(tape: Tape, x: Variable, layer: torch.nn.LayerNorm) -> Variable:
    """A `torch.nn.LayerNorm` over the last dimension of x `(n, f)`."""
    weight, bias = tape.parameter(layer.weight), tape.parameter(layer.bias)
    return tape.add(LayerNorm(x, weight, bias, layer.eps))


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.flatten(0, -2)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows if x.dim() == 2 else rows.view(*x.shape[:-1], rows.shape[1])


def zeros_for_none(tensors: Sequence[Tensor | None], values: Sequence[Variable]) -> Tensors:
    """Zeros for None."""
    return tuple(
        torch.zeros_like(value.data) if tensor is None else tensor
        for tensor, value in zip(tensors, values, strict=True)
    )


def array(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().numpy()
