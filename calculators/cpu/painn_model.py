"""PaiNN's weights packed for the kernels, and the memory that they work in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_biasgrad.calculators.cpu import painn
from ase_biasgrad.calculators.cpu.matrix_product import packed, padded
from ase_biasgrad.calculators.cpu.packing import (
    packed_filters,
    packed_readout,
    single,
    transposed,
)
from ase_biasgrad.calculators.sampled_weights import painn_weights


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

        def wide(array: np.ndarray, *parts: int) -> np.ndarray:
            """Each of the parts that make up the last axes padded on its own."""
            for axis, count in zip(range(-len(parts), 0), parts, strict=True):
                split = np.split(array, count, axis=axis)
                room = [(0, 0)] * array.ndim
                room[axis] = (0, width - features)
                array = np.concatenate([np.pad(part, room) for part in split], axis=axis)
            return array

        # a1, a2, a3 of the mixing follow the formulas; SchNetPack's order is a1, a3, a2
        order = np.concatenate([np.arange(features) + part * features for part in (0, 2, 1)])
        last, last_bias = weights.mixing2[..., order], weights.mixing2_bias[..., order]
        embedding = wide(weights.embedding, 1)
        matrices = [
            wide(weights.context1, 1, 1), wide(weights.context2, 1, 3),
            wide(weights.mix, 1, 2), wide(weights.mixing1, 2, 1), wide(last, 1, 3),
        ]  # fmt: skip
        biases = [
            wide(weights.context1_bias, 1), wide(weights.context2_bias, 3),
            wide(weights.mixing1_bias, 1), wide(last_bias, 3),
        ]  # fmt: skip
        context0 = first_context(embedding, matrices[0], biases[0], matrices[1], biases[1])
        context1, context2, mix, mixing1, mixing2 = (
            (packed(matrix), packed(transposed(matrix))) for matrix in matrices
        )
        bias_c1, bias_c2, bias_m1, bias_m2 = (single(bias) for bias in biases)
        self.weights = (
            single(embedding), single(context0), *context1, bias_c1, *context2, bias_c2, *mix,
            *mixing1, bias_m1, *mixing2, bias_m2, np.float32(weights.epsilon),
            *packed_readout(weights.readout, width),
            packed_filters(self.table, (self.members, self.layers), (3, features), width),
        )  # fmt: skip
        self.hidden_layers = len(weights.readout.widths)

    def memory(self, n: int, blocks: int) -> tuple[np.ndarray, ...]:
        """Arrays for `n` atoms, from q to spare in the order of the kernel."""
        k, layers = self.width, self.layers
        shapes: list[tuple[int, ...]] = [
            (n, k), (n, k), (layers, n, 3 * k), (layers, 3 * n, k), (3 * n, k), (3 * n, k),
            (layers, 3 * n, 2 * k), (3 * n, 2 * k), (layers, n, 3 * k), (layers, n, k),
            (layers, n, k), (n, 2 * k), (layers, n, k), (layers, n, k),
            (self.hidden_layers, n, k), (blocks, n, k), (blocks, n, 3 * k),
            (blocks, 3 * n, k), (2, n, k),
        ]  # fmt: skip
        return tuple(np.empty(shape, np.float32) for shape in shapes)


def first_context(
    embedding: np.ndarray,
    weight1: np.ndarray,
    bias1: np.ndarray,
    weight2: np.ndarray,
    bias2: np.ndarray,
) -> np.ndarray:
    """Context of the first interaction for each element, `(members, elements, 3 features)`."""
    hidden = np.einsum("mzf,mfg->mzg", embedding, weight1[:, 0]) + bias1[:, None, 0]
    hidden = hidden / (1 + np.exp(-hidden))
    return np.einsum("mzf,mfg->mzg", hidden, weight2[:, 0]) + bias2[:, None, 0]
