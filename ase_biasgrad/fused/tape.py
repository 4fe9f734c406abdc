"""Tape of layers that know their derivatives: gradients of losses of forces in four passes.

With G = ∂E/∂r, the adjoints of the vectors r of all pairs, forces and stress are sums of G.
Let U = ∂L/∂G for a loss L of them. Then

    ∂L/∂θ = ∂/∂θ Σ G·U = ∂/∂θ [d/dε E(r + εU)]:

the gradient of a derivative of E in one direction. Four passes give it, each of which asks every
layer y = f(x, θ) for one thing:

    forward         y,
    VJP             the adjoint of x, ∂E/∂x, from that of y: all that forces need,
    JVP             the tangent of y, its change along U, from that of x,
    second order    the gradient of d/dε E in x and θ from that in y: the VJP of the JVP.

Autograd does the same by recording the VJP, with several times as many operations, which for
molecules take longer to dispatch than to work. Here a network is a list of layers that know their
four passes; autograd sees a single function of the vectors and of the parameters.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Variable:
    """A tensor on the tape with its derivatives; None stands for zeros.

    `adjoint` is ∂E/∂data, `tangent` the change of `data`, and `gradient` that of the loss. A
    variable is `active` if it depends on the vectors.
    """

    __slots__ = ("_owned", "active", "adjoint", "data", "gradient", "tangent")

    def __init__(self, data: Tensor, active: bool = True) -> None:
        self.data, self.active = data, active
        self.adjoint: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget tangent and gradient."""
        self.tangent: Tensor | None = None
        self.gradient: Tensor | None = None
        self._owned: Tensor | None = None  # the gradient, if it may be changed in place

    def add_adjoint(self, adjoint: Tensor) -> None:
        self.adjoint = adjoint if self.adjoint is None else self.adjoint + adjoint

    def add_gradient(self, gradient: Tensor) -> None:
        """Add a tensor that may belong to others, too."""
        if self.gradient is None:
            self.gradient = gradient
        else:
            self.own_gradient().add_(gradient)

    def give_gradient(self, gradient: Tensor) -> None:
        """Add a contiguous tensor that nobody else has."""
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


class Layer(Protocol):
    """One step of a network. Its forward pass is its construction, which makes `results`."""

    @property
    def results(self) -> tuple[Variable, ...]: ...

    def vjp(self) -> None:
        """Add to the adjoints of active inputs, from those of the results."""

    def jvp(self) -> None:
        """Set the tangents of the results from those of the inputs; may add to the gradients of
        the inputs the part that needs tangents and adjoints, or leave it for `second_order`."""

    def second_order(self) -> None:
        """Add to the gradients of the inputs: from those of the results, and from their
        adjoints where inputs have tangents."""


class Geometry(Protocol):
    """The vectors of pairs as layers see them."""

    def clear_adjoints(self) -> None:
        """Set adjoints to 0; layers add to them in their VJP."""

    def vjp(self) -> Tensor:
        """Adjoints of the vectors, `(p, 3)` float64, after the VJP of all layers."""

    def jvp(self, along: Tensor) -> None:
        """Set tangents for vectors that change by `along` `(p, 3)` float64."""


class Tape:
    """Layers in the order of the forward pass, and the parameters.

    The last layer gives energies `(n,)` in eV.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._layers: list[Layer] = []
        self._tensors: list[Tensor] = []
        self._parameters: list[Variable] = []
        self.vjp_count = 0  # so far; variables hold the adjoints of the last one

    def parameter(self, tensor: Tensor) -> Variable:
        """A parameter, or anything made from parameters alone, as an input of layers."""
        value = Variable(tensor.detach(), active=False)
        self._tensors.append(tensor)
        self._parameters.append(value)
        return value

    def add(self, layer: Layer) -> Variable:
        """Append a layer; return its result, or the first of several."""
        self._layers.append(layer)
        return layer.results[0]

    def energies(self, vectors: Tensor) -> Tensor:
        """Energies of the last layer, as a function of the `vectors` of the geometry `(p, 3)` and
        of all parameters.

        Differentiable once in the vectors, and the result once in the parameters, but not again
        in the vectors: there is no Hessian. The tape stays until the last tensor that depends on
        it has gone.
        """
        return _EnergiesOfVectors.apply(self, vectors) + _EnergiesOfParameters.apply(
            self, *self._tensors
        )

    @property
    def _result(self) -> Variable:
        return self._layers[-1].results[0]

    def vjp(self, adj_energies: Tensor) -> Tensor:
        """Adjoints `(p, 3)` of the vectors, from those of the energies `(n,)`."""
        self.vjp_count += 1
        self.geometry.clear_adjoints()
        for layer in self._layers:
            for value in layer.results:
                value.adjoint = None
        self._result.adjoint = adj_energies
        for layer in reversed(self._layers):
            if any(value.adjoint is not None for value in layer.results):
                layer.vjp()
        return self.geometry.vjp()

    def jvp(self, along: Tensor) -> Tensor:
        """Change of the energies `(n,)` for vectors that change `along` `(p, 3)`."""
        self.clear()
        self.geometry.jvp(along)
        for layer in self._layers:
            layer.jvp()
        moved = self._result.tangent
        return torch.zeros_like(self._result.data) if moved is None else moved

    def second_order(self, grad_energies: Tensor | None) -> list[Tensor | None]:
        """Gradients of all parameters: of the last JVP times the adjoints of the last VJP, and of
        `grad_energies` `(n,)` times the energies."""
        self._result.gradient = grad_energies
        for layer in reversed(self._layers):
            layer.second_order()
        return [value.gradient for value in self._parameters]

    def clear(self) -> None:
        """Forget tangents and gradients."""
        for value in self._parameters:
            value.clear()
        for layer in self._layers:
            for value in layer.results:
                value.clear()


class _EnergiesOfVectors(torch.autograd.Function):
    """The energies as a function of the vectors alone.

    Autograd runs backward only what leads to the tensors that are asked for. Forces ask for the
    vectors and a loss for the parameters, so each has a function of its own.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, vectors: Tensor) -> Tensor:
        ctx.tape = tape
        return tape._result.data.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, _VectorAdjoints.apply(ctx.tape, cotangents[0], *ctx.tape._tensors)


class _EnergiesOfParameters(torch.autograd.Function):
    """Zeros `(n,)` with the derivatives of the energies in all parameters."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, *parameters: Tensor) -> Tensor:
        ctx.tape = tape
        return torch.zeros_like(tape._result.data)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("a network has no second derivatives in its parameters")
        ctx.tape.clear()
        gradients = ctx.tape.second_order(cotangents[0])
        ctx.tape.clear()
        return None, *gradients


class _VectorAdjoints(torch.autograd.Function):
    """∂/∂vectors of the energies times g."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, g: Tensor, *parameters: Tensor) -> Tensor:
        ctx.tape = tape
        ctx.save_for_backward(g, *parameters)
        adjoints = tape.vjp(g)
        ctx.vjp_number = tape.vjp_count
        return adjoints

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        g, *_ = ctx.saved_tensors  # autograd refuses if any has been changed since
        tape = ctx.tape
        if tape.vjp_count != ctx.vjp_number:  # that of other energies came after it
            tape.vjp(g)
            ctx.vjp_number = tape.vjp_count
        moved = tape.jvp(cotangents[0])
        gradients = tape.second_order(None)
        tape.clear()
        return None, moved, *gradients
