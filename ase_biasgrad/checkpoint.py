"""Checkpoints: one safetensors file with everything that makes a potential, and its history.

Loading runs no code from the file. The tensors are those of `Potential.state_dict()`; the file's
metadata holds JSON under the key `ase_biasgrad`, and under `sha256` a digest of the whole header
and of the bytes of all tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from ase_biasgrad.backbones import backbone_arguments, backbone_class, build_backbone
from ase_biasgrad.bias import Bias, EnergyZero
from ase_biasgrad.files import whole_file
from ase_biasgrad.potential import Potential
from ase_biasgrad.tensor_file import check_digest, parsed_json, split_file, with_digest

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "ase-biasgrad checkpoint"
FORMAT_VERSION = 3  # 2: with a digest; 3: standard errors, references by name and standard errors
UNITS = {"energy": "eV", "length": "Å", "stress": "eV/Å³"}
INTEGERS = ("compositions", "isolated")  # tensors of a bias
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
}


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or comes from a newer version.

    The message begins with the file, and names the key of the metadata or the tensor.
    """


@dataclass(frozen=True)
class Checkpoint:
    """A potential as loaded: on the CPU, in evaluation mode, no parameter wanting gradients."""

    potential: Potential
    metadata: dict[str, Any]
    path: Path
    sha256: str

    @property
    def training(self) -> dict[str, Any]:
        """Provenance: data hash, split, versions, validation metrics, where recorded."""
        return self.metadata["training"]


def save_checkpoint(
    path: str | Path, potential: Potential, training: dict[str, Any] | None = None
) -> None:
    """Write a potential to `path` (`*.safetensors`), whole or not at all.

    `training` is recorded unchanged (JSON values).
    """
    from safetensors.torch import save

    metadata = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "backbone": {"name": potential.backbone.name, "arguments": potential.backbone.arguments},
        "elements": list(potential.elements),
        "cutoff": potential.cutoff,
        "units": UNITS,
        "reference": potential.reference,
        "references": {
            name: {"zero": bias.zero, "fit": bias.fit_report}
            for name, bias in potential.biases().items()
        },
        "training": training or {},
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in potential.state_dict().items()}
    stored = {"ase_biasgrad": json.dumps(metadata)}
    with whole_file(path) as temporary:
        temporary.write_bytes(with_digest(save, tensors, stored))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a potential.

    Everything is compared before anything is built: the digest, every argument with its type and
    bounds, the shapes of the tensors with those that the arguments give.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If the file is not a checkpoint of ours, is damaged, or needs a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    content = path.read_bytes()
    try:
        header, data = split_file(content)
        metadata = _metadata(header, data)
        with torch.inference_mode(False):  # what is loaded in it can never be differentiated
            potential = _empty_potential(metadata, _shapes(header))
            _fill(potential, metadata, load(content))
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(potential, metadata, path, hashlib.sha256(content).hexdigest())


def _metadata(header: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Our part of the header in today's format, its digest and its keys checked."""
    stored = header.get("__metadata__")
    if not isinstance(stored, dict) or not isinstance(stored.get("ase_biasgrad"), str):
        raise ValueError("a safetensors file, but not a checkpoint of ase-biasgrad")
    try:
        metadata = parsed_json(stored["ase_biasgrad"])
    except ValueError as error:
        raise ValueError(f"the metadata is damaged: {error}") from error
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
    if metadata["units"] != UNITS:
        raise ValueError(f"units: {metadata['units']}, must be {UNITS}")
    return metadata


def _check_references(reference: str, references: dict[str, Any]) -> None:
    if len(references) > MAX_REFERENCES:
        raise ValueError(f"references: {len(references)}, more than {MAX_REFERENCES}")
    _check_kinds("references.", references, {reference: dict, **dict.fromkeys(references, dict)})
    for name, stored in references.items():
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


def _shapes(header: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """Type (`F32`, `F64`, `I64`) and shape of each tensor."""
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


def _empty_potential(metadata: dict[str, Any], shapes: dict[str, Any]) -> Potential:
    """The potential without memory for its tensors, whose types and shapes are those stored."""
    name, arguments = metadata["backbone"]["name"], metadata["backbone"]["arguments"]
    cls = backbone_class(name)
    if missing := sorted(set(backbone_arguments(cls)) - set(arguments)):
        raise ValueError(f"backbone.arguments.{missing[0]}: missing")
    for key in cls.depths:  # each layer brings tensors of its own, and takes time to build
        if isinstance(arguments[key], int) and arguments[key] > len(shapes):
            raise ValueError(
                f"backbone.arguments.{key}: {arguments[key]} layers, and {len(shapes)} tensors"
            )
    try:
        with torch.device("meta"):
            backbone = build_backbone(name, arguments)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"backbone.arguments: the network cannot be built: {error}") from error
    elements = metadata["elements"]
    if not all(type(z) is int and 0 < z <= cls.largest_number for z in elements):
        raise ValueError(f"elements: {str(elements)[:80]}, of 1 to {cls.largest_number} in {name}")
    potential = Potential(backbone, Bias(), elements, metadata["reference"])
    if list(potential.elements) != elements:
        raise ValueError(f"elements: {elements} are not sorted, each once")
    if metadata["cutoff"] != backbone.cutoff:
        raise ValueError(f"cutoff: {metadata['cutoff']}, and the backbone's is {backbone.cutoff}")
    for name in metadata["references"]:
        if name != potential.reference:
            potential.add_reference(name, Bias())
    _compare_shapes(potential, shapes)
    return potential


def _compare_shapes(potential: Potential, shapes: dict[str, tuple[str, list[int]]]) -> None:
    """Raise `ValueError` naming the first tensor that is not one of the potential's."""
    kinds = {kind for key, (kind, _) in shapes.items() if key.startswith("backbone.")}
    width = "F64" if "F64" in kinds else "F32"
    expected = {key: (width, list(t.shape)) for key, t in potential.state_dict().items()}
    for prefix, bias in _prefixed_biases(potential).items():
        fitted = shapes.get(f"{prefix}compositions", ("", []))[1][:1]
        for name, shape in _bias_shapes(bias, fitted).items():
            expected[f"{prefix}{name}"] = ("I64" if name in INTEGERS else "F64", shape)
            if name in ERRORS and f"{prefix}{name}" not in shapes:
                del expected[f"{prefix}{name}"]
    if "bias.constant" in shapes:  # format version 1; upgraded when the tensors are there
        del expected["bias.residuals"], expected["bias.isolated"]
        expected["bias.constant"] = ("F64", [])
    for key in sorted({*expected, *shapes}):
        if key not in shapes or key not in expected:
            raise ValueError(f"{key}: {'missing' if key in expected else 'no tensor of this name'}")
        if shapes[key] != expected[key]:
            raise ValueError(f"{key}: {shapes[key]}, and by the arguments it is {expected[key]}")


def _prefixed_biases(potential: Potential) -> dict[str, Bias]:
    """Biases by what the names of their tensors begin with."""
    own = potential.reference
    return {
        "bias." if name == own else f"references.{name}.": bias
        for name, bias in potential.biases().items()
    }


def _bias_shapes(unfitted: Bias, fitted: list[int]) -> dict[str, list[int]]:
    """Shapes of the tensors of a bias, some with a row for each of the compositions of its fit."""
    shapes = {name: list(tensor.shape) for name, tensor in unfitted.state_dict().items()}
    return {name: fitted + s[1:] if s[:1] == [0] else s for name, s in shapes.items()}


def _fill(potential: Potential, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        may_be_nan = name.rpartition(".")[2] in ERRORS and not name.startswith("backbone.")
        if not bool((torch.isfinite(tensor) | (may_be_nan & tensor.isnan())).all()):
            raise ValueError(f"{name}: holds NaN or infinity")
        if not name.startswith("backbone.") and bool((tensor.abs() > MAX_BIAS).any()):
            raise ValueError(f"{name}: beyond {MAX_BIAS:g} eV")
        if name.endswith(".compositions") and bool((tensor < 0).any()):
            raise ValueError(f"{name}: negative numbers of atoms")
        if name.endswith((".misfit", ".errors")) and may_be_nan and bool((tensor < 0).any()):
            raise ValueError(f"{name}: negative standard errors")
        if name.endswith(".isolated") and bool(((tensor < 0) | (tensor > 2)).any()):
            raise ValueError(f"{name}: kinds of rows are 0, 1 and 2")
        if name.endswith(".cutoff") and not math.isclose(tensor, potential.cutoff, rel_tol=1e-6):
            raise ValueError(f"{name}: {float(tensor)}, and the cutoff is {potential.cutoff}")
    for (name, bias), prefix in zip(
        potential.biases().items(), _prefixed_biases(potential), strict=True
    ):
        stored = metadata["references"][name]
        bias.zero, bias.fit_report = stored["zero"], stored["fit"]
        tensors = bias.upgraded(tensors, prefix)
        rows = [len(tensors[f"{prefix}compositions"])]
        for key, shape in _bias_shapes(bias, rows).items():
            if key in ERRORS:
                tensors.setdefault(f"{prefix}{key}", torch.full(shape, torch.nan).double())
            setattr(bias, key, tensors[f"{prefix}{key}"])
    potential.load_state_dict(tensors, assign=True)
    potential.requires_grad_(False).eval()
