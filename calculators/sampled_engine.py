"""The sampled engine: TensorNet with its filters sampled once, pairs counted once, on a CPU.

The messages are the loops of training (`backbones/pair_messages.py`), the dense layers torch's,
forces and stress come by autograd through both.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ase_biasgrad.backbones import Backbone, TensorNet
from ase_biasgrad.backbones.lean_forward import FixedMessenger
from ase_biasgrad.backbones.tensornet import Filters
from ase_biasgrad.calculators.reference_engine import ReferenceEngine
from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.splines import sampled


def fits(backbones: list[Backbone]) -> bool:
    """Whether this engine can evaluate these backbones."""
    return all(isinstance(backbone, TensorNet) for backbone in backbones)


class SampledTensorNet(Backbone):
    """`TensorNet` whose filters are splines (`table` says how accurate) and do not learn.

    Raises
    ------
    ase_biasgrad.splines.SplineError
        If the filters cannot be sampled.
    """

    name = "sampled-tensornet"

    def __init__(self, of: TensorNet) -> None:
        super().__init__()
        self.of = of
        self.arguments, self.cutoff = of.arguments, of.cutoff
        exact = copy.deepcopy(of).to("cpu", torch.float64).requires_grad_(False)

        def filters(distances: Tensor) -> Tensor:
            return torch.cat([values.flatten(1) for values in exact.filters(distances)], dim=1)

        self.table = sampled(filters, of.cutoff, of.sampled_functions)
        layers = 1 + of.arguments["interactions"]
        shape = (layers, 3, of.arguments["features"])
        rows = torch.from_numpy(self.table.rows).unflatten(1, shape)
        own = filters(torch.zeros(1, dtype=torch.float64)).unflatten(1, shape)
        self.register_buffer("rows", rows.transpose(0, 1).contiguous())  # (layers, rows, 3, f)
        self.register_buffer("own", own.transpose(0, 1).contiguous())  # (layers, 1, 3, f)

    def forward(self, graph: AtomGraph) -> Tensor:
        """Per-atom energies `(n,)` in eV."""
        buffers: Any = self
        filters = [Filters(*of) for of in zip(buffers.own, buffers.rows, strict=True)]
        messenger = FixedMessenger(graph, self.table.knots, self.of.dtype, filters)
        return self.of.energies(graph.numbers, messenger)


class SampledEngine(ReferenceEngine):
    """Autograd through `SampledTensorNet`, of one or several `TensorNet`, on the CPU."""

    name = "sampled"

    def __init__(self, backbones: Sequence[Any], dtype: torch.dtype, skin: float) -> None:
        own: list[Backbone] = [SampledTensorNet(backbone) for backbone in backbones]
        super().__init__(own, torch.device("cpu"), dtype, skin)
