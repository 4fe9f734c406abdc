"""PaiNN's weights packed for the kernels, and the memory that they work in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_biasgrad.calculators.engines.cpu import painn
from ase_biasgrad.calculators.engines.cpu.matrix_product import (
    packed,
    packed_readout,
    padded,
    transposed,
)
from ase_biasgrad.calculators.engines.weights import (
    first_context,
    packed_filters,
    painn_weights,
    single,
    widened_matrix,
    widened_parts,
)


class CpuPaiNN:
    """PaiNN, one or several stacked, for `CpuEngine`."""

    kernel = painn
    directed = True

    def __init__(self, backbones: Sequence[Any]) -> None:
        weights = painn_weights(backbones)
        self.table = weights.table
        self.members, self.layers = weights.context1.shape[:2]
        features = weights.embedding.shape[2]
        self.width = width = padded(features)
        self.message_width = 7 * width

        def matrix(array: np.ndarray) -> np.ndarray:
            return widened_matrix(array, features, width)

        def parts(array: np.ndarray) -> np.ndarray:
            return widened_parts(array, features, width)

        embedding = parts(weights.embedding)
        matrices = [
            matrix(weights.context1), matrix(weights.context2), matrix(weights.mix),
            matrix(weights.mixing1), matrix(weights.mixing2),
        ]  # fmt: skip
        biases = [
            parts(weights.context1_bias), parts(weights.context2_bias),
            parts(weights.mixing1_bias), parts(weights.mixing2_bias),
        ]  # fmt: skip
        context0 = first_context(embedding, matrices[0], biases[0], matrices[1], biases[1])
        context1, context2, mix, mixing1, mixing2 = (
            (packed(matrix), packed(transposed(matrix))) for matrix in matrices
        )
        bias_c1, bias_c2, bias_m1, bias_m2 = (single(bias) for bias in biases)
        self.weights = painn.Weights(
            single(embedding), single(context0), *context1, bias_c1, *context2, bias_c2, *mix,
            *mixing1, bias_m1, *mixing2, bias_m2, np.float32(weights.epsilon),
            *packed_readout(weights.readout, width),
            packed_filters(self.table, (self.members, self.layers), (3, features), width),
        )  # fmt: skip

    def memory(self, n: int, blocks: int) -> painn.Memory:
        """Memory for `n` atoms, in `blocks`."""
        k, layers = self.width, self.layers
        shapes: list[tuple[int, ...]] = [
            (n, k), (n, k), (layers, n, 3 * k), (layers, 3 * n, k), (3 * n, k), (3 * n, k),
            (layers, 3 * n, 2 * k), (3 * n, 2 * k), (layers, n, 3 * k), (layers, n, k),
            (layers, n, k), (n, 2 * k), (layers, n, k), (layers, n, k),
            (len(self.weights.panels), n, k), (blocks, n, k), (blocks, n, 3 * k),
            (blocks, 3 * n, k), (2, n, k),
        ]  # fmt: skip
        return painn.Memory(*(np.empty(shape, np.float32) for shape in shapes))
