"""Messages by compiled code, where positions need no derivatives: on a CPU, several edges at once.

The kernels of a block of edges are made, used and forgotten before the next block, so that they
never leave the processor's cache; the backward pass makes them again. In all arrays the last
index is an edge's place in its block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store
from ase_biasgrad.se3_transformer.couplings import clebsch_gordan
from ase_biasgrad.se3_transformer.frames import MessageShape

LANES = 2 * WIDTH  # edges of a block
TOGETHER = 4  # blocks whose gradients in the weights are summed at once


@dataclass(frozen=True)
class CompiledFrames:
    """Wigner matrices of the frames of all edges, `(blocks, Σ (2l + 1)², LANES)`."""

    wigner: np.ndarray
    neighbour: np.ndarray  # (edges,)

    @classmethod
    def of(cls, vectors: Tensor, neighbour: Tensor, highest_degree: int) -> CompiledFrames:
        """Frames of edges with these vectors `(edges, 3)`, up to a degree."""
        array = vectors.detach().numpy()
        wigner = _wigner(array, *_sparse_couplings(highest_degree, array.dtype), highest_degree)
        return cls(wigner, np.ascontiguousarray(neighbour.numpy()))

    def messages(
        self, features: Tensor, hidden: Tensor, kernels: list[Tensor], shape: MessageShape
    ) -> Tensor:
        """Messages of `Frames.messages`, whose gradients are not differentiable."""
        return _Messages.apply(features, hidden, torch.cat(kernels), self, shape)


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        hidden: Tensor,
        kernels: Tensor,
        frames: CompiledFrames,
        shape: MessageShape,
    ) -> Tensor:
        channels = len(kernels) // shape.numbers
        inputs = features.detach().contiguous().numpy()
        arrays = (
            inputs,
            _blocks(hidden.detach().numpy()),
            kernels.detach().contiguous().numpy(),
            frames.wigner,
            frames.neighbour,
            np.array(shape.degrees_in),
            np.array(shape.degrees_out),
            shape.odd_paths,
        )
        size = (len(hidden), channels // inputs.shape[2], shape.components_out)
        messages = torch.empty(size, dtype=features.dtype)
        _forward(*arrays, messages.numpy())
        ctx.arrays = arrays
        return messages

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, hidden, kernels = ctx.arrays[:3]
        features_grad, kernels_grad = np.zeros_like(inputs), np.zeros_like(kernels)
        hidden_grad = np.empty_like(hidden)
        _backward(*ctx.arrays, grad.contiguous().numpy(), features_grad, hidden_grad, kernels_grad)
        flat = hidden_grad.transpose(0, 2, 1).reshape(-1, hidden.shape[1])[: len(grad)]
        return (
            torch.from_numpy(features_grad),
            torch.from_numpy(flat),
            torch.from_numpy(kernels_grad),
            None,
            None,
        )


def _blocks(values: np.ndarray) -> np.ndarray:
    """Rows `(edges, k)` as `(blocks, k, LANES)`, with zeros at the end."""
    blocks = -(-len(values) // LANES)
    padded = np.zeros((blocks * LANES, values.shape[1]), values.dtype)
    padded[: len(values)] = values
    return np.ascontiguousarray(padded.reshape(blocks, LANES, values.shape[1]).transpose(0, 2, 1))


@cache
def _sparse_couplings(
    highest_degree: int, dtype: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of the couplings 1 × (l − 1) → l, l = 2 …: starts by degree, indices, values."""
    starts, indices, values = [0], [], []
    for degree in range(2, highest_degree + 1):
        coupled = clebsch_gordan(1, degree - 1, degree).numpy()
        places = np.argwhere(np.abs(coupled) > 1e-12)
        indices.append(places)
        values.append(coupled[tuple(places.T)])
        starts.append(starts[-1] + len(places))
    return (
        np.array(starts),
        np.concatenate([np.zeros((0, 3), int), *indices]),
        np.concatenate([np.zeros(0), *values]).astype(dtype),
    )


@compiled(fastmath=True)
def _wigner(vectors, starts, indices, values, highest):  # type: ignore[no-untyped-def]
    blocks = (len(vectors) + LANES - 1) // LANES
    size = 0
    for degree in range(highest + 1):
        size += (2 * degree + 1) ** 2
    wigner = np.zeros((blocks, size, LANES), vectors.dtype)
    frame = np.empty((3, 3), vectors.dtype)
    for block in range(blocks):
        for lane in range(LANES):
            edge = min(block * LANES + lane, len(vectors) - 1)
            wigner[block, 0, lane] = 1
            if highest:
                _frame(vectors[edge], frame)
                for i in range(3):
                    for j in range(3):
                        wigner[block, 1 + 3 * i + j, lane] = frame[i, j]
        before, here = 1, 10
        for degree in range(2, highest + 1):
            width, narrow = 2 * degree + 1, 2 * degree - 1
            for p in range(starts[degree - 2], starts[degree - 1]):
                i, a, m = indices[p]
                for q in range(starts[degree - 2], starts[degree - 1]):
                    j, b, n = indices[q]
                    factor = values[p] * values[q]
                    one, two = 1 + 3 * i + j, before + narrow * a + b
                    place = here + width * m + n
                    for lane in range(LANES):
                        wigner[block, place, lane] += (
                            factor * wigner[block, one, lane] * wigner[block, two, lane]
                        )
            before, here = here, here + width**2
    return wigner


@compiled(fastmath=True)
def _frame(vector, frame):  # type: ignore[no-untyped-def]
    """See `edge_frames`."""
    x, y, z = vector
    norm = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / norm, y / norm, z / norm
    if abs(x) <= abs(y) and abs(x) <= abs(z):
        a, b, c = 0 * x, -z, y
    elif abs(y) <= abs(z):
        a, b, c = z, 0 * y, -x
    else:
        a, b, c = -y, x, 0 * z
    norm = np.sqrt(a * a + b * b + c * c)
    a, b, c = a / norm, b / norm, c / norm
    frame[0, 0], frame[0, 1], frame[0, 2] = a, b, c
    frame[1, 0], frame[1, 1], frame[1, 2] = x, y, z
    frame[2, 0], frame[2, 1], frame[2, 2] = b * z - c * y, c * x - a * z, a * y - b * x


@compiled()
def _first_components(degrees):  # type: ignore[no-untyped-def]
    """Place of component m = 0 of each degree among all."""
    places, total = np.empty(len(degrees), np.int64), 0
    for index in range(len(degrees)):
        places[index] = total + degrees[index]
        total += 2 * degrees[index] + 1
    return places


@compiled()
def _turn(wigner, degrees, highest, channels, source, target, back):  # type: ignore[no-untyped-def]
    """Features `(components · channels, LANES)` into the frames, or back, for |m| ≤ highest."""
    first, zero = 0, splat(source.dtype.type(0))
    for degree in degrees:
        entries = degree * (2 * degree - 1) * (2 * degree + 1) // 3  # of lower degrees
        width, top = 2 * degree + 1, min(highest, degree)
        rows = range(width) if back else range(degree - top, degree + top + 1)
        columns = range(degree - top, degree + top + 1) if back else range(width)
        for row in rows:
            for channel in range(channels):
                for lane in range(0, LANES, WIDTH):
                    value = zero
                    for column in columns:
                        entry = column * width + row if back else row * width + column
                        value = value + load(wigner, (entries + entry) * LANES + lane) * load(
                            source, ((first + column) * channels + channel) * LANES + lane
                        )
                    store(target, ((first + row) * channels + channel) * LANES + lane, value)
        first += width


@compiled()
def _gather(features, neighbour, block, target):  # type: ignore[no-untyped-def]
    components, channels = features.shape[1:]
    for lane in range(LANES):
        edge = block * LANES + lane
        if edge < len(neighbour):
            sender = neighbour[edge]
            for component in range(components):
                for channel in range(channels):
                    target[component * channels + channel, lane] = features[
                        sender, component, channel
                    ]
        else:
            target[:, lane] = 0


@compiled()
def _couple(  # type: ignore[no-untyped-def]
    weights, seen, coupled, degrees_in, degrees_out, channels, channels_out, odd, lane
):
    """Apply the kernels of edges `lane` to `lane + WIDTH` to features in their frames."""
    highest = min(degrees_in.max(), degrees_out.max())
    centres_in, centres_out = _first_components(degrees_in), _first_components(degrees_out)
    p, zero = lane, splat(seen.dtype.type(0))
    for m in range(highest + 1):
        for parity in range(2 if odd and m else 1):
            for one in range(len(degrees_in)):
                if degrees_in[one] < m:
                    continue
                for channel in range(channels):
                    plus = ((centres_in[one] + m) * channels + channel) * LANES + lane
                    minus = ((centres_in[one] - m) * channels + channel) * LANES + lane
                    to_plus, to_minus = load(seen, plus), load(seen, minus)
                    if parity:
                        to_plus, to_minus = to_minus, zero - to_plus
                    for two in range(len(degrees_out)):
                        if degrees_out[two] < m:
                            continue
                        up = (centres_out[two] + m) * channels_out * LANES + lane
                        down = (centres_out[two] - m) * channels_out * LANES + lane
                        for _ in range(channels_out):
                            weight = load(weights, p)
                            store(coupled, up, load(coupled, up) + weight * to_plus)
                            if m:
                                store(coupled, down, load(coupled, down) + weight * to_minus)
                            p, up, down = p + LANES, up + LANES, down + LANES


@compiled()
def _couple_back(  # type: ignore[no-untyped-def]
    weights, seen, grad, weights_grad, seen_grad,
    degrees_in, degrees_out, channels, channels_out, odd, lane, stride,
):  # fmt: skip
    """Gradients of `_couple` in weights, rows `stride` apart, and in features."""
    highest = min(degrees_in.max(), degrees_out.max())
    centres_in, centres_out = _first_components(degrees_in), _first_components(degrees_out)
    zero, p, q = splat(seen.dtype.type(0)), lane % LANES, lane
    lane = lane % LANES
    for m in range(highest + 1):
        for parity in range(2 if odd and m else 1):
            for one in range(len(degrees_in)):
                if degrees_in[one] < m:
                    continue
                for channel in range(channels):
                    plus = ((centres_in[one] + m) * channels + channel) * LANES + lane
                    minus = ((centres_in[one] - m) * channels + channel) * LANES + lane
                    to_plus, to_minus = load(seen, plus), load(seen, minus)
                    if parity:
                        to_plus, to_minus = to_minus, zero - to_plus
                    grad_plus, grad_minus = zero, zero
                    for two in range(len(degrees_out)):
                        if degrees_out[two] < m:
                            continue
                        up = (centres_out[two] + m) * channels_out * LANES + lane
                        down = (centres_out[two] - m) * channels_out * LANES + lane
                        for _ in range(channels_out):
                            weight, of_up = load(weights, p), load(grad, up)
                            product = of_up * to_plus
                            grad_plus = grad_plus + weight * of_up
                            if m:
                                of_down = load(grad, down)
                                product = product + of_down * to_minus
                                grad_minus = grad_minus + weight * of_down
                            store(weights_grad, q, product)
                            p, q, up, down = p + LANES, q + stride, up + LANES, down + LANES
                    if parity:
                        grad_plus, grad_minus = zero - grad_minus, grad_plus
                    store(seen_grad, plus, load(seen_grad, plus) + grad_plus)
                    if m:
                        store(seen_grad, minus, load(seen_grad, minus) + grad_minus)


@compiled()
def _forward(  # type: ignore[no-untyped-def]
    features, hidden, kernels, wigner, neighbour, degrees_in, degrees_out, odd, messages
):
    components, channels = features.shape[1:]
    channels_out, components_out = messages.shape[1:]
    highest = min(degrees_in.max(), degrees_out.max())
    weights = np.empty((len(kernels), LANES), features.dtype)
    sent = np.empty((components * channels, LANES), features.dtype)
    seen = np.zeros_like(sent)
    coupled = np.zeros((components_out * channels_out, LANES), features.dtype)
    turned = np.empty_like(coupled)
    for block in range(len(hidden)):
        np.dot(kernels, hidden[block], weights)
        _gather(features, neighbour, block, sent)
        _turn(wigner[block], degrees_in, highest, channels, sent, seen, False)
        coupled[:] = 0
        for lane in range(0, LANES, WIDTH):
            _couple(
                weights, seen, coupled, degrees_in, degrees_out, channels, channels_out, odd, lane
            )
        _turn(wigner[block], degrees_out, highest, channels_out, coupled, turned, True)
        for lane in range(min(LANES, len(neighbour) - block * LANES)):
            for out in range(channels_out):
                for component in range(components_out):
                    messages[block * LANES + lane, out, component] = turned[
                        component * channels_out + out, lane
                    ]


@compiled()
def _backward(  # type: ignore[no-untyped-def]
    features, hidden, kernels, wigner, neighbour, degrees_in, degrees_out, odd,
    grad, features_grad, hidden_grad, kernels_grad,
):  # fmt: skip
    components, channels = features.shape[1:]
    channels_out, components_out = grad.shape[1:]
    highest = min(degrees_in.max(), degrees_out.max())
    weights = np.empty((len(kernels), LANES), features.dtype)
    weights_grad = np.zeros((len(kernels), TOGETHER * LANES), features.dtype)
    hidden_rows = np.zeros((TOGETHER * LANES, hidden.shape[1]), features.dtype)
    hidden_columns = np.empty((hidden.shape[1], TOGETHER * LANES), features.dtype)
    transposed = np.ascontiguousarray(kernels.T)
    sent = np.empty((components * channels, LANES), features.dtype)
    seen, seen_grad = np.zeros_like(sent), np.zeros_like(sent)
    sent_grad = np.empty_like(sent)
    turned = np.zeros((components_out * channels_out, LANES), features.dtype)
    coupled = np.zeros_like(turned)
    for block in range(len(hidden)):
        np.dot(kernels, hidden[block], weights)
        _gather(features, neighbour, block, sent)
        _turn(wigner[block], degrees_in, highest, channels, sent, seen, False)
        edges = min(LANES, len(neighbour) - block * LANES)
        for lane in range(edges):
            for out in range(channels_out):
                for component in range(components_out):
                    turned[component * channels_out + out, lane] = grad[
                        block * LANES + lane, out, component
                    ]
        turned[:, edges:] = 0
        _turn(wigner[block], degrees_out, highest, channels_out, turned, coupled, False)
        seen_grad[:] = 0
        place = block % TOGETHER
        for lane in range(0, LANES, WIDTH):
            _couple_back(
                weights, seen, coupled, weights_grad, seen_grad, degrees_in, degrees_out,
                channels, channels_out, odd, place * LANES + lane, TOGETHER * LANES,
            )  # fmt: skip
        hidden_rows[place * LANES : (place + 1) * LANES] = hidden[block].T
        if place == TOGETHER - 1 or block == len(hidden) - 1:
            weights_grad[:, (place + 1) * LANES :] = 0
            kernels_grad += np.dot(weights_grad, hidden_rows)
            np.dot(transposed, weights_grad, hidden_columns)
            for k in range(place + 1):
                part = hidden_columns[:, k * LANES : (k + 1) * LANES]
                hidden_grad[block - place + k] = part
        _turn(wigner[block], degrees_in, highest, channels, seen_grad, sent_grad, True)
        for lane in range(edges):
            sender = neighbour[block * LANES + lane]
            for component in range(components):
                for channel in range(channels):
                    features_grad[sender, component, channel] += sent_grad[
                        component * channels + channel, lane
                    ]
