"""Messages between atoms by pairs, with first and second derivatives written out.

Message passing is a derivative of a scalar that is linear in each argument, and so are the two
derivatives that training on forces needs of it. With W = Σ_t w_t C_(m + t), a filter between i
and j as a spline with coefficients C, `convolve` is ∂P/∂s and `lift` is ∂Q/∂v of

    P(s, x, C, w)    = Σ_(i,j) Σ_c Σ_f W^g(c) (sᶜ_i xᶜ_j + sᶜ_j xᶜ_i),
    Q(v, x, C, w, T) = Σ_(i,j) Σ_c Σ_f W^g(c) Tᶜ (vᶜ_i x_j + σᶜ vᶜ_j x_i).

The first sends components as they are, the second sends scalars along tensors T of the pair's
direction, of parity σ. Several components may share a filter g(c). Every pair counts once, and
nothing of the size of pairs × features is ever stored: filters are evaluated on the way
(`splines`).

On the CPU loops compiled by Numba do the work (`pair_loops`); elsewhere torch operations do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_biasgrad.backbones.pair_loops import (
    convolve_curvature_loop,
    convolve_loop,
    convolve_slopes_loop,
    lift_curvature_loop,
    lift_loop,
    lift_slopes_loop,
)
from ase_biasgrad.backbones.wanted import is_wanted
from ase_biasgrad.splines import TAPS


@dataclass(frozen=True)
class Pairs:
    """Pairs of `n` atoms, each once, and where their distances fall among the splines' knots."""

    i: Tensor  # (p,) int64
    j: Tensor  # (p,) int64
    n: int
    first: Tensor  # (p,) int64, first of six coefficients
    weights: Tensor  # (p, 6) of the coefficients


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

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Filter and parity of each component, `(c,)` and `(c, 1)`."""
        return _on_device(self, device)


@cache  # copies make a device wait
def _on_device(components: Components, device: torch.device) -> tuple[Tensor, Tensor]:
    parities = torch.tensor(components.parities, dtype=torch.float32, device=device)
    return torch.tensor(components.filters, device=device), parities[:, None]


def convolve(pairs: Pairs, x: Tensor, rows: Tensor, components: Components) -> Tensor:
    """Σ_j W_ij x_j for each atom i, `(n, c, f)`; twice differentiable.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, c, f)`.
    rows
        Spline coefficients of g filters, `(rows, g, f)`, of which some may be for others.
    components
        Which filter each of the `c` components takes.
    """
    if x.device.type != "cpu":
        return convolve_by_torch(pairs, x, rows, components)
    # contiguous here, because what a function saves must be its own input
    return _Convolve.apply(pairs, components, x.contiguous(), rows.contiguous(), pairs.weights)


def lift(pairs: Pairs, x: Tensor, rows: Tensor, tensors: Tensor, components: Components) -> Tensor:
    """Σ_j W_ij T_ij x_j for each atom i, `(n, c, f)`; twice differentiable.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, f)`.
    rows
        Spline coefficients of g filters, `(rows, g, f)`.
    tensors
        `(p, c)`, functions of the direction from i to j.
    components
        Which filter and parity each of the `c` components has.
    """
    if x.device.type != "cpu":
        return lift_by_torch(pairs, x, rows, tensors, components)
    inputs = (x.contiguous(), rows.contiguous(), pairs.weights, tensors.contiguous())
    return _Lift.apply(pairs, components, *inputs)


def convolve_by_torch(pairs: Pairs, x: Tensor, rows: Tensor, components: Components) -> Tensor:
    """`convolve` in torch operations, differentiable any number of times."""
    chosen, _ = components.on(x.device)
    filters = _filters(pairs, rows).index_select(1, chosen)  # (p, c, f)
    received = torch.zeros_like(x).index_add(0, pairs.i, filters * x[pairs.j])
    return received.index_add(0, pairs.j, filters * x[pairs.i])


def lift_by_torch(
    pairs: Pairs, x: Tensor, rows: Tensor, tensors: Tensor, components: Components
) -> Tensor:
    """`lift` in torch operations, differentiable any number of times."""
    chosen, parities = components.on(x.device)
    filters = _filters(pairs, rows).index_select(1, chosen) * tensors[:, :, None]  # (p, c, f)
    received = x.new_zeros((pairs.n, *filters.shape[1:]))
    received = received.index_add(0, pairs.i, filters * x[pairs.j][:, None])
    return received.index_add(0, pairs.j, parities.to(x.dtype) * filters * x[pairs.i][:, None])


def _filters(pairs: Pairs, rows: Tensor) -> Tensor:
    taps = pairs.first[:, None] + torch.arange(TAPS, device=rows.device)  # (p, 6)
    return torch.einsum("pt,ptgf->pgf", pairs.weights, rows[taps])


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, components: Components, *inputs: Tensor) -> Tensor:
        ctx.constants = pairs, components
        ctx.save_for_backward(*inputs)
        received = torch.zeros_like(inputs[0])
        convolve_loop(*_index_arrays(pairs, components), *_arrays(*inputs, received))
        return received

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        arguments = cotangents[0].contiguous(), *ctx.saved_tensors
        return None, None, *_ConvolveSlopes.apply(*ctx.constants, is_wanted(ctx, 1), *arguments)


class _ConvolveSlopes(torch.autograd.Function):
    """∂P/∂x, ∂P/∂C and ∂P/∂w."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Pairs, components: Components, wants_rows: bool, *arguments: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.constants = pairs, components
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        slopes = _zeros(arguments[1:], wants_rows)
        indices = _index_arrays(pairs, components)
        convolve_slopes_loop(*indices, *_arrays(*arguments, *slopes), wants_rows, True)
        return slopes[0], slopes[1] if wants_rows else None, slopes[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        arguments = ctx.saved_tensors
        slopes = [torch.zeros_like(argument) for argument in arguments]
        convolve_curvature_loop(
            *_index_arrays(*ctx.constants),
            *_arrays(*arguments, *_tangents(arguments[1:], cotangents), *slopes),
            cotangents[1] is not None,
            is_wanted(ctx, 3),
        )
        return None, None, None, *slopes


class _Lift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, components: Components, *inputs: Tensor) -> Tensor:
        x, _, _, tensors = inputs
        ctx.constants = pairs, components
        ctx.save_for_backward(*inputs)
        received = x.new_zeros((pairs.n, tensors.shape[1], x.shape[1]))
        lift_loop(*_index_arrays(pairs, components), *_arrays(*inputs, received))
        return received

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        arguments = cotangents[0].contiguous(), *ctx.saved_tensors
        return None, None, *_LiftSlopes.apply(*ctx.constants, is_wanted(ctx, 1), *arguments)


class _LiftSlopes(torch.autograd.Function):
    """∂Q/∂x, ∂Q/∂C, ∂Q/∂w and ∂Q/∂T."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Pairs, components: Components, wants_rows: bool, *arguments: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.constants = pairs, components
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        slopes = _zeros(arguments[1:], wants_rows)
        lift_slopes_loop(
            *_index_arrays(pairs, components), *_arrays(*arguments, *slopes), wants_rows, True
        )
        return slopes[0], slopes[1] if wants_rows else None, *slopes[2:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        arguments = ctx.saved_tensors
        slopes = [torch.zeros_like(argument) for argument in arguments]
        lift_curvature_loop(
            *_index_arrays(*ctx.constants),
            *_arrays(*arguments, *_tangents(arguments[1:], cotangents), *slopes),
            cotangents[1] is not None,
            is_wanted(ctx, 3) or is_wanted(ctx, 4),
        )
        return None, None, None, *slopes


def _zeros(arguments: tuple[Tensor, ...], wants_rows: bool) -> list[Tensor]:
    """Where slopes are added up, those of the coefficients (x, C, …) only if they are wanted."""
    x, rows, *others = arguments
    of_rows = torch.zeros_like(rows) if wants_rows else _nothing_like(rows)
    return [torch.zeros_like(x), of_rows, *(torch.zeros_like(other) for other in others)]


def _tangents(arguments: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Cotangents of (x, C, …); the loops are told whether there is one of the coefficients."""
    tangents = [
        torch.zeros_like(argument) if tangent is None and k != 1 else tangent
        for k, (argument, tangent) in enumerate(zip(arguments, cotangents, strict=True))
    ]
    return [_nothing_like(arguments[1]) if t is None else t.contiguous() for t in tangents]


def _nothing_like(rows: Tensor) -> Tensor:
    return rows.new_empty((0, *rows.shape[1:]))


def _index_arrays(pairs: Pairs, components: Components) -> tuple[np.ndarray, ...]:
    return pairs.i.numpy(), pairs.j.numpy(), pairs.first.numpy(), *components.arrays


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors]
