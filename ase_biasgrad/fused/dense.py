"""Dense layers, activations, norms and the readout as instructions of a program.

Instructions act on the rows of the `size` atoms of a chunk. Their arguments are `row`, the
instruction's numbers; `place`, which atoms these are and where their local variables lie; and the
arrays `memory`, `weights` and `edges` (see `execute`).
"""

from __future__ import annotations

import math

import numpy as np

from ase_biasgrad.fused.operations import Operation, locate
from ase_biasgrad.fused.program import Program, Variable
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.matrix_product import ACCUMULATE, ADD_BIAS, product
from ase_biasgrad.numerics.simd import WIDTH, absolute, larger, load, splat, store, total
from ase_biasgrad.numerics.simd_activations import exp_negative, log1p, logistic

SILU, SHIFTED_SOFTPLUS = range(2)


class Embedding:
    """y = table[number], with a table `(elements, width)`."""

    def __init__(self, p: Program, table: np.ndarray) -> None:
        self.y = p.variable(table.shape[1], active=p.learns)
        self.table = p.weight(table)
        p.emit(Operation.EMBED, self.y, self.table)
        p.add(self)

    def vjp(self, p: Program) -> None:
        """Nothing: elements have no adjoint."""

    def gradient(self, p: Program) -> None:
        if self.y.adjoint is not None:
            moved = p.tangent_or_zero(self.y.adjoint)
            p.emit(Operation.EMBED_GRADIENT, moved, self.table)


@compiled()
def embed(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    y, width = locate(row, 1, place), row[2]
    for a in range(place.size):
        table = row[3] + edges.numbers[place.first + a] * width
        for f in range(0, width, WIDTH):
            store(memory, y + a * width + f, load(weights, table + f))


class Linear:
    """y = x W + b + z for each of `rows` rows of an atom.

    W `(inputs, outputs)`; b `(outputs,)` and z, of the size of y, may be left out.
    """

    def __init__(
        self, p: Program, x: Variable, weight: np.ndarray, bias: np.ndarray | None = None,
        rows: int = 1, add: Variable | None = None,
    ) -> None:  # fmt: skip
        self.x, self.added, self.rows = x, add, rows
        self.shape, self.back, self.bias = weight.shape, p.matrix(weight.T), bias is not None
        self.y = p.variable(rows * weight.shape[1], x.active or (add is not None and add.active))
        mode = (0 if bias is None else ADD_BIAS) | (0 if add is None else ACCUMULATE)
        if add is not None:
            p.emit(Operation.ADD, add, self.y, 0)
        self.place, self.shift = p.matrix(weight), 0 if bias is None else p.weight(bias)
        p.emit(
            Operation.LINEAR, x, self.y, *weight.shape, rows, 0, rows, self.place, self.shift, mode
        )
        p.add(self)

    def vjp(self, p: Program) -> None:
        g = p.adjoint(self.y)[0]
        if self.x.active:
            (out, more), (depth, width) = p.adjoint(self.x), self.shape
            mode = ACCUMULATE if more else 0
            p.emit(
                Operation.LINEAR, g, out, width, depth, self.rows, 0, self.rows, self.back, 0, mode
            )
        if self.added is not None and self.added.active:
            p.emit(Operation.ADD, g, *p.adjoint(self.added))

    def gradient(self, p: Program) -> None:
        emit_linear_gradient(
            p, self.x, self.y, *self.shape, self.rows, 0, self.rows, self.place, self.shift,
            int(self.bias),
        )  # fmt: skip


def emit_linear_gradient(p: Program, x: Variable, y: Variable, *numbers: int) -> None:
    """The gradient of W and b of y = x W + b; numbers are those of `LINEAR`, and if there is b."""
    g = y.adjoint
    assert g is not None
    moved = p.tangent_or_zero(x), g, p.tangent_or_zero(g)
    p.emit(Operation.LINEAR_GRADIENT, x, *moved, *numbers)


@compiled()
def linear(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    shift = row[8] * WIDTH  # of the first row
    x, y = locate(row, 1, place) + shift, locate(row, 3, place) + shift
    product(
        memory, weights, x, row[2], row[5], y, row[4], row[6], place.size * row[9], row[9], row[7],
        row[10], row[11], row[12],
    )  # fmt: skip


class Activation:
    """y = f(x), with f = SILU or SHIFTED_SOFTPLUS; its derivative is kept."""

    def __init__(self, p: Program, x: Variable, kind: int) -> None:
        self.x = x
        self.y, self.derivative = p.variable(x.width), p.variable(x.width)
        p.emit(Operation.ACTIVATE, x, self.y, self.derivative, kind)
        p.add(self)

    def vjp(self, p: Program) -> None:
        g, (out, more) = p.adjoint(self.y)[0], p.adjoint(self.x)
        p.emit(Operation.MULTIPLY, g, self.derivative, out, more)


@compiled()
def activate(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, d = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    size, softplus = place.size * row[2], row[7] == SHIFTED_SOFTPLUS
    if memory.itemsize == 4:
        for k in range(0, size, WIDTH):
            v = load(memory, x + k)
            s = logistic(v)
            if softplus:
                zero = splat(memory.dtype.type(0))
                e = exp_negative(zero - absolute(v))
                shift = splat(memory.dtype.type(0.6931471805599453))
                store(memory, y + k, larger(v, zero) + log1p(e) - shift)
                store(memory, d + k, s)
            else:
                store(memory, y + k, v * s)
                store(memory, d + k, s + v * s * (splat(memory.dtype.type(1)) - s))
        return
    for k in range(size):
        v = memory[x + k]
        e = math.exp(-abs(v))
        s = 1 / (1 + e) if v >= 0 else e / (1 + e)
        if softplus:
            memory[y + k], memory[d + k] = max(v, 0.0) + math.log1p(e) - math.log(2.0), s
        else:
            memory[y + k], memory[d + k] = v * s, s + v * s * (1 - s)


@compiled()
def multiply(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """z = x y, or z += x y."""
    x, y, z = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    for k in range(0, place.size * row[2], WIDTH):
        v = load(memory, x + k) * load(memory, y + k)
        store(memory, z + k, load(memory, z + k) + v if row[7] else v)


@compiled()
def add(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """y = x, or y += x."""
    x, y = locate(row, 1, place), locate(row, 3, place)
    for k in range(0, place.size * row[2], WIDTH):
        v = load(memory, x + k)
        store(memory, y + k, load(memory, y + k) + v if row[5] else v)


class LayerNorm:
    """y = x̂ w + b with x̂ = (x − mean)/√(variance + ε) over those columns that `mask` has."""

    def __init__(
        self, p: Program, x: Variable, weight: np.ndarray, bias: np.ndarray, mask: np.ndarray,
        epsilon: float,
    ) -> None:  # fmt: skip
        self.x, self.y, self.unit = x, p.variable(x.width), p.variable(x.width)
        self.inverse = p.variable(WIDTH)
        self.constants = p.weight(np.stack([weight, bias]))
        p.constant(mask / mask.sum())
        p.emit(
            Operation.LAYER_NORM, x, self.y, self.unit, self.inverse, self.constants,
            p.constant(np.array([epsilon])),
        )  # fmt: skip
        p.add(self)

    def vjp(self, p: Program) -> None:
        g, (out, more) = p.adjoint(self.y)[0], p.adjoint(self.x)
        p.emit(Operation.LAYER_NORM_VJP, g, out, self.unit, self.inverse, self.constants, more)

    def gradient(self, p: Program) -> None:
        g = self.y.adjoint
        assert g is not None
        p.emit(
            Operation.LAYER_NORM_GRADIENT, g, p.tangent_or_zero(g), self.unit,
            p.tangent_or_zero(self.unit), self.constants,
        )  # fmt: skip


@compiled()
def layer_norm(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, y, unit = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    width, inverse, w = row[2], locate(row, 7, place), row[9]
    share, zero = w + 2 * width, splat(memory.dtype.type(0))  # 1/columns, or 0
    one = memory.dtype.type(1)
    for a in range(place.size):
        o, mean, square = a * width, zero, zero
        for f in range(0, width, WIDTH):
            mean = mean + load(weights, share + f) * load(memory, x + o + f)
        mean = splat(total(mean))
        for f in range(0, width, WIDTH):
            v = load(memory, x + o + f) - mean
            square = square + load(weights, share + f) * v * v
        scale = one / memory.dtype.type(math.sqrt(total(square) + weights[row[10]]))
        store(memory, inverse + a * WIDTH, splat(scale))
        for f in range(0, width, WIDTH):
            v = splat(scale) * (load(memory, x + o + f) - mean)
            store(memory, unit + o + f, v)
            store(memory, y + o + f, v * load(weights, w + f) + load(weights, w + width + f))


@compiled()
def layer_norm_vjp(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    g, out, unit = locate(row, 1, place), locate(row, 3, place), locate(row, 5, place)
    width, inverse, w = row[2], locate(row, 7, place), row[9]
    share, zero = w + 2 * width, splat(memory.dtype.type(0))
    for a in range(place.size):
        o, mean, along = a * width, zero, zero
        for f in range(0, width, WIDTH):
            v = load(weights, share + f) * load(weights, w + f) * load(memory, g + o + f)
            mean = mean + v
            along = along + v * load(memory, unit + o + f)
        mean, along = splat(total(mean)), splat(total(along))
        scale = load(memory, inverse + a * WIDTH)
        for f in range(0, width, WIDTH):
            v = load(weights, w + f) * load(memory, g + o + f) - mean
            v = scale * (v - along * load(memory, unit + o + f))
            store(memory, out + o + f, load(memory, out + o + f) + v if row[10] else v)


class Energies:
    """Energies x·w + b of the atoms in eV, with w `(f,)` and b `(1,)`."""

    def __init__(self, p: Program, x: Variable, weight: np.ndarray, bias: np.ndarray) -> None:
        self.x, self.weight, self.bias = x, p.weight(weight), p.weight(bias)
        p.emit(Operation.ENERGIES, x, self.weight, self.bias)
        p.add(self)

    def vjp(self, p: Program) -> None:
        p.emit(Operation.REPEAT, p.adjoint(self.x)[0], self.weight)

    def gradient(self, p: Program) -> None:
        p.emit(
            Operation.ENERGIES_GRADIENT, self.x, p.tangent_or_zero(self.x), self.weight, self.bias
        )


@compiled()
def energies(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    x, width = locate(row, 1, place), row[2]
    for a in range(place.size):
        energy = splat(memory.dtype.type(0))
        for f in range(0, width, WIDTH):
            energy = energy + load(memory, x + a * width + f) * load(weights, row[3] + f)
        edges.energies[place.first + a] = np.float64(total(energy)) + weights[row[4]]


@compiled()
def repeat(row, place, memory, weights, edges):  # type: ignore[no-untyped-def]
    """The same row for all atoms, times the adjoints of their energies."""
    y, width = locate(row, 1, place), row[2]
    for a in range(place.size):
        factor = splat(memory.dtype.type(edges.cotangents[place.first + a]))
        for f in range(0, width, WIDTH):
            store(memory, y + a * width + f, factor * load(weights, row[3] + f))
