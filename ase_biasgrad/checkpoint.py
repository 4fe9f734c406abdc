"""Checkpoints: one safetensors file with everything that makes a potential, and its history.

Loading runs no code from the file. The tensors are those of `Potential.state_dict()`; the file's
metadata holds JSON under the key `ase_biasgrad`, and under `sha256` a digest of the whole header
and of the bytes of all tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ase_biasgrad.architectures import ARCHITECTURES, Architecture, check_arguments
from ase_biasgrad.baseline import Baseline
from ase_biasgrad.bias_arrays import BiasArrays, EnergyZero, of_version_1
from ase_biasgrad.lazy import required
from ase_biasgrad.potential_arrays import NetworkArrays, PotentialArrays, bias_prefix, checked_name
from ase_biasgrad.tensor_file import check_digest, parsed_json, split_file, write_tensors
from ase_biasgrad.training_range import TrainingRange

if TYPE_CHECKING:
    from ase_biasgrad.potential import Potential

FORMAT = "ase-biasgrad checkpoint"
# 2: with a digest; 3: standard errors, references by name and standard errors; 4: with a baseline
FORMAT_VERSION = 4
WITHOUT_BASELINE = 3
UNITS = {"energy": "eV", "length": "Å", "stress": "eV/Å³"}
INTEGERS = ("compositions", "isolated")  # tensors of a bias
Shape = tuple[str, list[int]]  # of a stored tensor: its type (`F32`, `F64`, `I64`) and its sizes
ERRORS = ("covariance", "misfit", "errors")  # of a bias; NaN is not known, as before version 3
MAX_REFERENCES = 1000  # each takes 0.1 MB, before its tensors are looked at
MAX_BIAS = 1e12  # eV; no sum of atomic energies comes near


def _with_named_reference(metadata: dict[str, Any]) -> dict[str, Any]:
    others = {key: value for key, value in metadata.items() if key != "bias"}
    return {**others, "reference": "default", "references": {"default": metadata.get("bias")}}


# version → function that turns metadata of that version into the next one
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: dict,
    2: _with_named_reference,
    3: dict,
}


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or comes from a newer version.

    The message begins with the file, and names the key of the metadata or the tensor.
    """


@dataclass(frozen=True)
class _Recorded:
    """File with what it says of itself."""

    metadata: dict[str, Any]
    path: Path
    sha256: str

    @property
    def training(self) -> dict[str, Any]:
        """Provenance: data hash, split, versions, validation metrics, where recorded."""
        return self.metadata["training"]


@dataclass(frozen=True)
class StoredPotential(_Recorded):
    """A checkpoint as read, on NumPy arrays."""

    potential: PotentialArrays

    @property
    def training_range(self) -> TrainingRange | None:
        """Range of the structures seen in training, None where it was not recorded.

        Raises `CheckpointError` if the record is damaged.
        """
        if (record := self.training.get("range")) is None:
            return None
        try:
            return TrainingRange.from_record(record)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: training.range: {error}") from error


@dataclass(frozen=True)
class Checkpoint(_Recorded):
    """A potential as loaded: on the CPU, in evaluation mode, no parameter wanting gradients."""

    potential: Potential


def save_checkpoint(
    path: str | Path, potential: Potential, training: dict[str, Any] | None = None
) -> None:
    """Write a potential to `path` (`*.safetensors`), whole or not at all.

    `training` is recorded unchanged (JSON values).
    """
    from safetensors.numpy import save

    arrays = potential.arrays()
    network = arrays.network
    metadata = {
        "format": FORMAT,
        "version": WITHOUT_BASELINE if arrays.baseline is None else FORMAT_VERSION,
        "backbone": {"name": network.name, "arguments": network.arguments},
        "elements": list(arrays.elements),
        "cutoff": network.cutoff,
        "units": UNITS,
        "reference": arrays.reference,
        "references": {
            name: {"zero": bias.zero, "fit": bias.fit_report}
            for name, bias in arrays.biases.items()
        },
        "training": training or {},
    }
    if arrays.baseline is not None:
        metadata["baseline"] = arrays.baseline
    tensors = {key: np.asarray(array, order="C") for key, array in arrays.tensors().items()}
    write_tensors(path, save, tensors, metadata)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a potential as a module of torch; errors are those of `read_checkpoint`."""
    from ase_biasgrad.potential import Potential

    stored = read_checkpoint(path)
    try:
        potential = Potential.from_arrays(stored.potential)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(stored.metadata, stored.path, stored.sha256, potential)


def read_checkpoint(path: str | Path) -> StoredPotential:
    """Read a potential as NumPy arrays, without torch if its network runs without.

    Everything is compared before anything is built: the digest, every argument with its type and
    bounds, the shapes of the tensors with those that the arguments give. Raises `FileNotFoundError`
    if there is no such file, and `CheckpointError` if the file is not a checkpoint of ours, is
    damaged, or needs a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return parsed_checkpoint(path.read_bytes(), path)


def parsed_checkpoint(content: bytes, path: Path) -> StoredPotential:
    """Potential of the content of a file; errors are those of `read_checkpoint` and name `path`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header, data = split_file(content)
        metadata = _metadata(header, data)
        _check_network(metadata, _shapes(header))
        digest = hashlib.sha256(content).hexdigest()
        potential = _potential(metadata, load(content), digest)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return StoredPotential(metadata, path, digest, potential)


def _metadata(header: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Our part of the header in today's format, its digest and its keys checked."""
    stored = header.get("__metadata__")
    if not isinstance(stored, dict) or not isinstance(stored.get("ase_biasgrad"), str):
        raise ValueError("a safetensors file, but not a checkpoint of ase-biasgrad")
    try:
        metadata = parsed_json(stored["ase_biasgrad"])
    except ValueError as error:
        raise ValueError(f"the metadata is damaged: {error}") from error
    if metadata.get("format") == "ase-biasgrad committee":
        raise ValueError("holds a committee; this reads single potentials")
    if metadata.get("format") != FORMAT or type(metadata.get("version")) is not int:
        raise ValueError(f"the metadata is not that of an {FORMAT}")
    if metadata["version"] > FORMAT_VERSION:
        raise ValueError(
            f"version: {metadata['version']}, and this package reads up to {FORMAT_VERSION}; "
            "update ase-biasgrad"
        )
    check_digest(header, data, metadata["version"])
    while (version := metadata["version"]) < FORMAT_VERSION:
        if version not in UPGRADES:
            raise ValueError(f"version: {version} is one that nothing upgrades")
        metadata = {**UPGRADES[version](metadata), "version": version + 1}
    kinds = {"backbone": dict, "elements": list, "cutoff": float, "units": dict, "reference": str}
    _check_kinds("", metadata, {**kinds, "references": dict, "training": dict})
    _check_kinds("backbone.", metadata["backbone"], {"name": str, "arguments": dict})
    _check_references(metadata["reference"], metadata["references"])
    if metadata.get("baseline") is not None:
        Baseline.from_record(metadata["baseline"])
    if metadata["units"] != UNITS:
        raise ValueError(f"units: {metadata['units']}, must be {UNITS}")
    return metadata


def _check_references(reference: str, references: dict[str, Any]) -> None:
    if len(references) > MAX_REFERENCES:
        raise ValueError(f"references: {len(references)}, more than {MAX_REFERENCES}")
    _check_kinds("references.", references, {reference: dict, **dict.fromkeys(references, dict)})
    for name, stored in references.items():
        checked_name(name)
        _check_kinds(f"references.{name}.", stored, {"zero": str, "fit": dict})
        if stored["zero"] not in get_args(EnergyZero):
            raise ValueError(
                f"references.{name}.zero: {stored['zero'][:80]!r} is none of {EnergyZero}"
            )


def _check_kinds(where: str, values: dict[str, Any], kinds: dict[str, type]) -> None:
    for key, kind in kinds.items():
        if type(values.get(key)) is not kind:
            got = repr(values[key])[:80] if key in values else "missing"
            raise ValueError(f"{where}{key}: {got}, must be of type {kind.__name__}")


def _shapes(header: dict[str, Any]) -> dict[str, Shape]:
    """Type and shape of each tensor."""
    shapes = {}
    for name, entry in header.items():
        if name != "__metadata__":
            fields = entry if isinstance(entry, dict) else {}
            kind, shape = str(fields.get("dtype")), fields.get("shape")
            sized = isinstance(shape, list) and all(type(size) is int for size in shape)
            if kind not in ("F32", "F64", "I64") or not sized:
                raise ValueError(f"{name}: {str(entry)[:80]}, must be a tensor of F32, F64 or I64")
            assert isinstance(shape, list)  # by the check before
            shapes[name] = (kind, shape)
    return shapes


def _architecture(name: str) -> Architecture:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    required("torch", f"the network {name!r}")
    from ase_biasgrad.backbones import architecture_of

    return architecture_of(name)


def _check_network(metadata: dict[str, Any], shapes: dict[str, Shape]) -> None:
    """Compare arguments, elements and cutoff, then the stored tensors with what follows."""
    name, arguments = metadata["backbone"]["name"], metadata["backbone"]["arguments"]
    network = _architecture(name)
    if missing := sorted(set(network.defaults) - set(arguments)):
        raise ValueError(f"backbone.arguments.{missing[0]}: missing")
    for key in network.depths:  # each layer brings tensors of its own, and takes time to build
        if isinstance(arguments[key], int) and arguments[key] > len(shapes):
            raise ValueError(
                f"backbone.arguments.{key}: {arguments[key]} layers, and {len(shapes)} tensors"
            )
    try:
        check_arguments(name, network.defaults, arguments)
        expected = network.shapes(arguments)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"backbone.arguments: the network cannot be built: {error}") from error
    elements, largest = metadata["elements"], network.largest_number
    if not all(type(z) is int and 0 < z <= largest for z in elements):
        raise ValueError(f"elements: {str(elements)[:80]}, of 1 to {largest} in {name}")
    if sorted(set(elements)) != elements:
        raise ValueError(f"elements: {elements} are not sorted, each once")
    cutoff = float(arguments["cutoff"])
    if metadata["cutoff"] != cutoff:
        raise ValueError(f"cutoff: {metadata['cutoff']}, and the backbone's is {cutoff}")
    _compare_shapes(metadata, {f"backbone.{key}": s for key, s in expected.items()}, shapes)


def _compare_shapes(
    metadata: dict[str, Any], of_network: dict[str, list[int]], shapes: dict[str, Shape]
) -> None:
    """Raise `ValueError` naming the first tensor that is not one of the potential's."""
    kinds = {kind for key, (kind, _) in shapes.items() if key.startswith("backbone.")}
    width = "F64" if "F64" in kinds else "F32"
    expected = {key: (width, shape) for key, shape in of_network.items()}
    for prefix in _prefixes(metadata):
        rows = shapes.get(f"{prefix}compositions", ("", []))[1][:1]
        for name, shape in _bias_shapes(rows).items():
            if name not in ERRORS or f"{prefix}{name}" in shapes:
                expected[f"{prefix}{name}"] = ("I64" if name in INTEGERS else "F64", shape)
    if "bias.constant" in shapes:  # format version 1; upgraded when the tensors are there
        del expected["bias.residuals"], expected["bias.isolated"]
        expected["bias.constant"] = ("F64", [])
    for key in sorted({*expected, *shapes}):
        if key not in shapes or key not in expected:
            raise ValueError(f"{key}: {'missing' if key in expected else 'no tensor of this name'}")
        if shapes[key] != expected[key]:
            raise ValueError(f"{key}: {shapes[key]}, and by the arguments it is {expected[key]}")


def _prefixes(metadata: dict[str, Any]) -> dict[str, str]:
    """References by what the names of the tensors of their biases begin with, the own one first."""
    own = metadata["reference"]
    names = [own, *(name for name in metadata["references"] if name != own)]
    return {bias_prefix(name, own): name for name in names}


def _bias_shapes(rows: list[int]) -> dict[str, list[int]]:
    """Shapes of the tensors of a bias, some with a row for each of the compositions of its fit."""
    shapes = {name: list(array.shape) for name, array in BiasArrays.unfitted().tensors.items()}
    return {name: rows + s[1:] if s[:1] == [0] else s for name, s in shapes.items()}


def _potential(
    metadata: dict[str, Any], tensors: dict[str, np.ndarray], digest: str
) -> PotentialArrays:
    for name, array in tensors.items():
        _check_numbers(name, array, metadata["cutoff"])
    biases = {}
    for prefix, name in _prefixes(metadata).items():
        stored = metadata["references"][name]
        own = {key.removeprefix(prefix): a for key, a in tensors.items() if key.startswith(prefix)}
        if "constant" in own:
            own = of_version_1(own, stored["zero"])
        unknown = BiasArrays.unfitted().with_rows(own["compositions"])
        biases[name] = replace(unknown, zero=stored["zero"], fit_report=stored["fit"], **own)
    stored, prefix = metadata["backbone"], "backbone."
    weights = {k.removeprefix(prefix): a for k, a in tensors.items() if k.startswith(prefix)}
    network = NetworkArrays(
        stored["name"], stored["arguments"], weights, metadata["cutoff"], digest
    )
    elements, baseline = tuple(metadata["elements"]), metadata.get("baseline")
    return PotentialArrays(network, elements, metadata["reference"], biases, baseline)


def _check_numbers(name: str, array: np.ndarray, cutoff: float) -> None:
    """Raise `ValueError` on numbers that a tensor of this name cannot hold."""
    of_bias = not name.startswith("backbone.")
    may_be_nan = name.rpartition(".")[2] in ERRORS and of_bias
    if not (np.isfinite(array) | (may_be_nan & np.isnan(array))).all():
        raise ValueError(f"{name}: holds NaN or infinity")
    if of_bias and (np.abs(array) > MAX_BIAS).any():
        raise ValueError(f"{name}: beyond {MAX_BIAS:g} eV")
    if name.endswith(".compositions") and (array < 0).any():
        raise ValueError(f"{name}: negative numbers of atoms")
    if name.endswith((".misfit", ".errors")) and may_be_nan and (array < 0).any():
        raise ValueError(f"{name}: negative standard errors")
    if name.endswith(".isolated") and ((array < 0) | (array > 2)).any():
        raise ValueError(f"{name}: kinds of rows are 0, 1 and 2")
    if name.endswith(".cutoff") and not math.isclose(array.item(), cutoff, rel_tol=1e-6):
        raise ValueError(f"{name}: {array.item()}, and the cutoff is {cutoff}")
