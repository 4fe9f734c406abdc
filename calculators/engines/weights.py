"""Weights of SchNet and PaiNN as arrays, and their radial filters as one table.

Committees are stacked along a first axis `members`; all members share one grid of the filters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ase_biasgrad.backbones import Backbone, PaiNN, SchNet
from ase_biasgrad.numerics.splines import RadialTable, sampled


@dataclass(frozen=True)
class Readout:
    """Dense layers from features to an energy, with SiLU between them.

    Hidden layers are padded with zeros to the width of the features; `widths` are their own.
    """

    widths: list[int]
    hidden: np.ndarray  # (members, layers − 1, features, features), inputs × outputs
    hidden_bias: np.ndarray  # (members, layers − 1, features)
    last: np.ndarray  # (members, features), times the energy unit in eV
    last_bias: np.ndarray  # (members,) eV


@dataclass(frozen=True)
class SchNetWeights:
    """Weights `(members, interactions, inputs, outputs)` of the blocks, in float64."""

    embedding: np.ndarray  # (members, elements, features)
    inward: np.ndarray  # features to filters, no bias
    hidden: np.ndarray
    hidden_bias: np.ndarray  # (members, interactions, features)
    outward: np.ndarray
    outward_bias: np.ndarray
    readout: Readout
    table: RadialTable  # channels: members × interactions × features


@dataclass(frozen=True)
class PaiNNWeights:
    """Weights `(members, interactions, inputs, outputs)` of the blocks, in float64."""

    embedding: np.ndarray  # (members, elements, features)
    context1: np.ndarray  # features to features
    context1_bias: np.ndarray
    context2: np.ndarray  # features to 3 × features
    context2_bias: np.ndarray
    mix: np.ndarray  # vectors: features to 2 × features, no bias
    mixing1: np.ndarray  # 2 × features to features
    mixing1_bias: np.ndarray
    mixing2: np.ndarray  # features to 3 × features: a1, a2, a3 of q += a1 + a2 Σ V W, μ += a3 W
    mixing2_bias: np.ndarray
    epsilon: float
    readout: Readout
    table: RadialTable  # channels: members × interactions × 3 × features


def fits(backbones: Sequence[Backbone]) -> bool:
    """True if the CPU engine can evaluate these backbones together."""
    first = backbones[0]
    ignored = {"scale", "radial_functions", "radial_basis", "cutoff_function"}
    shapes = [{k: v for k, v in b.arguments.items() if k not in ignored} for b in backbones]
    return type(first) in (SchNet, PaiNN) and all(
        type(b) is type(first) and shape == shapes[0]
        for b, shape in zip(backbones, shapes, strict=True)
    )


def schnet_weights(backbones: Sequence[Any]) -> SchNetWeights:
    """Weights of `SchNet` backbones of one shape, filters sampled.

    Raises
    ------
    ase_biasgrad.numerics.splines.SplineError
        If the filters cannot be sampled.
    """
    nets = _in_float64(backbones)

    def blocks(path: str) -> np.ndarray:
        return _blocks([net.representation.interactions for net in nets], path)

    return SchNetWeights(
        embedding=_stacked(nets, "representation.embedding.weight"),
        inward=blocks("in2f.weight"),
        hidden=blocks("f2out.0.weight"),
        hidden_bias=blocks("f2out.0.bias"),
        outward=blocks("f2out.1.weight"),
        outward_bias=blocks("f2out.1.bias"),
        readout=_readout(nets),
        table=_table(nets, _schnet_filters),
    )


def painn_weights(backbones: Sequence[Any]) -> PaiNNWeights:
    """Weights of `PaiNN` backbones of one shape, filters sampled; errors as `schnet_weights`."""
    nets = _in_float64(backbones)

    def contexts(path: str) -> np.ndarray:
        return _blocks([net.representation.interactions for net in nets], path)

    def mixings(path: str) -> np.ndarray:
        return _blocks([net.representation.mixing for net in nets], path)

    # a1, a2, a3 of the mixing follow the formulas; SchNetPack's order is a1, a3, a2
    features = nets[0].arguments["features"]
    order = np.concatenate([np.arange(features) + part * features for part in (0, 2, 1)])

    return PaiNNWeights(
        embedding=_stacked(nets, "representation.embedding.weight"),
        context1=contexts("interatomic_context_net.0.weight"),
        context1_bias=contexts("interatomic_context_net.0.bias"),
        context2=contexts("interatomic_context_net.1.weight"),
        context2_bias=contexts("interatomic_context_net.1.bias"),
        mix=mixings("mu_channel_mix.weight"),
        mixing1=mixings("intraatomic_context_net.0.weight"),
        mixing1_bias=mixings("intraatomic_context_net.0.bias"),
        mixing2=mixings("intraatomic_context_net.1.weight")[..., order],
        mixing2_bias=mixings("intraatomic_context_net.1.bias")[..., order],
        epsilon=float(nets[0].representation.mixing[0].epsilon),
        readout=_readout(nets),
        table=_table(nets, _painn_filters),
    )


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


def _in_float64(backbones: Sequence[Any]) -> list[Any]:
    return [copy.deepcopy(backbone).to("cpu", torch.float64) for backbone in backbones]


def _table(nets: list[Any], filters: Callable[[Any, Tensor], Tensor]) -> RadialTable:
    """Filters of all members, `filters(net, distances)`, on one grid."""
    functions = max(net.sampled_functions for net in nets)
    cutoff = float(nets[0].cutoff)
    return sampled(lambda d: torch.cat([filters(net, d) for net in nets], 1), cutoff, functions)


def _schnet_filters(net: Any, distances: Tensor) -> Tensor:
    """Filters of all interactions, `(k, interactions × features)`."""
    r = net.representation
    basis, envelope = r.radial_basis(distances), r.cutoff_fn(distances)[:, None]
    return torch.cat([block.filter_network(basis) * envelope for block in r.interactions], 1)


def _painn_filters(net: Any, distances: Tensor) -> Tensor:
    """Filters of all interactions, `(k, interactions × 3 × features)`."""
    r, column = net.representation, distances[:, None]
    return (r.filter_net(r.radial_basis(column)) * r.cutoff_fn(column)[..., None]).squeeze(1)


def _array(tensor: Tensor) -> np.ndarray:
    """Values, weights as inputs × outputs."""
    return tensor.detach().numpy().T if tensor.ndim == 2 else tensor.detach().numpy()


def _stacked(nets: list[Any], path: str) -> np.ndarray:
    """A parameter of every member, as it is."""
    return np.stack([net.get_parameter(path).detach().numpy() for net in nets])


def _blocks(members: list[nn.ModuleList], path: str) -> np.ndarray:
    """A parameter of every block of every member, weights as inputs × outputs."""
    return np.stack([[_array(block.get_parameter(path)) for block in blocks] for blocks in members])


def _readout(nets: list[Any]) -> Readout:
    features, layers = nets[0].arguments["features"], len(nets[0].readout)
    widths = [layer.out_features for layer in nets[0].readout[:-1]]
    hidden = np.zeros((len(nets), layers - 1, features, features))
    bias, last = np.zeros((len(nets), layers - 1, features)), np.zeros((len(nets), features))
    for m, net in enumerate(nets):
        for k, layer in enumerate(net.readout[:-1]):
            weight = _array(layer.weight)
            hidden[m, k, : weight.shape[0], : weight.shape[1]] = weight
            bias[m, k, : weight.shape[1]] = _array(layer.bias)
        last[m, : net.readout[-1].in_features] = net.scale * _array(net.readout[-1].weight)[:, 0]
    return Readout(
        widths=widths,
        hidden=hidden,
        hidden_bias=bias,
        last=last,
        last_bias=np.array([net.scale * float(net.readout[-1].bias) for net in nets]),
    )


def single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def widened(array: np.ndarray, *widths: int) -> np.ndarray:
    """The last axes filled up with zeros to `widths`."""
    lead = array.ndim - len(widths)
    room = [(0, 0)] * lead + [
        (0, width - size) for width, size in zip(widths, array.shape[lead:], strict=True)
    ]
    return np.pad(array, room)


def widened_parts(array: np.ndarray, features: int, width: int) -> np.ndarray:
    """The last axis, parts of `features`, with each part filled up with zeros to `width`."""
    split = array.reshape(*array.shape[:-1], -1, features)
    return widened(split, width).reshape(*array.shape[:-1], -1)


def widened_matrix(array: np.ndarray, features: int, width: int) -> np.ndarray:
    """`widened_parts` of both last axes."""
    turned = np.swapaxes(widened_parts(array, features, width), -1, -2)
    return np.swapaxes(widened_parts(turned, features, width), -1, -2)


def packed_filters(
    table: RadialTable, lead: tuple[int, ...], parts: tuple[int, int], width: int
) -> np.ndarray:
    """Spline coefficients `(*lead, coefficients, parts × width)`.

    The channels of `table` are lead × parts × features, with `parts` = (parts, features).
    """
    coefficients = table.coefficients.reshape(len(table.coefficients), int(np.prod(lead)), *parts)
    coefficients = widened(np.moveaxis(coefficients, 1, 0), width)
    return single(coefficients.reshape(*lead, len(table.coefficients), parts[0] * width))
