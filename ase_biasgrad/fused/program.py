"""Programs: a network as a list of instructions on one array, for energies and forces.

A network is described by appending layers. Each layer knows its forward pass and its VJP as
instructions, which `execute` runs in compiled code. Numbers of an atom are a `Variable`; the
program decides where they lie, once all instructions are known:

    kept    for all atoms, where a later segment reads them,
    local   for the atoms of a chunk, which pass through a segment together and stay in the cache.

A segment begins with an instruction that reads other atoms, of which there is one for each layer
of messages. Rows of weights and of variables are filled up to whole panels with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np

from ase_biasgrad.fused.operations import Operation
from ase_biasgrad.fused.runtime import Compiled
from ase_biasgrad.numerics.matrix_product import COLUMNS, packed, padded


@dataclass(eq=False)
class Variable:
    """`width` numbers of every atom; `segments` and `steps` are where it is used first and last.

    A variable is `active` if it depends on positions.
    """

    width: int
    active: bool = True
    adjoint: Variable | None = None
    tangent: Variable | None = None
    segments: tuple[int, int] | None = None
    steps: tuple[int, int] | None = None
    start: int = 0  # in numbers for each atom; −1 − start if local

    def used(self, segment: int, step: int) -> None:
        first = self.segments or (segment, segment), self.steps or (step, step)
        self.segments, self.steps = (first[0][0], segment), (first[1][0], step)


class Layer(Protocol):
    """A step of a network. Its construction appends the forward pass to the program."""

    def vjp(self, program: Program) -> None:
        """Append the instructions from the adjoint of the result to those of the inputs."""


@runtime_checkable
class LearningLayer(Layer, Protocol):
    """A layer whose weights learn."""

    def gradient(self, program: Program) -> None:
        """Append the instructions for the gradient of its weights, once all tangents are known."""


# appends the tangents of the results of an instruction, from its operands
Rule = Callable[..., None]


@dataclass
class Program:
    """Instructions so far.

    In a program that `learns`, features of elements have adjoints, too: their tables learn.
    """

    learns: bool = False
    _layers: list[Layer] = field(default_factory=list)
    _steps: list[tuple[Operation, tuple[Variable | int, ...]]] = field(default_factory=list)
    _segments: list[int] = field(default_factory=lambda: [0])
    _variables: list[Variable] = field(default_factory=list)
    _weights: list[np.ndarray] = field(default_factory=list)
    _learnt: list[bool] = field(default_factory=list)
    _size: int = 0

    def variable(self, width: int, active: bool = True) -> Variable:
        """A new variable; its width is a multiple of a panel's columns."""
        self._variables.append(Variable(width, active))
        return self._variables[-1]

    def adjoint(self, variable: Variable) -> tuple[Variable, int]:
        """Adjoint of a variable, and 1 if it holds something to be added to, else 0."""
        if variable.adjoint is None:
            variable.adjoint = self.variable(variable.width)
            return variable.adjoint, 0
        return variable.adjoint, 1

    def tangent(self, variable: Variable, more: int) -> Variable:
        """Tangent of a variable to be written, or with `more` to be added to."""
        if variable.tangent is None:
            variable.tangent = self.variable(variable.width)
            if more:  # what is there has no tangent
                self.emit(Operation.ZERO, variable.tangent)
        return variable.tangent

    def tangent_or_zero(self, variable: Variable) -> Variable:
        """Tangent of a variable to be read."""
        return variable.tangent or self.tangent(variable, 1)

    def weight(self, array: np.ndarray) -> int:
        """Place of an array, made of parameters alone, among the weights."""
        return self._weight(array, learnt=True)

    def constant(self, array: np.ndarray) -> int:
        """Place of an array of numbers that no training changes among the weights."""
        return self._weight(array, learnt=False)

    def _weight(self, array: np.ndarray, learnt: bool) -> int:
        flat = np.asarray(array, np.float64).ravel()
        place = self._size
        self._learnt.append(learnt)
        flat = np.pad(flat, (0, -len(flat) % COLUMNS))
        self._weights.append(flat)
        self._size += len(flat)
        return place

    def matrix(self, weights: np.ndarray) -> int:
        """Place of a packed matrix `(inputs, outputs)`; outputs are a multiple of a panel's."""
        return self.weight(packed(weights))

    def emit(self, operation: Operation, *operands: Variable | int) -> None:
        """Append an instruction."""
        for operand in operands:
            if isinstance(operand, Variable):
                operand.used(len(self._segments) - 1, len(self._steps))
        self._steps.append((operation, operands))

    def emit_messages(self, operation: Operation, *operands: Variable | int) -> None:
        """Append an instruction that reads the variables of other atoms."""
        self._segments.append(len(self._steps))
        self.emit(operation, *operands)

    def add(self, layer: Layer) -> None:
        self._layers.append(layer)

    def finish(self, rules: Mapping[Operation, Rule] | None = None) -> Compiled:
        """Append the VJP of all layers, and give every variable its place.

        With `rules`, the tangents of every instruction follow (`tangents`), and in a program that
        learns the gradients of the weights of every layer.
        """
        forward = len(self._segments)
        steps_forward = len(self._steps)
        self._segments.append(steps_forward)
        of_layers = []
        for layer in reversed(self._layers):
            first = len(self._steps)
            layer.vjp(self)
            of_layers.append((layer, first, len(self._steps)))
        first_order = len(self._segments)
        if rules is not None:
            self._segments.append(len(self._steps))
            self._append_tangents(0, steps_forward, rules)
            for layer, first, last in of_layers:
                self._append_tangents(first, last, rules)
                if self.learns and isinstance(layer, LearningLayer):
                    layer.gradient(self)
            if not self.learns:
                self._keep_first_order(first_order)
        ranges = list(pairwise([*self._segments, len(self._steps)]))
        forward, first_order = (sum(a < b for a, b in ranges[:k]) for k in (forward, first_order))
        ranges = [(first, last) for first, last in ranges if first < last]
        kept = _place([v for v in self._variables if _is_kept(v)], "segments")
        local_variables = [v for v in self._variables if v.steps and not _is_kept(v)]
        local = _place(local_variables, "steps")
        for variable in local_variables:
            variable.start = -1 - variable.start
        return Compiled(
            self._encoded(), np.array(ranges, np.int64), forward, first_order,
            np.concatenate(self._weights),
            np.repeat(self._learnt, [len(w) for w in self._weights]), kept, local,
            *self._last_layer(),
        )  # fmt: skip

    def _last_layer(self) -> tuple[int, int]:
        """Places of the weights and of the bias that give energies, −1 where nothing does."""
        for operation, operands in self._steps:
            if operation is Operation.ENERGIES:
                _, weights, bias = operands
                assert isinstance(weights, int)
                assert isinstance(bias, int)
                return weights, bias
        return -1, -1

    def _append_tangents(self, first: int, last: int, rules: Mapping[Operation, Rule]) -> None:
        for operation, operands in self._steps[first:last]:
            rules[operation](self, *operands)

    def _keep_first_order(self, first_order: int) -> None:
        """Keep what tangents read until the end: they may be wanted in many directions."""
        for variable in self._variables:
            if variable.segments and variable.segments[0] < first_order <= variable.segments[1]:
                variable.used(len(self._segments) - 1, len(self._steps) - 1)

    def _encoded(self) -> np.ndarray:
        rows = []
        for operation, operands in self._steps:
            row = [int(operation)]
            for operand in operands:
                row += (
                    [operand.start, operand.width] if isinstance(operand, Variable) else [operand]
                )
            rows.append(row)
        out = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for k, row in enumerate(rows):
            out[k, : len(row)] = row
        return out


def _is_kept(variable: Variable) -> bool:
    return variable.segments is not None and variable.segments[0] != variable.segments[1]


def _place(variables: list[Variable], lifetimes: str) -> int:
    """Set the starts of variables, those that live at different times in the same place.

    Returns the numbers that all of them take. First fit, the longest lives first.
    """
    placed: list[Variable] = []
    for variable in sorted(variables, key=lambda v: (-v.width, getattr(v, lifetimes))):
        first, last = getattr(variable, lifetimes)
        others = [
            v for v in placed
            if getattr(v, lifetimes)[0] <= last and first <= getattr(v, lifetimes)[1]
        ]  # fmt: skip
        variable.start = 0
        for other in sorted(others, key=lambda v: v.start):
            if variable.start + variable.width <= other.start:
                break
            variable.start = max(variable.start, other.start + other.width)
        placed.append(variable)
    return max((v.start + v.width for v in placed), default=0)


def widened(array: np.ndarray, *parts: tuple[int, int]) -> np.ndarray:
    """The last axes, each `(count, features)` parts, with each part filled up to whole panels."""
    lead = array.shape[: array.ndim - len(parts)]
    split = array.reshape(*lead, *(size for part in parts for size in part))
    room = [(0, 0)] * len(lead)
    for _, features in parts:
        room += [(0, 0), (0, padded(features) - features)]
    filled = np.pad(split, room)
    return filled.reshape(*lead, *(count * padded(features) for count, features in parts))
