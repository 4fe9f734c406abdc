"""Messages along pairs of atoms as layers: each pair counts once, its filters are splines.

With W = Σ_t w_t C_(m + t), a filter between i and j as a spline with coefficients C, messages are

    CFConv:  Σ_j W_ij x_j,         TensorMessage:  Σ_j W_ij T_ij x_j,

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
    cfconv_loop,
    cfconv_second_order_loop,
    cfconv_vjp_loop,
    tensor_message_loop,
    tensor_message_second_order_loop,
    tensor_message_vjp_loop,
)
from ase_biasgrad.fused.tape import Variable
from ase_biasgrad.numerics.spline_coefficients import spline_weights_and_derivatives
from ase_biasgrad.numerics.splines import Knots


@dataclass(frozen=True)
class Components:
    """Filter of each component, and its sign when i and j change places."""

    filters: tuple[int, ...]
    parities: tuple[int, ...] = ()

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Arrays for the loops: filters in use `(u,)`, `ends (u + 1,)`, components `(c,)` in
        the order of filters, those of filter k from `ends[k]` to `ends[k + 1]`, and parities."""
        used, counts = np.unique(np.array(self.filters, np.int64), return_counts=True)
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        order = np.argsort(self.filters, kind="stable").astype(np.int64)
        return used, ends, order, np.array(self.parities, np.float32)


class SplinePairs:
    """Pairs of `n` atoms, each once: weights of splines at their distances, and directions.

    Parameters
    ----------
    i, j
        The atoms, `(p,)` int64.
    n
        Number of atoms.
    vectors
        From i to j, `(p, 3)` float64 in Å, all shorter than the cutoff of `knots`.
    knots
        Knots of the splines.
    dtype
        Precision of the network.
    """

    def __init__(
        self, i: Tensor, j: Tensor, n: int, vectors: Tensor, knots: Knots, dtype: torch.dtype
    ) -> None:
        self.n, self._dtype = n, dtype
        self._distances = vectors.square().sum(dim=1, keepdim=True).sqrt_()  # (p, 1)
        self._unit = vectors / self._distances
        first, weights, self._weight_derivatives = spline_weights_and_derivatives(
            knots, self._distances[:, 0]
        )
        self.weights = weights.to(dtype).contiguous()
        tensors, self._tensor_derivatives = self.directional(self._unit)
        self.tensors = tensors.to(dtype)
        self.indices = i.numpy(), j.numpy(), first.numpy()
        self.clear_adjoints()

    def directional(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Functions of the direction `(p, c)` and their derivatives in it `(p, c, 3)`, or `(c, 3)`
        for all; here the direction itself."""
        return unit, torch.eye(3, dtype=unit.dtype)

    def clear_adjoints(self) -> None:
        """See `Geometry`."""
        self.adj_weights = torch.zeros_like(self.weights)
        self.adj_tensors = torch.zeros_like(self.tensors)

    def vjp(self) -> Tensor:
        """See `Geometry`."""
        along = self.adj_weights * self._weight_derivatives  # (p, 6) float64
        along = along.sum(dim=1, keepdim=True)
        adj_tensors = self.adj_tensors.to(torch.float64).unsqueeze(1)  # (p, 1, c)
        across = (adj_tensors @ self._tensor_derivatives).squeeze(1) / self._distances  # (p, 3)
        along -= (across * self._unit).sum(dim=1, keepdim=True)
        return across.addcmul_(along, self._unit)

    def jvp(self, along: Tensor) -> None:
        """See `Geometry`."""
        of_distance = (along * self._unit).sum(dim=1, keepdim=True)  # (p, 1)
        self.weights_tangent = (self._weight_derivatives * of_distance).to(self._dtype)
        across = torch.addcmul(along, of_distance, self._unit, value=-1.0)
        across /= self._distances
        changes = self._tensor_derivatives @ across.unsqueeze(2)  # (p, c, 1)
        self.tensors_tangent = changes.squeeze(2).to(self._dtype)


class TensorPairs(SplinePairs):
    """`SplinePairs` with `pair_tensors` of the directions."""

    def directional(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """See `SplinePairs`; `(p, 9)` and `(p, 9, 3)`."""
        linear, quadratic = tensor_polynomials()
        derivatives = linear + torch.einsum("kab,pb->pka", 2 * quadratic, unit)
        return pair_tensors(unit), derivatives


class CFConv:
    """Σ_j W_ij x_j for each atom i.

    x is `(n, c, f)`, or `(n, f)` for one component; coefficients `(k, g, f)`.
    """

    def __init__(
        self, pairs: SplinePairs, x: Variable, coefficients: Variable, components: Components
    ) -> None:
        self.pairs, self.x, self.coefficients = pairs, x, coefficients
        self._shape = len(x.data), len(components.filters), x.data.shape[-1]
        self._indices = *pairs.indices, *components.arrays
        self._given = self._split(x.data), array(coefficients.data), pairs.weights.numpy()
        received = torch.zeros_like(x.data)
        cfconv_loop(*self._indices, *self._given, self._split(received))
        self.y = Variable(received)
        self.results = (self.y,)

    def _split(self, tensor: Tensor) -> np.ndarray:
        return array(tensor).reshape(self._shape)

    def vjp(self) -> None:
        assert self.y.adjoint is not None
        adj_x, nothing = torch.zeros_like(self.x.data), self._given[1][:0]
        cfconv_vjp_loop(
            *self._indices, self._split(self.y.adjoint), *self._given,
            self._split(adj_x), nothing, self.pairs.adj_weights.numpy(), False, True,
        )  # fmt: skip
        if self.x.active:
            self.x.add_adjoint(adj_x)

    def jvp(self) -> None:
        if self.y.adjoint is None:
            return
        x = self._given[0]
        dx = np.zeros_like(x) if self.x.tangent is None else self._split(self.x.tangent)
        moved = self.pairs.weights_tangent.numpy()
        tangent, grad_x = torch.zeros_like(self.x.data), self.x.own_gradient()
        grad_coefficients = self.coefficients.own_gradient()
        cfconv_second_order_loop(
            *self._indices, self._split(self.y.adjoint), *self._given, dx, moved,
            self._split(tangent), self._split(grad_x), grad_coefficients.numpy(),
        )  # fmt: skip
        self.y.tangent = tangent

    def second_order(self) -> None:
        if self.y.gradient is not None:
            grad_x, grad_coefficients = self.x.own_gradient(), self.coefficients.own_gradient()
            cfconv_vjp_loop(
                *self._indices, self._split(self.y.gradient), *self._given,
                self._split(grad_x), grad_coefficients.numpy(), self._given[2][:0], True, False,
            )  # fmt: skip


class TensorMessage:
    """Σ_j W_ij T_ij x_j for each atom i, `(n, c, f)`.

    x is `(n, f)`, coefficients `(k, g, f)`; T are the `tensors` of `pairs`. With `centre` `(n, f)`,
    which must not be active, x_j + centre_i is in place of x_j.
    """

    def __init__(
        self,
        pairs: SplinePairs,
        x: Variable,
        coefficients: Variable,
        components: Components,
        centre: Variable | None = None,
    ) -> None:
        self.pairs, self.x, self.coefficients, self.centre = pairs, x, coefficients, centre
        self._indices = *pairs.indices, *components.arrays
        centre_data = x.data[:0] if centre is None else centre.data
        self._given = arrays(x.data, centre_data, coefficients.data, pairs.weights, pairs.tensors)
        n, features = x.data.shape
        received = x.data.new_zeros((n, len(components.filters), features))
        tensor_message_loop(*self._indices, *self._given, received.numpy())
        self.y = Variable(received)
        self.results = (self.y,)

    def vjp(self) -> None:
        assert self.y.adjoint is not None
        adj_x, nothing = torch.zeros_like(self.x.data), (self._given[0][:0], self._given[2][:0])
        of_pairs = self.pairs.adj_weights.numpy(), self.pairs.adj_tensors.numpy()
        tensor_message_vjp_loop(
            *self._indices, array(self.y.adjoint), *self._given,
            adj_x.numpy(), *nothing, *of_pairs, False, True,
        )  # fmt: skip
        if self.x.active:
            self.x.add_adjoint(adj_x)

    def jvp(self) -> None:
        if self.y.adjoint is None:
            return
        x = self._given[0]
        dx = np.zeros_like(x) if self.x.tangent is None else array(self.x.tangent)
        moved = arrays(self.pairs.weights_tangent, self.pairs.tensors_tangent)
        self.y.tangent = torch.zeros_like(self.y.data)
        tensor_message_second_order_loop(
            *self._indices, array(self.y.adjoint), *self._given, dx, *moved,
            self.y.tangent.numpy(), *self._gradients(),
        )  # fmt: skip

    def second_order(self) -> None:
        if self.y.gradient is not None:
            unused = [of_pairs[:0] for of_pairs in self._given[3:]]
            tensor_message_vjp_loop(
                *self._indices, array(self.y.gradient), *self._given,
                *self._gradients(), *unused, True, False,
            )  # fmt: skip

    def _gradients(self) -> list[np.ndarray]:
        """Gradients of x, centre and coefficients, to be added to."""
        grad_x, grad_coefficients = self.x.own_gradient(), self.coefficients.own_gradient()
        grad_centre = grad_x[:0] if self.centre is None else self.centre.own_gradient()
        return arrays(grad_x, grad_centre, grad_coefficients)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [array(tensor) for tensor in tensors]
