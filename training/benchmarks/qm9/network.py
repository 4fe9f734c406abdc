"""The SE(3)-Transformer that predicts a property of a molecule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ase_biasgrad.se3_transformer.convolution import ConvolutionBlock, KernelOptions
from ase_biasgrad.se3_transformer.fibers import uniform_fiber
from ase_biasgrad.se3_transformer.network import SE3Transformer, transformer_blocks
from ase_biasgrad.se3_transformer.nonlinearity import NormLayerNorm, SmoothGate

ELEMENTS = (1, 6, 7, 8, 9)


@dataclass(frozen=True)
class QM9Options:
    """Architecture; the defaults are the paper's.

    Parameters
    ----------
    layers, channels, heads, division, max_degree
        Attention layers, channels of each degree up to the highest, heads, and by how much keys
        and values are narrower.
    readout
        `mean`, the paper's: a function of the mean of the atoms' scalars. `dipole`: the length of
        Σ_i q_i (r_i − r̄) + μ_i with charges q_i, less their mean, and vectors μ_i of the atoms.
        Its network has gates instead of norms in layers: a vector that vanishes by symmetry stays
        zero, where v/|v| makes a direction of rounding errors.
    low_memory
        Compute kernels again in the backward pass.
    """

    layers: int = 7
    channels: int = 32
    heads: int = 8
    division: int = 2
    max_degree: int = 3
    low_memory: bool = False
    readout: Literal["mean", "dipole"] = "mean"


@dataclass(frozen=True)
class MoleculeBatch:
    """Molecules with `n` atoms and `e` directed edges altogether."""

    numbers: Tensor  # (n,) int64
    positions: Tensor  # (n, 3) Å, float32
    molecule: Tensor  # (n,) int64, molecule that each atom belongs to
    vectors: Tensor  # (e, 3) Å, float32
    edge_index: Tensor  # (2, e)
    bonded: Tensor  # (e,) bool
    molecules: int

    def to(self, device: torch.device | str) -> MoleculeBatch:
        names = ("numbers", "positions", "molecule", "vectors", "edge_index", "bonded")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class QM9Network(nn.Module):
    """Attention over neighbours, a convolution to scalars of the atoms, and a readout.

    Atoms go in as one-hot elements and a tenth of the atomic number, edges with whether they are
    bonds. The output is in units of the standardised target; `target` has its mean and standard
    deviation.
    """

    FORMAT, OPTIONS = "ase-biasgrad qm9 network", QM9Options
    target: Tensor

    def __init__(self, options: QM9Options, mean: float = 0.0, deviation: float = 1.0) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("target", torch.tensor([mean, deviation], dtype=torch.float64))
        self.register_buffer("elements", torch.tensor(ELEMENTS), persistent=False)
        kernels = KernelOptions(inputs=2, low_memory=options.low_memory)
        fiber_in = {0: len(ELEMENTS) + 1}
        hidden = uniform_fiber(options.max_degree, options.channels)
        width = options.channels * (options.max_degree + 1)
        last = {0: width} if options.readout == "mean" else {0: width, 1: 1}
        self.transformer = SE3Transformer(
            fiber_in,
            [
                *transformer_blocks(
                    fiber_in,
                    hidden,
                    options.layers,
                    options.heads,
                    options.division,
                    kernels,
                    NormLayerNorm if options.readout == "mean" else SmoothGate,
                ),
                ConvolutionBlock(hidden, last, kernels),
            ],
        )
        self.readout = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, batch: MoleculeBatch) -> Tensor:
        """Standardised property `(molecules,)`.

        Raises
        ------
        ValueError
            If there are elements other than those of QM9.
        """
        one_hot = batch.numbers[:, None] == self.elements  # (n, 5)
        if not bool(one_hot.any(dim=1).all()):
            strange = sorted(set(batch.numbers.tolist()) - set(ELEMENTS))
            raise ValueError(f"atomic numbers {strange} are not in QM9 {ELEMENTS}")
        inputs = torch.cat([one_hot, batch.numbers[:, None] / 10], dim=1).to(batch.vectors.dtype)
        features = self.transformer(
            {0: inputs[:, None, :]},
            batch.vectors,
            batch.edge_index,
            batch.bonded[:, None].to(batch.vectors.dtype),
        )
        scalars = features[0][:, 0]  # (n, width)
        if self.options.readout == "mean":
            return self.readout(_means(scalars, batch)).squeeze(1)
        charges = self.readout(scalars)  # (n, 1)
        neutral = charges - _means(charges, batch)[batch.molecule]
        dipoles = neutral * batch.positions + features[1][:, :, 0]  # (n, 3)
        total = dipoles.new_zeros(batch.molecules, 3).index_add(0, batch.molecule, dipoles)
        # the square root has no derivative at zero
        length = (total.square().sum(1) + 1e-12).sqrt()
        return length - (self.target[0] / self.target[1]).to(length.dtype)

    def predict(self, batch: MoleculeBatch) -> Tensor:
        """The property `(molecules,)` in its own unit, float64."""
        return self.target[0] + self.target[1] * self(batch)


def _means(values: Tensor, batch: MoleculeBatch) -> Tensor:
    """Means over the atoms of each molecule, `(molecules, k)`, of `values` `(n, k)`."""
    total = values.new_zeros(batch.molecules, values.shape[1])
    total = total.index_add(0, batch.molecule, values)
    return total / torch.bincount(batch.molecule, minlength=batch.molecules)[:, None]
