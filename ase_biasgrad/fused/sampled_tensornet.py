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
    convolve_loop,
    convolve_slopes_loop,
    lift_loop,
    lift_slopes_loop,
)
from ase_biasgrad.fused.tensornet import tensors_of_layer
from ase_biasgrad.fused.tensors import (
    ENDS,
    by_part_loops,
    dot_by_part_loops,
    filled,
    normalised_loops,
    normalised_slope_loops,
    product_loops,
    product_slope_loops,
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
        rows = torch.from_numpy(self.table.rows).to(dtype).reshape(shape)
        at_zero = filters(torch.zeros(1, dtype=torch.float64)).to(dtype).reshape(shape)
        rows_of = [part.contiguous().numpy() for part in rows.unbind(dim=1)]  # (rows, 3, f)
        own_of = [part[0].contiguous().numpy() for part in at_zero.unbind(dim=1)]  # (3, f)
        self.embedding = SampledEmbedding(net, rows_of[0], own_of[0])
        layers = zip(net.layers, rows_of[1:], own_of[1:], strict=True)
        self.layers = [SampledInteraction(*layer) for layer in layers]  # type: ignore[arg-type]
        self.read_out = ReadOut(net)

    def evaluate(
        self, numbers: np.ndarray, near: Neighbours, derivatives: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies `(n,)` eV; of their sum ∂/∂weights `(p, 6)` and ∂/∂tensors `(p, 9)`.

        Without `derivatives` the last two are 0.
        """
        of_weights, of_tensors = np.zeros_like(near.weights), np.zeros_like(near.tensors)
        x, embedded = self.embedding.forward(numbers, near)
        passed = []
        for layer in self.layers:
            x, through = layer.forward(x, near)
            passed.append(through)
        energies, read = self.read_out.forward(x)
        if derivatives:
            g = self.read_out.backward(x, read)
            for layer, through in zip(reversed(self.layers), reversed(passed), strict=True):
                g = layer.backward(g, through, near, of_weights)
            self.embedding.backward(g, embedded, near, of_weights, of_tensors)
        return energies, of_weights, of_tensors


class SampledEmbedding:
    """`TensorEmbedding`, in which an element is a row of two tables."""

    def __init__(self, net: TensorNet, rows: np.ndarray, own: np.ndarray) -> None:
        embedding = net.embedding
        self.rows = rows
        self.centre = embedding.centre(embedding.element.weight).numpy()  # (elements, f)
        self.neighbour = embedding.neighbour(embedding.element.weight).numpy()
        self.own = own.dtype.type(3**0.5) * own[0]  # (f,)
        self.mix = matrices_of(embedding.mix)
        self.scalars = ScalarNetwork(embedding.norm, list(embedding.scalars))

    def forward(self, numbers: np.ndarray, near: Neighbours) -> tuple[np.ndarray, Any]:
        """Tensors `(n, 9, f)`, and what the derivative needs."""
        centre, neighbour = self.centre[numbers], self.neighbour[numbers]
        x = np.zeros((len(numbers), sum(PARTS), len(self.own)), self.own.dtype)
        lift_loop(*near.indices, neighbour, centre, self.rows, near.weights, near.tensors, x)
        x[:, 0] += self.own * (centre + neighbour)
        squares = np.einsum("ncf,ncf->nf", x, x)
        scalars, through = self.scalars.forward(squares)
        mix = mixed(x, self.mix)
        return by_part(mix, scalars), (centre, neighbour, x, mix, scalars, through)

    def backward(
        self,
        g: np.ndarray,
        embedded: Any,
        near: Neighbours,
        of_weights: np.ndarray,
        of_tensors: np.ndarray,
    ) -> None:
        """Add the derivatives in weights and tensors, from the cotangent g of the tensors."""
        centre, neighbour, x, mix, scalars, through = embedded
        of_squares = self.scalars.backward(dot_by_part(g, mix), through)
        of_x = mixed_slopes(by_part(g, scalars), self.mix)
        of_x += 2 * of_squares[:, None] * x
        unused = np.zeros_like(centre)
        lift_slopes_loop(
            *near.indices, of_x, neighbour, centre, self.rows, near.weights, near.tensors,
            unused, unused[:0], self.rows[:0], of_weights, of_tensors, False, True,
        )  # fmt: skip


class SampledInteraction:
    """`Interaction` with the filters of its pairs as splines."""

    def __init__(self, layer: Interaction, rows: np.ndarray, own: np.ndarray) -> None:
        self.rows, self.own = rows, own
        self.before, self.after = matrices_of(layer.before), matrices_of(layer.after)

    def forward(self, x: np.ndarray, near: Neighbours) -> tuple[np.ndarray, Any]:
        """Tensors `(n, 9, f)`, and what the derivative needs."""
        (start,) = filled(normalised_loops, [x])
        y = mixed(start, self.before)
        message = by_part(y, self.own)
        convolve_loop(*near.indices, y, self.rows, near.weights, message)
        (product,) = filled(product_loops, [y, message])
        change = mixed(filled(normalised_loops, [product])[0], self.after)
        (square,) = filled(product_loops, [change, change])
        square *= 0.5
        square += change
        square += start
        return square, (x, y, message, product, change)

    def backward(
        self, g: np.ndarray, through: Any, near: Neighbours, of_weights: np.ndarray
    ) -> np.ndarray:
        """The cotangent of x from that of the result; adds the derivatives in weights."""
        x, y, message, product, change = through
        of_change, _ = filled(product_slope_loops, [g, change, change], 2)  # ½ (one + the same)
        of_change += g
        of_normalised = mixed_slopes(of_change, self.after)
        (of_product,) = filled(normalised_slope_loops, [of_normalised, product])
        of_y, of_message = filled(product_slope_loops, [of_product, y, message], 2)
        convolve_slopes_loop(
            *near.indices, of_message, y, self.rows, near.weights,
            of_y, self.rows[:0], of_weights, False, True,
        )  # fmt: skip
        of_y += by_part(of_message, self.own)
        of_start = mixed_slopes(of_y, self.before)
        of_start += g
        return filled(normalised_slope_loops, [of_start, x])[0]


class ReadOut:
    """From squares of the parts to energies."""

    def __init__(self, net: TensorNet) -> None:
        *hidden, last = net.readout
        self.scalars = ScalarNetwork(net.norm, hidden)
        self.weight = net.scale * last.weight.numpy()[0]  # type: ignore[operator]
        self.bias = net.scale * last.bias.numpy()  # type: ignore[operator]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        """Energies `(n,)` of tensors `(n, 9, f)`, and what the derivative needs."""
        hidden, through = self.scalars.forward(dot_by_part(x, x))
        return hidden @ self.weight + self.bias, through

    def backward(self, x: np.ndarray, through: Any) -> np.ndarray:
        """The derivative of all energies in x."""
        g = np.broadcast_to(self.weight, (len(x), len(self.weight)))
        return by_part(x, 2 * self.scalars.backward(g, through))


class ScalarNetwork:
    """Linear layers with activations, on scalars normalised over features."""

    def __init__(self, norm: nn.LayerNorm, layers: list[Any]) -> None:
        self.scale, self.shift, self.epsilon = norm.weight.numpy(), norm.bias.numpy(), norm.eps
        self.layers = [(layer.weight.numpy(), layer.bias.numpy()) for layer in layers]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        """Outputs `(n, out)` of x `(n, in)`, and what the derivative needs."""
        x = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((x * x).mean(axis=1, keepdims=True) + x.dtype.type(self.epsilon))
        x /= deviation
        hidden, passed = x * self.scale + self.shift, []
        for weight, bias in self.layers:
            inputs = hidden @ weight.T + bias
            sigmoid = 1 / (1 + np.exp(-inputs))
            hidden = inputs * sigmoid
            passed.append(sigmoid + hidden * (1 - sigmoid))
        return hidden, (x, deviation, passed)

    def backward(self, g: np.ndarray, through: Any) -> np.ndarray:
        """The cotangent of the scalars from that of the outputs."""
        x, deviation, passed = through
        for (weight, _), slope in zip(reversed(self.layers), reversed(passed), strict=True):
            g = (g * slope) @ weight
        g = g * self.scale
        mean, along = g.mean(axis=1, keepdims=True), (g * x).mean(axis=1, keepdims=True)
        return (g - mean - x * along) / deviation


def by_part(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """See `tensornet.by_part`; factors `(n, 3 f)`, or `(3, f)` for all atoms."""
    out = np.zeros_like(x)
    by_part_loops(x.shape[2])(x.reshape(-1), factors.reshape(-1), out.reshape(-1))
    return out


def dot_by_part(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums `(n, 3 f)` of xy over the components of each part."""
    out = np.empty((len(x), len(PARTS) * x.shape[2]), x.dtype)
    dot_by_part_loops(x.shape[2])(x.reshape(-1), y.reshape(-1), out.reshape(-1))
    return out


def matrices_of(mix: PartwiseLinear) -> Matrices:
    """Weights `(f, f)` of the three parts."""
    return tuple(part.weight.numpy() for part in mix.parts)  # type: ignore[operator, union-attr]


def mixed(x: np.ndarray, matrices: Matrices) -> np.ndarray:
    """See `tensor_products.Mixed`."""
    return mixed_slopes(x, tuple(matrix.T for matrix in matrices))


def mixed_slopes(g: np.ndarray, matrices: Matrices) -> np.ndarray:
    """The cotangent of x from that of what `mixed` made of it."""
    n, _, features = g.shape
    out = np.empty_like(g)
    for (start, end), matrix in zip(ENDS, matrices, strict=True):
        part = g[:, start:end].reshape(-1, features) @ matrix
        out[:, start:end] = part.reshape(n, end - start, features)
    return out
