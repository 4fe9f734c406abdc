"""TensorNet with its filters sampled once: energies and their derivatives written out, on the CPU.

The loops of training on NumPy arrays; nothing is recorded for autograd, whose operations would take
ten times as long as their work on a molecule.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ase_biasgrad.backbones import TensorNet
from ase_biasgrad.backbones.tensornet import PARTS, Interaction, PartwiseLinear
from ase_biasgrad.fused.message_loops import (
    cfconv_loop,
    cfconv_vjp_loop,
    tensor_message_loop,
    tensor_message_vjp_loop,
)
from ase_biasgrad.fused.tensornet import tensors_of_layer
from ase_biasgrad.fused.tensors import (
    ENDS,
    irreps_dot_loops,
    normalised_loops,
    normalised_vjp_loops,
    product_loops,
    product_vjp_loops,
    run_loops,
    scale_irreps_loops,
)
from ase_biasgrad.numerics.splines import sampled

Matrices = tuple[np.ndarray, ...]  # one (f, f) for each irreducible part


@dataclass(frozen=True)
class Neighbours:
    """Pairs of atoms within the cutoff, each once; floats as the network's."""

    i: np.ndarray  # (p,) int64
    j: np.ndarray  # (p,) int64
    first: np.ndarray  # (p,) int64, the first of six coefficients
    weights: np.ndarray  # (p, 6) of the coefficients
    tensors: np.ndarray  # (p, 9), see `tensornet.pair_tensors`

    @property
    def indices(self) -> tuple[np.ndarray, ...]:
        return self.i, self.j, self.first, *tensors_of_layer(0).arrays


class SampledTensorNet:
    """One `TensorNet` whose filters are splines; `table` says how accurate they are.

    Raises
    ------
    ase_biasgrad.numerics.splines.SplineError
        If the filters cannot be sampled.
    """

    def __init__(self, of: TensorNet, dtype: torch.dtype) -> None:
        exact = copy.deepcopy(of).to("cpu", torch.float64).requires_grad_(False)

        def filters(distances: Tensor) -> Tensor:
            return torch.cat([values.flatten(1) for values in exact.filters(distances)], dim=1)

        self.table = sampled(filters, of.cutoff, of.sampled_functions)
        net = copy.deepcopy(exact).to(dtype)
        shape = (-1, 1 + len(net.layers), len(PARTS), of.arguments["features"])
        coefficients = torch.from_numpy(self.table.coefficients).to(dtype).reshape(shape)
        at_zero = filters(torch.zeros(1, dtype=torch.float64)).to(dtype).reshape(shape)
        # (k, 3, f) for each layer
        coefficients_of = [part.contiguous().numpy() for part in coefficients.unbind(dim=1)]
        own_of = [part[0].contiguous().numpy() for part in at_zero.unbind(dim=1)]  # (3, f)
        self.embedding = SampledEmbedding(net, coefficients_of[0], own_of[0])
        layers = zip(net.layers, coefficients_of[1:], own_of[1:], strict=True)
        self.layers = [SampledInteraction(*layer) for layer in layers]  # type: ignore[arg-type]
        self.read_out = ReadOut(net)

    def evaluate(
        self, numbers: np.ndarray, near: Neighbours, derivatives: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies `(n,)` eV; adjoints of weights `(p, 6)` and tensors `(p, 9)`.

        Without `derivatives` the last two are 0.
        """
        adj_weights, adj_tensors = np.zeros_like(near.weights), np.zeros_like(near.tensors)
        x, embedded = self.embedding.forward(numbers, near)
        kept = []
        for layer in self.layers:
            x, saved = layer.forward(x, near)
            kept.append(saved)
        energies, read = self.read_out.forward(x)
        if derivatives:
            g = self.read_out.vjp(x, read)
            for layer, saved in zip(reversed(self.layers), reversed(kept), strict=True):
                g = layer.vjp(g, saved, near, adj_weights)
            self.embedding.vjp(g, embedded, near, adj_weights, adj_tensors)
        return energies, adj_weights, adj_tensors


class SampledEmbedding:
    """`TensorEmbedding`, in which an element is a row of two tables."""

    def __init__(self, net: TensorNet, coefficients: np.ndarray, own: np.ndarray) -> None:
        embedding = net.embedding
        self.coefficients = coefficients
        self.centre = embedding.centre(embedding.element.weight).numpy()  # (elements, f)
        self.neighbour = embedding.neighbour(embedding.element.weight).numpy()
        self.own = own.dtype.type(3**0.5) * own[0]  # (f,)
        self.mix = matrices_of(embedding.mix)
        self.scalars = ScalarNetwork(embedding.norm, list(embedding.scalars))

    def forward(self, numbers: np.ndarray, near: Neighbours) -> tuple[np.ndarray, Any]:
        """Tensors `(n, 9, f)`, and the data for the VJP."""
        centre, neighbour = self.centre[numbers], self.neighbour[numbers]
        x = np.zeros((len(numbers), sum(PARTS), len(self.own)), self.own.dtype)
        tensor_message_loop(
            *near.indices, neighbour, centre, self.coefficients, near.weights, near.tensors, x
        )
        x[:, 0] += self.own * (centre + neighbour)
        squares = np.einsum("ncf,ncf->nf", x, x)
        scalars, saved = self.scalars.forward(squares)
        mix = irreps_linear(x, self.mix)
        return scale_irreps(mix, scalars), (centre, neighbour, x, mix, scalars, saved)

    def vjp(
        self,
        g: np.ndarray,
        embedded: Any,
        near: Neighbours,
        adj_weights: np.ndarray,
        adj_tensors: np.ndarray,
    ) -> None:
        """Add the derivatives in weights and tensors, from the adjoint g of the tensors."""
        centre, neighbour, x, mix, scalars, saved = embedded
        adj_squares = self.scalars.vjp(irreps_dot(g, mix), saved)
        adj_x = irreps_linear_vjp(scale_irreps(g, scalars), self.mix)
        adj_x += 2 * adj_squares[:, None] * x
        unused = np.zeros_like(centre)
        tensor_message_vjp_loop(
            *near.indices, adj_x, neighbour, centre, self.coefficients, near.weights, near.tensors,
            unused, unused[:0], self.coefficients[:0], adj_weights, adj_tensors, False, True,
        )  # fmt: skip


class SampledInteraction:
    """`Interaction` with the filters of its pairs as splines."""

    def __init__(self, layer: Interaction, coefficients: np.ndarray, own: np.ndarray) -> None:
        self.coefficients, self.own = coefficients, own
        self.before, self.after = matrices_of(layer.before), matrices_of(layer.after)

    def forward(self, x: np.ndarray, near: Neighbours) -> tuple[np.ndarray, Any]:
        """Tensors `(n, 9, f)`, and the data for the VJP."""
        (start,) = run_loops(normalised_loops, [x])
        y = irreps_linear(start, self.before)
        message = scale_irreps(y, self.own)
        cfconv_loop(*near.indices, y, self.coefficients, near.weights, message)
        (product,) = run_loops(product_loops, [y, message])
        change = irreps_linear(run_loops(normalised_loops, [product])[0], self.after)
        (square,) = run_loops(product_loops, [change, change])
        square *= 0.5
        square += change
        square += start
        return square, (x, y, message, product, change)

    def vjp(
        self, g: np.ndarray, saved: Any, near: Neighbours, adj_weights: np.ndarray
    ) -> np.ndarray:
        """Adjoint of x from that of the result; adds the derivatives in weights."""
        x, y, message, product, change = saved
        adj_change, _ = run_loops(product_vjp_loops, [g, change, change], 2)  # ½ (one + the same)
        adj_change += g
        adj_normalised = irreps_linear_vjp(adj_change, self.after)
        (adj_product,) = run_loops(normalised_vjp_loops, [adj_normalised, product])
        adj_y, adj_message = run_loops(product_vjp_loops, [adj_product, y, message], 2)
        cfconv_vjp_loop(
            *near.indices, adj_message, y, self.coefficients, near.weights,
            adj_y, self.coefficients[:0], adj_weights, False, True,
        )  # fmt: skip
        adj_y += scale_irreps(adj_message, self.own)
        adj_start = irreps_linear_vjp(adj_y, self.before)
        adj_start += g
        return run_loops(normalised_vjp_loops, [adj_start, x])[0]


class ReadOut:
    """Energies of the squares of the parts."""

    def __init__(self, net: TensorNet) -> None:
        *hidden, last = net.readout
        self.scalars = ScalarNetwork(net.norm, hidden)
        self.weight = net.scale * last.weight.numpy()[0]  # type: ignore[operator]
        self.bias = net.scale * last.bias.numpy()  # type: ignore[operator]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        """Energies `(n,)` of tensors `(n, 9, f)`, and the data for the VJP."""
        hidden, saved = self.scalars.forward(irreps_dot(x, x))
        return hidden @ self.weight + self.bias, saved

    def vjp(self, x: np.ndarray, saved: Any) -> np.ndarray:
        """Adjoint of x."""
        g = np.broadcast_to(self.weight, (len(x), len(self.weight)))
        return scale_irreps(x, 2 * self.scalars.vjp(g, saved))


class ScalarNetwork:
    """Linear layers with activations, on scalars normalised over features."""

    def __init__(self, norm: nn.LayerNorm, layers: list[Any]) -> None:
        self.scale, self.shift, self.epsilon = norm.weight.numpy(), norm.bias.numpy(), norm.eps
        self.layers = [(layer.weight.numpy(), layer.bias.numpy()) for layer in layers]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        """Outputs `(n, out)` of x `(n, in)`, and the data for the VJP."""
        x = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(self.epsilon))
        x /= deviation
        hidden, kept = x * self.scale + self.shift, []
        for weight, bias in self.layers:
            inputs = hidden @ weight.T + bias
            sigmoid = 1 / (1 + np.exp(-inputs))
            hidden = inputs * sigmoid
            kept.append(sigmoid + hidden * (1 - sigmoid))
        return hidden, (x, deviation, kept)

    def vjp(self, g: np.ndarray, saved: Any) -> np.ndarray:
        """Adjoint of the scalars from that of the outputs."""
        x, deviation, kept = saved
        for (weight, _), derivative in zip(reversed(self.layers), reversed(kept), strict=True):
            g = (g * derivative) @ weight
        g = g * self.scale
        mean, along = g.mean(axis=1, keepdims=True), (g * x).mean(axis=1, keepdims=True)
        return (g - mean - x * along) / deviation


def scale_irreps(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """`tensors.ScaleIrreps` of x with factors `(n, 3 f)`, or `(3, f)` for all atoms."""
    out = np.zeros_like(x)
    scale_irreps_loops(x.shape[2])(x.reshape(-1), factors.reshape(-1), out.reshape(-1))
    return out


def irreps_dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums `(n, 3 f)` of xy over the components of each part."""
    out = np.empty((len(x), len(PARTS) * x.shape[2]), x.dtype)
    irreps_dot_loops(x.shape[2])(x.reshape(-1), y.reshape(-1), out.reshape(-1))
    return out


def matrices_of(mix: PartwiseLinear) -> Matrices:
    """Weights `(f, f)` of the three parts."""
    return tuple(part.weight.numpy() for part in mix.parts)  # type: ignore[operator, union-attr]


def irreps_linear(x: np.ndarray, matrices: Matrices) -> np.ndarray:
    """`tensors.IrrepsLinear` of x with one matrix for each part."""
    return irreps_linear_vjp(x, tuple(matrix.T for matrix in matrices))


def irreps_linear_vjp(g: np.ndarray, matrices: Matrices) -> np.ndarray:
    """Adjoint of x from that of the result of `irreps_linear`."""
    n, _, features = g.shape
    out = np.empty_like(g)
    for (start, end), matrix in zip(ENDS, matrices, strict=True):
        part = g[:, start:end].reshape(-1, features) @ matrix
        out[:, start:end] = part.reshape(n, end - start, features)
    return out
