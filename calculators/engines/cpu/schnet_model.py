"""SchNet's weights packed for the kernels, and the memory that they work in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_biasgrad.calculators.engines.cpu import schnet
from ase_biasgrad.calculators.engines.cpu.matrix_product import (
    packed,
    packed_readout,
    padded,
    transposed,
)
from ase_biasgrad.calculators.engines.weights import packed_filters, schnet_weights, single, widened


class CpuSchNet:
    """SchNet, one or several stacked, for `CpuEngine`."""

    kernel = schnet
    directed = False

    def __init__(self, backbones: Sequence[Any]) -> None:
        weights = schnet_weights(backbones)
        self.table = weights.table
        self.members, self.layers = weights.hidden.shape[:2]
        features = weights.embedding.shape[2]
        self.width = padded(features)
        self.message_width = self.width
        embedding = widened(weights.embedding, self.width)
        inward, hidden, outward = (
            widened(w, self.width, self.width)
            for w in (weights.inward, weights.hidden, weights.outward)
        )
        self.weights = schnet.Weights(
            single(embedding),
            single(np.einsum("mzf,mfg->mzg", embedding, inward[:, 0])),
            packed(inward),
            packed(transposed(inward)),
            packed(hidden),
            packed(transposed(hidden)),
            single(widened(weights.hidden_bias, self.width)),
            packed(outward),
            packed(transposed(outward)),
            single(widened(weights.outward_bias, self.width)),
            *packed_readout(weights.readout, self.width),
            packed_filters(self.table, (self.members, self.layers), (1, features), self.width),
        )

    def memory(self, n: int, blocks: int) -> schnet.Memory:
        """Memory for `n` atoms, in `blocks`."""
        hidden_layers = len(self.weights.panels)
        lead = ((), (self.layers,), (blocks,), (self.layers,), (hidden_layers,), (3,))
        return schnet.Memory(*(np.empty((*shape, n, self.width), np.float32) for shape in lead))
