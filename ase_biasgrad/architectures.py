"""Arguments of networks, and the tensors that follow from them, without torch.

A checkpoint is compared with these before anything is built. The networks here run without torch,
too; `backbones.architecture_of` finds the same for every other backbone by building it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ase_biasgrad.units import N_ELEMENTS

MAX_ARGUMENT = 100_000  # of a size, a range in Å, or a unit in eV
N_EMBEDDED = 100  # elements up to fermium, as SchNetPack has them
Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Architecture:
    """A kind of network."""

    name: str
    defaults: Mapping[str, Any]  # of its arguments
    depths: tuple[str, ...]  # arguments that count layers, each of which has tensors of its own
    largest_number: int  # atomic number
    # shapes of the tensors by name; raises `ValueError` on arguments that make no network
    shapes: Callable[[Mapping[str, Any]], Shapes]


def check_arguments(name: str, defaults: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise `ValueError` on an argument that is unknown, not of its type or out of bounds."""
    for key, value in arguments.items():
        if key not in defaults:
            raise ValueError(f"{name} has no argument {key!r}; choose from {sorted(defaults)}")
        if not _alike(value, defaults[key]):
            raise ValueError(
                f"{key}={str(value)[:80]} must be like {defaults[key]!r}: "
                f"{_expected(defaults[key])}"
            )


def _expected(default: Any) -> str:
    """Name what an argument with this default may be."""
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return f"a whole number from 0 to {MAX_ARGUMENT:g}"
    if isinstance(default, float):
        return f"a number from {-MAX_ARGUMENT:g} to {MAX_ARGUMENT:g}"
    return "a word" if isinstance(default, str) else "a list of words"


def _alike(value: Any, default: Any) -> bool:
    """Tell whether an argument has the type of its default, and is no number out of bounds."""
    if isinstance(default, (bool, str)):
        return type(value) is type(default)
    if isinstance(default, (int, float)):
        kinds = (int, float) if isinstance(default, float) else int
        least = -MAX_ARGUMENT if isinstance(default, float) else 0
        return (
            not isinstance(value, bool)
            and isinstance(value, kinds)
            and (least <= value <= MAX_ARGUMENT)
        )
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)


def require_positive(arguments: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise `ValueError` naming the first of these arguments that is not above zero."""
    for name in names:
        if not arguments[name] > 0:
            raise ValueError(f"{name}={arguments[name]} must be above zero")


def require_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raise `ValueError` if an argument is none of its choices; the message lists them."""
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is unknown; choose from {sorted(choices)}")


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    weight = {f"{name}.weight": [outputs, inputs]}
    return {**weight, f"{name}.bias": [outputs]} if bias else weight


def _norm(name: str, features: int) -> Shapes:
    return {f"{name}.weight": [features], f"{name}.bias": [features]}


# --- SchNet and PaiNN -----------------------------------------------------------------------

SCHNETPACK = {
    "features": 128,
    "interactions": 3,
    "cutoff": 5.0,
    "radial_functions": 20,
    "radial_basis": "gaussian",
    "cutoff_function": "cosine",
    "readout_layers": 2,
    "scale": 1.0,
}
BASES = {"gaussian": ("widths", "offsets"), "bessel": ("freqs",)}
CUTOFF_FUNCTIONS = {"cosine": ("cutoff",), "mollifier": ("cutoff", "eps")}


def check_schnetpack(arguments: Mapping[str, Any]) -> None:
    """Raise `ValueError` on sizes and words that make no SchNet or PaiNN."""
    sizes = ("features", "interactions", "cutoff", "radial_functions", "readout_layers")
    require_positive(arguments, sizes)
    require_choice("radial_basis", arguments["radial_basis"], BASES)
    require_choice("cutoff_function", arguments["cutoff_function"], CUTOFF_FUNCTIONS)
    if arguments["radial_basis"] == "gaussian" and arguments["radial_functions"] < 2:
        raise ValueError("radial_functions=1: the width of Gaussians is the distance of two")


def _schnetpack_shapes(arguments: Mapping[str, Any]) -> Shapes:
    """Shapes common to SchNet and PaiNN: basis, cutoff function, embedding, readout."""
    check_schnetpack(arguments)
    features, layers = arguments["features"], arguments["readout_layers"]
    basis, cutoff = BASES[arguments["radial_basis"]], CUTOFF_FUNCTIONS[arguments["cutoff_function"]]
    widths = [*(max(1, features // 2**k) for k in range(layers)), 1]
    shapes: Shapes = {"representation.embedding.weight": [N_EMBEDDED, features]}
    for name in basis:
        shapes[f"representation.radial_basis.{name}"] = [arguments["radial_functions"]]
    for name in cutoff:
        shapes[f"representation.cutoff_fn.{name}"] = [1]
    for k, (inputs, outputs) in enumerate(pairwise(widths)):
        shapes |= _linear(f"readout.{k}", inputs, outputs)
    return shapes


def _schnet_shapes(arguments: Mapping[str, Any]) -> Shapes:
    shapes, f = _schnetpack_shapes(arguments), arguments["features"]
    for k in range(arguments["interactions"]):
        name = f"representation.interactions.{k}"
        shapes |= _linear(f"{name}.in2f", f, f, bias=False)
        shapes |= _linear(f"{name}.f2out.0", f, f) | _linear(f"{name}.f2out.1", f, f)
        shapes |= _linear(f"{name}.filter_network.0", arguments["radial_functions"], f)
        shapes |= _linear(f"{name}.filter_network.1", f, f)
    return shapes


def _painn_shapes(arguments: Mapping[str, Any]) -> Shapes:
    shapes, f, layers = (
        _schnetpack_shapes(arguments),
        arguments["features"],
        arguments["interactions"],
    )
    shapes |= _linear("representation.filter_net", arguments["radial_functions"], 3 * layers * f)
    for k in range(layers):
        name = f"representation.interactions.{k}.interatomic_context_net"
        shapes |= _linear(f"{name}.0", f, f) | _linear(f"{name}.1", f, 3 * f)
        name = f"representation.mixing.{k}"
        shapes |= _linear(f"{name}.mu_channel_mix", f, 2 * f, bias=False)
        name = f"{name}.intraatomic_context_net"
        shapes |= _linear(f"{name}.0", 2 * f, f) | _linear(f"{name}.1", f, 3 * f)
    return shapes


# --- TensorNet ------------------------------------------------------------------------------

TENSORNET = {"features": 64, "interactions": 2, "cutoff": 5.0, "radial_functions": 32, "scale": 1.0}


def _tensornet_shapes(arguments: Mapping[str, Any]) -> Shapes:
    require_positive(arguments, ("features", "cutoff", "radial_functions"))
    f, radial = arguments["features"], arguments["radial_functions"]
    half = max(1, f // 2)
    shapes: Shapes = {"embedding.element.weight": [N_ELEMENTS, f]}
    shapes |= _linear("embedding.centre", f, f) | _linear("embedding.neighbour", f, f, bias=False)
    shapes |= _linear("embedding.radial", radial, 3 * f) | _norm("embedding.norm", f)
    shapes |= _linear("embedding.scalars.0", f, 2 * f) | _linear(
        "embedding.scalars.1", 2 * f, 3 * f
    )
    shapes |= _partwise("embedding.mix", f)
    for k in range(arguments["interactions"]):
        name = f"layers.{k}"
        for layer, (inputs, outputs) in enumerate(pairwise((radial, f, 2 * f, 3 * f))):
            shapes |= _linear(f"{name}.radial.{layer}", inputs, outputs)
        shapes |= _partwise(f"{name}.before", f) | _partwise(f"{name}.after", f)
    shapes |= _norm("norm", 3 * f) | _linear("readout.0", 3 * f, f)
    return shapes | _linear("readout.1", f, half) | _linear("readout.2", half, 1)


def _partwise(name: str, features: int) -> Shapes:
    """One matrix for each irreducible part."""
    return {f"{name}.parts.{part}.weight": [features, features] for part in range(3)}


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "schnet",
            {**SCHNETPACK, "interactions": 6, "radial_functions": 50},
            ("interactions", "readout_layers"),
            N_EMBEDDED - 1,
            _schnet_shapes,
        ),
        Architecture(
            "painn", SCHNETPACK, ("interactions", "readout_layers"), N_EMBEDDED - 1, _painn_shapes
        ),
        Architecture("tensornet", TENSORNET, ("interactions",), N_ELEMENTS - 1, _tensornet_shapes),
    )
}
