"""TensorNet: atoms carry Cartesian tensors of rank two (Simeon and De Fabritiis 2023, NeurIPS).

Own implementation after the paper and the authors' TorchMD-Net. A tensor X = I + A + S (isotropic,
antisymmetric, symmetric and traceless) is kept as its nine components in an orthonormal basis of
3 × 3 matrices instead of as a matrix: layers that mix the features of irreducible parts then act
on 1, 3 and 5 components instead of on 9 each. Energies are invariant under O(3).
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from ase_biasgrad.architectures import require_positive
from ase_biasgrad.backbones.base import ReadoutBackbone
from ase_biasgrad.backbones.radial import cosine_cutoff
from ase_biasgrad.graph import AtomGraph, pairs_within
from ase_biasgrad.units import N_ELEMENTS

PARTS = (1, 3, 5)  # components of I, A, S
PART_OF = (0, 1, 1, 1, 2, 2, 2, 2, 2)
PARITIES = (1, -1, -1, -1, 1, 1, 1, 1, 1)  # under reversal of a direction


class Filters(NamedTuple):
    """Filters of one layer for each irreducible part: at distance 0, and of every pair."""

    own: Tensor  # (1, 3, f)
    of_pairs: Tensor  # (p, 3, f)


class TensorNet(ReadoutBackbone):
    """Message passing with tensors of rank two.

    Parameters
    ----------
    features
        Tensors per atom.
    interactions
        Number of interaction layers.
    cutoff
        Range of the messages in Å.
    radial_functions
        Number of exponential-normal radial functions (PhysNet).
    scale
        Energy unit of the readout in eV; see `SchNet`.
    """

    name: ClassVar[str] = "tensornet"
    radial: ClassVar[tuple[str, ...]] = ("radial",)

    def __init__(
        self,
        features: int = 64,
        interactions: int = 2,
        cutoff: float = 5.0,
        radial_functions: int = 32,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep_arguments(locals())
        require_positive(self.arguments, ("features", "cutoff", "radial_functions"))
        self.embedding = TensorEmbedding(features, radial_functions)
        self.layers = nn.ModuleList(
            Interaction(features, radial_functions) for _ in range(interactions)
        )
        self.norm = nn.LayerNorm(3 * features)
        self.readout = nn.ModuleList(
            [
                nn.Linear(3 * features, features),
                nn.Linear(features, max(1, features // 2)),
                nn.Linear(max(1, features // 2), 1),
            ]
        )
        nn.init.zeros_(self.readout[-1].bias)

    @property
    def dtype(self) -> torch.dtype:
        return self.readout[-1].weight.dtype

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        pairs = TensorMessages(graph, self.cutoff, self.dtype)
        at_zero = pairs.distances.new_zeros(1)
        sampled = self.filters(torch.cat([at_zero, pairs.distances]))
        first, *others = (Filters(values[:1], values[1:]) for values in sampled)
        x = self.embedding(graph.numbers, first, pairs)  # (n, 9, f)
        for layer, filters in zip(self.layers, others, strict=True):
            x = layer(x, filters, pairs)
        hidden = self.norm(sum_by_part(x.square()).flatten(1))
        for layer in self.readout[:-1]:
            hidden = silu(layer(hidden))
        return self.scale * self.readout[-1](hidden).squeeze(-1)

    def filters(self, distances: Tensor) -> list[Tensor]:
        """Filters `(m, 3, f)` of the embedding and each interaction at distances `(m,)` in Å."""
        basis, envelope = (part.to(self.dtype) for part in self.basis_and_cutoff(distances))
        layers = (self.embedding, *self.layers)
        return [
            (layer.filters(basis) * envelope).unflatten(1, (3, -1))  # type: ignore[operator]
            for layer in layers
        ]

    def basis_and_cutoff(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Radial basis times cutoff function `(m, functions)`, and cutoff function `(m, 1)`."""
        envelope = cosine_cutoff(distances, self.cutoff)[:, None]
        return self.radial_basis(distances) * envelope, envelope

    def radial_basis(self, distances: Tensor) -> Tensor:
        """exp(−β (exp(−α r) − μ)²), μ evenly spaced from exp(−cutoff) to 1, `(m, functions)`."""
        count, lowest = self.arguments["radial_functions"], float(np.exp(-self.cutoff))
        centres = torch.linspace(lowest, 1.0, count, dtype=distances.dtype, device=distances.device)
        sharpness = (2.0 / count * (1.0 - lowest)) ** -2
        mapped = torch.exp(-5.0 / self.cutoff * distances)
        return torch.exp(-sharpness * (mapped[:, None] - centres).square())


class TensorEmbedding(nn.Module):
    """Tensors of each atom from the elements and directions of its neighbours."""

    def __init__(self, features: int, radial_functions: int) -> None:
        super().__init__()
        self.element = nn.Embedding(N_ELEMENTS, features)
        self.centre = nn.Linear(features, features)
        self.neighbour = nn.Linear(features, features, bias=False)
        self.radial = nn.Linear(radial_functions, 3 * features)
        self.norm = nn.LayerNorm(features)
        self.mix = PartwiseLinear(features)
        self.scalars = nn.ModuleList(
            [nn.Linear(features, 2 * features), nn.Linear(2 * features, 3 * features)]
        )

    def filters(self, basis: Tensor) -> Tensor:
        """`(m, 3 f)` from the radial basis `(m, functions)`, without cutoff function."""
        return self.radial(basis)

    def forward(self, numbers: Tensor, filters: Filters, pairs: TensorMessages) -> Tensor:
        """`(n, 9, f)`."""
        element = self.element(numbers)  # (n, f)
        # a linear layer of both elements is one of the centre's plus one of the neighbour's
        centre, neighbour = self.centre(element), self.neighbour(element)
        lifted = pairs.lift(torch.ones_like(centre), filters.of_pairs)
        x = centre[:, None] * lifted + pairs.lift(neighbour, filters.of_pairs)
        # an atom counts as its own neighbour at distance 0, where only the isotropic part is left
        own = 3**0.5 * filters.own[:, 0] * (centre + neighbour)
        x = x + pad(own[:, None], (0, 0, 0, sum(PARTS[1:])))
        scalars = self.norm(x.square().sum(dim=1))
        for layer in self.scalars:
            scalars = silu(layer(scalars))
        return by_part(self.mix(x), scalars.reshape(len(x), 3, -1))


class Interaction(nn.Module):
    """Messages between tensors, matrix products of what comes in with what was there."""

    def __init__(self, features: int, radial_functions: int) -> None:
        super().__init__()
        self.radial = nn.ModuleList(
            [
                nn.Linear(radial_functions, features),
                nn.Linear(features, 2 * features),
                nn.Linear(2 * features, 3 * features),
            ]
        )
        self.before, self.after = PartwiseLinear(features), PartwiseLinear(features)

    def filters(self, basis: Tensor) -> Tensor:
        """`(m, 3 f)` from the radial basis `(m, functions)`, without cutoff function."""
        for layer in self.radial:
            basis = silu(layer(basis))
        return basis

    def forward(self, x: Tensor, filters: Filters, pairs: TensorMessages) -> Tensor:
        """`(n, 9, f)` to `(n, 9, f)`."""
        x = normalised(x)
        y = self.before(x)
        message = pairs.convolve(y, filters.of_pairs) + by_part(y, filters.own)
        change = self.after(normalised(symmetric_product(y, message)))
        return x + change + 0.5 * symmetric_product(change, change)


class PartwiseLinear(nn.Module):
    """One matrix over features for each irreducible part: `(n, 9, f)` to `(n, 9, f)`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(features, features, bias=False) for _ in PARTS)

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(x.split(PARTS, dim=1), self.parts, strict=True)
        # rows of one matrix, because torch sums others differently with and without gradients
        return torch.cat([part(x.flatten(0, 1)).view_as(x) for x, part in parts], dim=1)


class TensorMessages:
    """Pairs within the cutoff, and sums of messages along them."""

    def __init__(self, graph: AtomGraph, cutoff: float, dtype: torch.dtype) -> None:
        self.i, self.j, self.distances, unit = pairs_within(graph, cutoff)
        self.tensors = pair_tensors(unit).to(dtype)[:, :, None]  # (p, 9, 1)
        self.parities = torch.tensor(PARITIES, dtype=dtype, device=graph.device)[:, None]
        self.n = len(graph.numbers)

    def lift(self, x: Tensor, filters: Tensor) -> Tensor:
        """Σ_j f_ij T_ij x_j, `(n, 9, f)`: x `(n, f)`, filters `(p, 3, f)`, T the pair's tensors."""
        sent = filters[:, PART_OF] * self.tensors  # (p, 9, f)
        received = x.new_zeros((self.n, 9, x.shape[1]))
        received = received.index_add(0, self.i, sent * x[self.j][:, None])
        return received.index_add(0, self.j, self.parities * sent * x[self.i][:, None])

    def convolve(self, x: Tensor, filters: Tensor) -> Tensor:
        """Σ_j f_ij x_j, `(n, 9, f)`: x `(n, 9, f)`, filters `(p, 3, f)`."""
        chosen = filters[:, PART_OF]  # (p, 9, f)
        received = torch.zeros_like(x).index_add(0, self.i, chosen * x[self.j])
        return received.index_add(0, self.j, chosen * x[self.i])


def symmetric_product(x: Tensor, y: Tensor) -> Tensor:
    """XY + YX as matrices, all `(n, 9, f)`."""
    basis = torch.from_numpy(matrix_basis()).to(x)  # (9, 3, 3)
    one, two = (torch.einsum("kab,nkf->nfab", basis, z) for z in (x, y))  # (n, f, 3, 3)
    return torch.einsum("kab,nfab->nkf", basis, one @ two + two @ one)


def normalised(x: Tensor) -> Tensor:
    """X / (|X|² + 1), `(n, 9, f)`."""
    return x / (x.square().sum(dim=1) + 1)[:, None]


def pair_tensors(unit: Tensor) -> Tensor:
    """1, the skew matrix of u, and uuᵀ − 1/3 as components `(p, 9)`; directions u `(p, 3)`."""
    basis = torch.from_numpy(matrix_basis()).to(unit)
    skew = torch.einsum("abc,pc->pab", -torch.from_numpy(_levi_civita()).to(unit), unit)
    matrices = skew + unit[:, :, None] * unit[:, None, :]  # (p, 3, 3)
    components = torch.einsum("kab,pab->pk", basis, matrices)
    isotropic = torch.full_like(components[:, :1], 3**0.5)  # that of the unit matrix
    return torch.cat([isotropic, components[:, 1:]], dim=1)


@cache
def matrix_basis() -> np.ndarray:
    """Nine orthonormal matrices `(9, 3, 3)`: 1; x, y, z as skew matrices; five symmetric ones."""
    basis = np.zeros((9, 3, 3))
    basis[0] = np.eye(3)
    basis[1:4] = -_levi_civita()
    for k, (a, b) in enumerate(((0, 1), (1, 2), (0, 2))):
        basis[4 + k, a, b] = basis[4 + k, b, a] = 1
    basis[7], basis[8] = np.diag([1, -1, 0]), np.diag([-1, -1, 2])
    return basis / np.linalg.norm(basis, axis=(1, 2))[:, None, None]


@cache
def _levi_civita() -> np.ndarray:
    symbol = np.zeros((3, 3, 3))
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        symbol[a, b, c], symbol[a, c, b] = 1, -1
    return symbol


def sum_by_part(x: Tensor) -> Tensor:
    """Sums `(n, 3, f)` over the components `(n, 9, f)` of each irreducible part."""
    # as a matrix, whose derivatives cost less than those of slices
    return torch.bmm(_parts(x).expand(len(x), -1, -1), x)


def by_part(x: Tensor, factors: Tensor) -> Tensor:
    """Components `(n, 9, f)` times one factor `(n or 1, 3, f)` for each irreducible part."""
    return x * torch.bmm(_parts(x).t().expand(len(factors), -1, -1), factors)


def _parts(like: Tensor) -> Tensor:
    """Membership of the nine components in the three parts, `(3, 9)` of 0 and 1."""
    return torch.eye(len(PARTS), dtype=like.dtype, device=like.device)[:, PART_OF]
