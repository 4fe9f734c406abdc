"""SchNet and PaiNN, written out in plain torch.

Parameters have the names they have in SchNetPack, whose models come in unchanged
(`ase_biasgrad.convert`); `tests/core/backbones/test_schnetpack.py` compares the two.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ase_biasgrad.architectures import N_EMBEDDED, check_schnetpack
from ase_biasgrad.backbones.base import ReadoutBackbone
from ase_biasgrad.backbones.radial import (
    BesselRBF,
    CosineCutoff,
    Dense,
    GaussianRBF,
    MollifierCutoff,
    halving_readout,
    shifted_softplus,
)
from ase_biasgrad.graph import AtomGraph

RADIAL_BASES: dict[str, type[nn.Module]] = {"gaussian": GaussianRBF, "bessel": BesselRBF}
CUTOFF_FUNCTIONS: dict[str, type[nn.Module]] = {
    "cosine": CosineCutoff,
    "mollifier": MollifierCutoff,
}


class SchNetPackBackbone(ReadoutBackbone):
    """A SchNetPack representation and its atomwise readout.

    Parameters
    ----------
    features
        Width of the atom features.
    interactions
        Number of interaction blocks.
    cutoff
        Range of the filters in Å.
    radial_functions
        Number of radial basis functions.
    radial_basis
        `gaussian` (equidistant, width = spacing) or `bessel` (DimeNet).
    cutoff_function
        `cosine` (Behler) or `mollifier`.
    readout_layers
        Dense layers of the readout; each halves the width.
    scale
        Energy unit of the readout in eV: the network's output is multiplied by it. The force
        stage sets it to the root mean square force × 1 Å, so that outputs are of order one.
    """

    depths: ClassVar[tuple[str, ...]] = ("interactions", "readout_layers")
    largest_number: ClassVar[int] = N_EMBEDDED - 1
    # before the readout: `(n, features)` of numbers `(n,)`, edges `(e,)` and vectors `(e, 3)`
    layers: ClassVar[type[nn.Module]]

    def __init__(
        self,
        features: int = 128,
        interactions: int = 3,
        cutoff: float = 5.0,
        radial_functions: int = 20,
        radial_basis: str = "gaussian",
        cutoff_function: str = "cosine",
        readout_layers: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep_arguments(locals())
        check_schnetpack(self.arguments)
        radial = RADIAL_BASES[radial_basis](radial_functions, cutoff)
        envelope = CUTOFF_FUNCTIONS[cutoff_function](cutoff)
        self.representation = self.layers(features, interactions, radial, envelope)
        self.readout = halving_readout(features, readout_layers)

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        vectors = graph.edge_vectors().to(self.readout[-1].weight.dtype)  # (e, 3)
        features = self.representation(graph.numbers, *graph.edge_index, vectors)  # (n, f)
        return self.scale * self.readout(features).squeeze(-1)


class SchNetLayers(nn.Module):
    """x_i ← x_i + f2out(Σ_j W(r_ij) ∘ in2f(x_j)), once for each interaction."""

    def __init__(
        self, features: int, interactions: int, radial_basis: nn.Module, cutoff_fn: nn.Module
    ) -> None:
        super().__init__()
        self.radial_basis, self.cutoff_fn = radial_basis, cutoff_fn
        self.embedding = nn.Embedding(N_EMBEDDED, features)
        self.interactions = nn.ModuleList(
            SchNetInteraction(features, radial_basis.n_rbf) for _ in range(interactions)
        )

    def forward(self, numbers: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> Tensor:
        """Features `(n, f)` of atoms from edges i to j `(e,)` along vectors `(e, 3)`."""
        distances = torch.norm(vectors, dim=1)  # (e,)
        basis, envelope = self.radial_basis(distances), self.cutoff_fn(distances)
        x = self.embedding(numbers)
        for interaction in self.interactions:
            x = x + interaction(x, i, j, basis, envelope)
        return x


class SchNetInteraction(nn.Module):
    """f2out(Σ_j W(r_ij) ∘ in2f(x_j)) with filters W from the radial basis."""

    def __init__(self, features: int, radial_functions: int) -> None:
        super().__init__()
        self.in2f = Dense(features, features, bias=False)
        self.f2out = nn.Sequential(
            Dense(features, features, shifted_softplus), Dense(features, features)
        )
        self.filter_network = nn.Sequential(
            Dense(radial_functions, features, shifted_softplus), Dense(features, features)
        )

    def forward(self, x: Tensor, i: Tensor, j: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        """`(n, f)` of features x `(n, f)`, radial basis `(e, k)`, cutoff function `(e,)`."""
        filters = self.filter_network(basis) * envelope[:, None]  # (e, f)
        sent = self.in2f(x)[j] * filters
        return self.f2out(torch.zeros_like(x).index_add(0, i, sent))


class SchNet(SchNetPackBackbone):
    """Continuous-filter convolutions (Schütt et al. 2018, J. Chem. Phys. 148, 241722)."""

    name: ClassVar[str] = "schnet"
    radial: ClassVar[tuple[str, ...]] = ("filter_network",)
    layers: ClassVar[type[nn.Module]] = SchNetLayers

    def __init__(self, interactions: int = 6, radial_functions: int = 50, **arguments: Any) -> None:
        super().__init__(interactions=interactions, radial_functions=radial_functions, **arguments)


class PaiNNLayers(nn.Module):
    """Messages and mixing of scalars q `(n, 1, f)` and vectors μ `(n, 3, f)`, in turn."""

    def __init__(
        self, features: int, interactions: int, radial_basis: nn.Module, cutoff_fn: nn.Module
    ) -> None:
        super().__init__()
        self.radial_basis, self.cutoff_fn = radial_basis, cutoff_fn
        self.embedding = nn.Embedding(N_EMBEDDED, features)
        self.filter_net = Dense(radial_basis.n_rbf, 3 * interactions * features)
        self.interactions = nn.ModuleList(PaiNNInteraction(features) for _ in range(interactions))
        self.mixing = nn.ModuleList(PaiNNMixing(features) for _ in range(interactions))

    def forward(self, numbers: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> Tensor:
        """Scalar features `(n, f)` from edges i to j `(e,)` along vectors `(e, 3)`."""
        distances = torch.norm(vectors, dim=1, keepdim=True)  # (e, 1)
        directions = (vectors / distances)[..., None]  # (e, 3, 1)
        filters = self.filter_net(self.radial_basis(distances))  # (e, 1, 3 f interactions)
        filters = filters * self.cutoff_fn(distances)[..., None]
        q = self.embedding(numbers).unsqueeze(1)
        mu = q.new_zeros((len(q), 3, q.shape[2]))
        parts = filters.chunk(len(self.interactions), dim=-1)
        for interaction, mixing, w in zip(self.interactions, self.mixing, parts, strict=True):
            q, mu = mixing(*interaction(q, mu, i, j, w, directions))
        return q.squeeze(1)


class PaiNNInteraction(nn.Module):
    """q_i += Σ_j a⁰, μ_i += Σ_j a¹ r̂_ij + a² μ_j with a = W(r_ij) ∘ context(q_j)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.interatomic_context_net = nn.Sequential(
            Dense(features, features, silu), Dense(features, 3 * features)
        )

    def forward(
        self, q: Tensor, mu: Tensor, i: Tensor, j: Tensor, filters: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q and μ after the messages."""
        scalar, radial, factor = (filters * self.interatomic_context_net(q)[j]).chunk(3, dim=-1)
        vector = radial * directions + factor * mu[j]  # (e, 3, f)
        return q.index_add(0, i, scalar), mu.index_add(0, i, vector)


class PaiNNMixing(nn.Module):
    """q += a⁰ + a² V·W, μ += a¹ W with a = context(q, |V|), where V and W are linear in μ."""

    epsilon: ClassVar[float] = 1e-8  # under the root of |V|

    def __init__(self, features: int) -> None:
        super().__init__()
        self.intraatomic_context_net = nn.Sequential(
            Dense(2 * features, features, silu), Dense(features, 3 * features)
        )
        self.mu_channel_mix = Dense(features, 2 * features, bias=False)

    def forward(self, q: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """q and μ after the mixing."""
        v, w = self.mu_channel_mix(mu).chunk(2, dim=-1)  # (n, 3, f)
        norm = torch.sqrt(v.square().sum(dim=1, keepdim=True) + self.epsilon)
        scalar, vector, product = self.intraatomic_context_net(torch.cat([q, norm], -1)).chunk(
            3, -1
        )
        return q + scalar + product * (v * w).sum(dim=1, keepdim=True), mu + vector * w


class PaiNN(SchNetPackBackbone):
    """Equivariant message passing with vectors (Schütt, Unke, Gastegger 2021, ICML)."""

    name: ClassVar[str] = "painn"
    radial: ClassVar[tuple[str, ...]] = ("filter_net",)
    layers: ClassVar[type[nn.Module]] = PaiNNLayers
