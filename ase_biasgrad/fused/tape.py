"""The gradient of a loss of forces in four passes over a network, written out.

With G = ∂E/∂r, the slopes of all energies in the vectors r of all pairs, forces and stress are
sums of G. Let U = ∂L/∂G for a loss L of them. Then

    ∂L/∂θ = ∂/∂θ Σ G·U = ∂/∂θ [d/dε E(r + εU)]:

the gradient of a derivative of E in one direction. Four passes give it, each of which asks every
operation y = f(x, θ) of the network for one thing:

    forward    y,
    reverse    the slope of E in x from that in y: all that forces need,
    tangent    how y changes along U from how x does,
    learn      the gradient of d/dε E in x and θ from that in y.

Autograd does the same by recording the reverse pass, with several times as many operations, which
for molecules take longer to dispatch than to work. Here a network is a list of operations that
know their four passes; autograd sees a single function of the vectors and of what learns.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Value:
    """A tensor of a network, and what the passes leave with it; None stands for zeros.

    `slope` is that of the energy in `data`, `tangent` the change of `data`, and `gradient` that of
    what learns.
    """

    __slots__ = ("_owned", "data", "gradient", "moves", "slope", "tangent")

    def __init__(self, data: Tensor, moves: bool = True) -> None:
        self.data, self.moves = data, moves  # whether it depends on the vectors
        self.slope: Tensor | None = None
        self.rest()

    def rest(self) -> None:
        """Forget tangent and gradient."""
        self.tangent: Tensor | None = None
        self.gradient: Tensor | None = None
        self._owned: Tensor | None = None  # the gradient, if it may be changed in place

    def add_slope(self, slope: Tensor) -> None:
        self.slope = slope if self.slope is None else self.slope + slope

    def add_gradient(self, gradient: Tensor) -> None:
        """The tensor may belong to others, too."""
        if self.gradient is None:
            self.gradient = gradient
        else:
            self.own_gradient().add_(gradient)

    def give_gradient(self, gradient: Tensor) -> None:
        """As `add_gradient`, of a contiguous tensor that nobody else has."""
        if self.gradient is None:
            self.gradient = self._owned = gradient
        else:
            self.own_gradient().add_(gradient)

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Add aᵀb of two matrices to the gradient."""
        if self.gradient is None:
            self.give_gradient(a.t() @ b)
        else:
            self.own_gradient().addmm_(a.t(), b)

    def own_gradient(self) -> Tensor:
        """The gradient, contiguous, to be added to in place."""
        if self._owned is None:
            if self.gradient is None:
                self._owned = self.data.new_zeros(self.data.shape)
            else:
                self._owned = self.gradient.clone(memory_format=torch.contiguous_format)
            self.gradient = self._owned
        return self._owned


class Operation(Protocol):
    """One step of a network. Its forward pass is its construction, which makes `results`."""

    @property
    def results(self) -> tuple[Value, ...]: ...

    def reverse(self) -> None:
        """Add to the slopes of inputs that move, from those of the results."""

    def tangent(self) -> None:
        """Set the tangents of the results from those of the inputs; may add to the gradients of
        the inputs what follows from both tangents and slopes, or leave it for `learn`."""

    def learn(self) -> None:
        """Add to the gradients of the inputs: from those of the results, and from the slopes of
        the results where inputs have tangents."""


class Geometry(Protocol):
    """What operations see of the vectors of pairs."""

    def forget(self) -> None:
        """Set slopes to 0, to which operations add in the reverse pass."""

    def slopes(self) -> Tensor:
        """Slopes in the vectors, `(p, 3)` float64, after the reverse pass."""

    def move(self, along: Tensor) -> None:
        """Make tangents for vectors that change by `along` `(p, 3)` float64."""


Made = TypeVar("Made", bound=Operation)


class Network:
    """Operations in the order of the forward pass, and the values that learn.

    The last operation gives energies `(n,)` in eV.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._layers: list[Operation] = []
        self._tensors: list[Tensor] = []
        self._learning: list[Value] = []
        self.reverse_passes = 0  # so far; values hold the slopes of the last one

    def learns(self, tensor: Tensor) -> Value:
        """A parameter, or anything made from parameters alone, as an input of layers."""
        value = Value(tensor.detach(), moves=False)
        self._tensors.append(tensor)
        self._learning.append(value)
        return value

    def add(self, operation: Operation) -> Value:
        """The next operation; returns its result, or the first of several."""
        self._layers.append(operation)
        return operation.results[0]

    def energies(self, vectors: Tensor) -> Tensor:
        """What the last operation made, as a function of the `vectors` of the geometry `(p, 3)`
        and of all that learns.

        Differentiable once in the vectors, and what comes of that once in what learns, but not
        again in the vectors: there is no Hessian. The network stays until the last tensor that
        was made of it has gone.
        """
        return _OfVectors.apply(self, vectors) + _OfParameters.apply(self, *self._tensors)

    @property
    def _result(self) -> Value:
        return self._layers[-1].results[0]

    def slopes(self, of_energies: Tensor) -> Tensor:
        """Reverse pass: slopes `(p, 3)` in the vectors, from those in the energies `(n,)`."""
        self.reverse_passes += 1
        self.geometry.forget()
        for operation in self._layers:
            for value in operation.results:
                value.slope = None
        self._result.slope = of_energies
        for operation in reversed(self._layers):
            if any(value.slope is not None for value in operation.results):
                operation.reverse()
        return self.geometry.slopes()

    def move(self, along: Tensor) -> Tensor:
        """Tangent pass: change of the energies `(n,)` for vectors that change `along` `(p, 3)`."""
        self.rest()
        self.geometry.move(along)
        for operation in self._layers:
            operation.tangent()
        moved = self._result.tangent
        return torch.zeros_like(self._result.data) if moved is None else moved

    def learn(self, of_energies: Tensor | None) -> list[Tensor | None]:
        """Gradients of all that learns: of the change that the last tangent pass found, times the
        slopes of the last reverse pass, and of `of_energies` `(n,)` times the energies."""
        self._result.gradient = of_energies
        for operation in reversed(self._layers):
            operation.learn()
        return [value.gradient for value in self._learning]

    def rest(self) -> None:
        """Forget tangents and gradients."""
        for value in self._learning:
            value.rest()
        for operation in self._layers:
            for value in operation.results:
                value.rest()


class _OfVectors(torch.autograd.Function):
    """The energies as a function of the vectors alone.

    Autograd runs backward only what leads to the tensors that are asked for. Forces ask for the
    vectors and a loss for the parameters, so each has a function of its own.
    """

    @staticmethod
    def forward(ctx: Any, network: Network, vectors: Tensor) -> Tensor:
        ctx.network = network
        return network._result.data.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, _Slopes.apply(ctx.network, cotangents[0], *ctx.network._tensors)


class _OfParameters(torch.autograd.Function):
    """Zeros `(n,)` with the derivatives of the energies in all that learns."""

    @staticmethod
    def forward(ctx: Any, network: Network, *learning: Tensor) -> Tensor:
        ctx.network = network
        return torch.zeros_like(network._result.data)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a network has no second derivatives in its parameters")
        ctx.network.rest()
        gradients = ctx.network.learn(cotangents[0])
        ctx.network.rest()
        return None, *gradients


class _Slopes(torch.autograd.Function):
    """∂/∂vectors of the energies times g."""

    @staticmethod
    def forward(ctx: Any, network: Network, g: Tensor, *learning: Tensor) -> Tensor:
        ctx.network = network
        ctx.save_for_backward(g, *learning)
        slopes = network.slopes(g)
        ctx.reverse_pass = network.reverse_passes
        return slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        g, *_ = ctx.saved_tensors  # autograd refuses if any has been changed since
        network = ctx.network
        if network.reverse_passes != ctx.reverse_pass:  # that of other energies came after it
            network.slopes(g)
            ctx.reverse_pass = network.reverse_passes
        moved = network.move(cotangents[0])
        gradients = network.learn(None)
        network.rest()
        return None, moved, *gradients
