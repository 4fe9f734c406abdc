"""Messages along pairs of atoms as layers: each pair counts once, its filters are splines.

With W = Σ_t w_t C_(m + t), a filter between i and j as a spline with coefficients C, messages are

    Convolve:  Σ_j W_ij x_j,         Lift:  Σ_j W_ij T_ij x_j,

∂P/∂s and ∂Q/∂v of

    P(s, x, C, w)    = Σ_(i,j) Σ_c Σ_f W^g(c) (sᶜ_i xᶜ_j + sᶜ_j xᶜ_i),
    Q(v, x, C, w, T) = Σ_(i,j) Σ_c Σ_f W^g(c) Tᶜ (vᶜ_i x_j + σᶜ vᶜ_j x_i).

The first sends components as they are, the second sends scalars along tensors T of the pair's
direction, of parity σ. Several components may share a filter g(c). P and Q are linear in each
argument, and so are the derivatives that training on forces needs of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.backbones.tensornet import pair_tensors, tensor_polynomials
from ase_biasgrad.fused.layers import array
from ase_biasgrad.fused.message_loops import (
    convolve_curvature_loop,
    convolve_loop,
    convolve_slopes_loop,
    lift_curvature_loop,
    lift_loop,
    lift_slopes_loop,
)
from ase_biasgrad.fused.tape import Value
from ase_biasgrad.numerics.splines import Knots


@dataclass(frozen=True)
class Components:
    """Which filter each component takes, and its sign when i and j change places."""

    filters: tuple[int, ...]
    parities: tuple[int, ...] = ()

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """For the loops: filters that any component takes, `(u,)`; components in their order,
        those of filter k from `ends[k]` to `ends[k + 1]`; `ends (u + 1,)` comes before them;
        parities."""
        used, counts = np.unique(np.array(self.filters, np.int64), return_counts=True)
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        order = np.argsort(self.filters, kind="stable").astype(np.int64)
        return used, ends, order, np.array(self.parities, np.float32)


class SampledPairs:
    """Pairs of `n` atoms, each once: where they fall among the knots of splines, and directions.

    Parameters
    ----------
    i, j
        The atoms, `(p,)` int64.
    n
        Number of atoms.
    vectors
        From i to j, `(p, 3)` float64 in Å, all shorter than the cutoff of `knots`.
    knots
        Of the splines.
    dtype
        Of the network.
    """

    def __init__(
        self, i: Tensor, j: Tensor, n: int, vectors: Tensor, knots: Knots, dtype: torch.dtype
    ) -> None:
        self.n, self._dtype = n, dtype
        self._distances = vectors.square().sum(dim=1, keepdim=True).sqrt_()  # (p, 1)
        self._unit = vectors / self._distances
        first, weights, self._of_distance = knots.weights_and_slopes(self._distances[:, 0])
        self.weights = weights.to(dtype).contiguous()
        tensors, self._of_direction = self.directional(self._unit)
        self.tensors = tensors.to(dtype)
        self.indices = i.numpy(), j.numpy(), first.numpy()
        self.forget()

    def directional(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Functions of the direction `(p, c)` and their derivatives in it `(p, c, 3)`, or `(c, 3)`
        for all; here the direction itself."""
        return unit, torch.eye(3, dtype=unit.dtype)

    def forget(self) -> None:
        """See `Geometry`."""
        self.of_weights = torch.zeros_like(self.weights)
        self.of_tensors = torch.zeros_like(self.tensors)

    def slopes(self) -> Tensor:
        """See `Geometry`."""
        along = (self.of_weights * self._of_distance).sum(dim=1, keepdim=True)  # (p, 1) float64
        of_tensors = self.of_tensors.to(torch.float64).unsqueeze(1)  # (p, 1, c)
        across = (of_tensors @ self._of_direction).squeeze(1) / self._distances  # (p, 3)
        along -= (across * self._unit).sum(dim=1, keepdim=True)
        return across.addcmul_(along, self._unit)

    def move(self, along: Tensor) -> None:
        """See `Geometry`."""
        of_distance = (along * self._unit).sum(dim=1, keepdim=True)  # (p, 1)
        self.weights_tangent = (self._of_distance * of_distance).to(self._dtype)
        across = torch.addcmul(along, of_distance, self._unit, value=-1.0)
        across /= self._distances
        changes = self._of_direction @ across.unsqueeze(2)  # (p, c, 1)
        self.tensors_tangent = changes.squeeze(2).to(self._dtype)


class TensorPairs(SampledPairs):
    """With `pair_tensors` of the directions."""

    def directional(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """See `SampledPairs`; `(p, 9)` and `(p, 9, 3)`."""
        linear, quadratic = tensor_polynomials()
        derivatives = linear + torch.einsum("kab,pb->pka", 2 * quadratic, unit)
        return pair_tensors(unit), derivatives


class Convolve:
    """Σ_j W_ij x_j for each atom i; see `pair_messages.convolve`.

    x is `(n, c, f)`, or `(n, f)` for one component; rows `(rows, g, f)`.
    """

    def __init__(self, pairs: SampledPairs, x: Value, rows: Value, components: Components) -> None:
        self.pairs, self.x, self.rows = pairs, x, rows
        self._shape = len(x.data), len(components.filters), x.data.shape[-1]
        self._indices = *pairs.indices, *components.arrays
        self._given = self._split(x.data), array(rows.data), pairs.weights.numpy()
        received = torch.zeros_like(x.data)
        convolve_loop(*self._indices, *self._given, self._split(received))
        self.y = Value(received)
        self.results = (self.y,)

    def _split(self, tensor: Tensor) -> np.ndarray:
        return array(tensor).reshape(self._shape)

    def reverse(self) -> None:
        assert self.y.slope is not None
        of_x, nothing = torch.zeros_like(self.x.data), self._given[1][:0]
        convolve_slopes_loop(
            *self._indices, self._split(self.y.slope), *self._given,
            self._split(of_x), nothing, self.pairs.of_weights.numpy(), False, True,
        )  # fmt: skip
        if self.x.moves:
            self.x.add_slope(of_x)

    def tangent(self) -> None:
        if self.y.slope is None:
            return
        x = self._given[0]
        dx = np.zeros_like(x) if self.x.tangent is None else self._split(self.x.tangent)
        moved = self.pairs.weights_tangent.numpy()
        of_y, of_x = torch.zeros_like(self.x.data), self.x.own_gradient()
        of_rows = self.rows.own_gradient()
        convolve_curvature_loop(
            *self._indices, self._split(self.y.slope), *self._given, dx, moved,
            self._split(of_y), self._split(of_x), of_rows.numpy(),
        )  # fmt: skip
        self.y.tangent = of_y

    def learn(self) -> None:
        if self.y.gradient is not None:
            of_x, of_rows = self.x.own_gradient(), self.rows.own_gradient()
            convolve_slopes_loop(
                *self._indices, self._split(self.y.gradient), *self._given,
                self._split(of_x), of_rows.numpy(), self._given[2][:0], True, False,
            )  # fmt: skip


class Lift:
    """Σ_j W_ij T_ij x_j for each atom i, `(n, c, f)`; see `pair_messages.lift`.

    x is `(n, f)`, rows `(rows, g, f)`; T are the `tensors` of `pairs`. With `centre` `(n, f)`,
    which must not move, x_j + centre_i is in place of x_j.
    """

    def __init__(
        self,
        pairs: SampledPairs,
        x: Value,
        rows: Value,
        components: Components,
        centre: Value | None = None,
    ) -> None:
        self.pairs, self.x, self.rows, self.centre = pairs, x, rows, centre
        self._indices = *pairs.indices, *components.arrays
        of_centre = x.data[:0] if centre is None else centre.data
        self._given = arrays(x.data, of_centre, rows.data, pairs.weights, pairs.tensors)
        n, features = x.data.shape
        received = x.data.new_zeros((n, len(components.filters), features))
        lift_loop(*self._indices, *self._given, received.numpy())
        self.y = Value(received)
        self.results = (self.y,)

    def reverse(self) -> None:
        assert self.y.slope is not None
        of_x, nothing = torch.zeros_like(self.x.data), (self._given[0][:0], self._given[2][:0])
        of_pairs = self.pairs.of_weights.numpy(), self.pairs.of_tensors.numpy()
        lift_slopes_loop(
            *self._indices, array(self.y.slope), *self._given,
            of_x.numpy(), *nothing, *of_pairs, False, True,
        )  # fmt: skip
        if self.x.moves:
            self.x.add_slope(of_x)

    def tangent(self) -> None:
        if self.y.slope is None:
            return
        x = self._given[0]
        dx = np.zeros_like(x) if self.x.tangent is None else array(self.x.tangent)
        moved = arrays(self.pairs.weights_tangent, self.pairs.tensors_tangent)
        self.y.tangent = torch.zeros_like(self.y.data)
        lift_curvature_loop(
            *self._indices, array(self.y.slope), *self._given, dx, *moved,
            self.y.tangent.numpy(), *self._gradients(),
        )  # fmt: skip

    def learn(self) -> None:
        if self.y.gradient is not None:
            unused = [of_pairs[:0] for of_pairs in self._given[3:]]
            lift_slopes_loop(
                *self._indices, array(self.y.gradient), *self._given,
                *self._gradients(), *unused, True, False,
            )  # fmt: skip

    def _gradients(self) -> list[np.ndarray]:
        """Of x, centre and rows, to be added to."""
        of_x, of_rows = self.x.own_gradient(), self.rows.own_gradient()
        of_centre = of_x[:0] if self.centre is None else self.centre.own_gradient()
        return arrays(of_x, of_centre, of_rows)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [array(tensor) for tensor in tensors]
