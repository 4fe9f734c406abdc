"""The SE(3)-Transformer as a backbone: attention with features of several degrees."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ase_biasgrad.architectures import require_positive
from ase_biasgrad.backbones.base import ReadoutBackbone
from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.units import N_ELEMENTS

MAX_DEGREE = 8  # paths, and the time to build them, grow with its third power


class SE3TransformerBackbone(ReadoutBackbone):
    """Equivariant attention over neighbours (Fuchs et al. 2020), made smooth for forces.

    What differs from the paper's networks: activations have continuous derivatives, the
    radial networks see Bessel functions of the distance, and an envelope lets attention to a
    neighbour end at the cutoff with zero weight and slope.

    Parameters
    ----------
    channels
        Channels of each degree.
    layers
        Attention layers; the last gives scalars alone.
    max_degree
        Highest degree of hidden features.
    heads
        Attention heads; must divide `channels` / `division`.
    division
        Keys and values have 1/`division` of the channels.
    cutoff
        Range of the edges in Å.
    radial_functions
        Number of Bessel functions.
    radial_hidden
        Width of the radial networks.
    odd_paths
        Also use kernels that are odd under reflection: energies may then differ between mirror
        images, which those of molecules never do.
    low_memory
        Compute kernels again in the backward pass instead of keeping them.
    scale
        Energy unit of the readout in eV; see `SchNet`.
    """

    name: ClassVar[str] = "se3_transformer"
    depths: ClassVar[tuple[str, ...]] = ("layers",)

    def __init__(
        self,
        channels: int = 32,
        layers: int = 3,
        max_degree: int = 2,
        heads: int = 4,
        division: int = 2,
        cutoff: float = 5.0,
        radial_functions: int = 8,
        radial_hidden: int = 32,
        odd_paths: bool = False,
        low_memory: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep_arguments(locals())
        sizes = ("channels", "layers", "heads", "division", "radial_functions", "radial_hidden")
        require_positive(self.arguments, ("cutoff", *sizes))
        if max_degree > MAX_DEGREE:
            raise ValueError(f"max_degree={max_degree}: at most {MAX_DEGREE}")
        from ase_biasgrad.backbones.radial import BesselRBF
        from ase_biasgrad.se3_transformer.attention import AttentionBlock
        from ase_biasgrad.se3_transformer.convolution import KernelOptions
        from ase_biasgrad.se3_transformer.fibers import uniform_fiber
        from ase_biasgrad.se3_transformer.network import SE3Transformer, transformer_blocks
        from ase_biasgrad.se3_transformer.nonlinearity import SmoothGate

        self.embedding = nn.Embedding(N_ELEMENTS, channels)
        self.radial_basis = BesselRBF(radial_functions, cutoff=cutoff)
        kernels = KernelOptions(
            inputs=1 + radial_functions,
            radial_hidden=radial_hidden,
            activation=nn.SiLU,
            odd_paths=odd_paths,
            low_memory=low_memory,
        )
        scalars, hidden = {0: channels}, uniform_fiber(max_degree, channels)
        blocks = transformer_blocks(
            scalars, hidden, layers - 1, heads, division, kernels, SmoothGate
        )
        fiber = hidden if layers > 1 else scalars
        blocks.append(AttentionBlock(fiber, scalars, heads, division, kernels))
        self.transformer = SE3Transformer(scalars, blocks)
        self.readout = nn.Sequential(
            nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, 1)
        )
        nn.init.zeros_(self.readout[-1].bias)

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        dtype = self.embedding.weight.dtype
        vectors = graph.edge_vectors().to(dtype)  # (e, 3)
        near = vectors.detach().square().sum(dim=1) < self.cutoff**2
        vectors, index = vectors[near], graph.edge_index[:, near]
        distances = vectors.norm(dim=1)
        features = self.transformer(
            {0: self.embedding(graph.numbers)[:, None, :]},
            vectors,
            index,
            edge_scalars=self.radial_basis(distances),
            envelope=quintic_envelope(distances / self.cutoff),
        )
        return self.scale * self.readout(features[0][:, 0]).squeeze(-1)


def quintic_envelope(x: Tensor) -> Tensor:
    """1 − 10x³ + 15x⁴ − 6x⁵ for x in 0..1: from one to zero, flat with no curvature at both."""
    return 1 - x**3 * (10 - 15 * x + 6 * x**2)
