"""Checkpoints: what goes in comes out, and nothing else comes in."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BACKBONES, SMALL, ethanol, small_potential
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from test_bias import counts_of

from ase_biasgrad import checkpoint as checkpoints
from ase_biasgrad.bias import Bias
from ase_biasgrad.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ase_biasgrad.graph import graph_from_atoms
from ase_biasgrad.potential import freeze_energy_shifts
from ase_biasgrad.tensor_file import file_digest, split_file

VERSION_1 = Path(__file__).parents[1] / "data" / "checkpoint_version_1.safetensors"
# written by version 2 of the format
EXAMPLE = Path(__file__).parents[2] / "examples" / "potentials" / "ethanol_rmd17.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BACKBONES)
def test_round_trip_is_exact(tmp_path, name, dtype):
    potential = small_potential(name, **SMALL[name].other).to(dtype)
    counts = counts_of({1: 2}, {6: 2, 1: 6, 8: 1}, {1: 2, 8: 1}, {6: 1, 1: 4})
    potential.bias.fit(np.array([-4e5, -3e5, 1e3, 7.0]), counts, "median")
    save_checkpoint(tmp_path / "p.safetensors", potential, {"note": "α"})
    loaded = load_checkpoint(tmp_path / "p.safetensors")
    graph = graph_from_atoms(ethanol(), potential.cutoff)
    one, two = (p.evaluate(graph, ["energy", "forces"]) for p in (potential, loaded.potential))
    assert torch.equal(one["energy"], two["energy"])
    assert torch.equal(one["forces"], two["forces"])
    assert loaded.training == {"note": "α"}
    assert loaded.potential.bias.zero == "per-composition"
    assert loaded.potential.elements == potential.elements
    assert len(loaded.sha256) == 64


def with_references(**levels: float):
    """A potential with a reference for each name, at a level of energies (eV per atom)."""
    potential = small_potential()
    for name, level in levels.items():
        bias = potential.bias if name == "default" else Bias()
        bias.fit(np.array([9 * level]), counts_of({6: 2, 1: 6, 8: 1}), "mean")
        bias.fit_report["note"] = name
        if name != "default":
            potential.add_reference(name, bias)
    return potential


def test_references_are_kept_by_name(tmp_path):
    potential = with_references(default=-1.0, r2scan=-2.0, keys=-3.0)
    save_checkpoint(tmp_path / "p.safetensors", potential)
    loaded = load_checkpoint(tmp_path / "p.safetensors")
    biases = loaded.potential.biases()
    assert list(biases) == ["default", "r2scan", "keys"]
    assert loaded.metadata["reference"] == "default"
    counts = counts_of({6: 2, 1: 6, 8: 1})[0]
    for (name, bias), level in zip(biases.items(), (-1.0, -2.0, -3.0), strict=True):
        assert bias.fit_report["note"] == name
        assert bias.zero == "scalar"
        assert bias.knows(counts)
        assert float(bias.per_element.numpy() @ counts) == pytest.approx(9 * level, rel=1e-12)
    assert loaded.potential.bias_of("keys") is biases["keys"]
    assert loaded.potential.bias_of() is loaded.potential.bias
    with pytest.raises(ValueError, match="'scan' is unknown; there are default, r2scan, keys"):
        loaded.potential.bias_of("scan")


@pytest.mark.parametrize("name", ["", "a.b", "a b", "../x", "x" * 99 + "!"])
def test_names_that_cannot_be_stored_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be a name"):
        small_potential().add_reference(name, Bias())
    path = tmp_path / "p.safetensors"
    save_checkpoint(path, with_references(default=0.0, pbe=1.0))

    def edit(metadata):
        metadata["references"][name] = metadata["references"].pop("pbe")
        return metadata

    rewritten(path, edit, digest=True)
    with pytest.raises(CheckpointError, match=r"p\.safetensors: .*cannot be a name"):
        load_checkpoint(path)


def test_every_reference_is_checked(tmp_path):
    path = tmp_path / "p.safetensors"
    save_checkpoint(path, with_references(default=0.0, pbe=1.0))
    good = path.read_bytes()
    for tensors, message in (
        ({"references.pbe.per_element": torch.full((119,), 1e38).double()}, "per_element: beyond"),
        ({"references.pbe.per_element": torch.zeros(3).double()}, "per_element: .*119"),
        ({"references.scan.per_element": torch.zeros(119).double()}, "no tensor of this name"),
        ({"references.pbe.compositions": -torch.ones(1, 119).long()}, "negative numbers"),
        ({"references.pbe.offsets": torch.full((1,), math.nan).double()}, "holds NaN"),
        ({"references.pbe.errors": -torch.ones(1).double()}, "errors: negative standard errors"),
        ({"references.pbe.isolated": torch.full((1,), 3)}, "isolated: kinds of rows"),
    ):
        path.write_bytes(good)
        rewritten(path, tensors=tensors, digest=True)
        with pytest.raises(CheckpointError, match=rf"p\.safetensors: references\..*{message}"):
            load_checkpoint(path)
    for edited_references, message in (
        ({"pbe": {"zero": "scalar", "fit": {}}}, "references.default: missing"),
        ({"default": {"zero": "x", "fit": {}}}, "references.default.zero: 'x' is none of"),
        ({"default": {"zero": "none", "fit": 1}}, "references.default.fit: 1, must be"),
        (dict.fromkeys(map(str, range(10_000))), "references: 10000, more than 1000"),
    ):
        path.write_bytes(good)
        rewritten(path, lambda m, r=edited_references: {**m, "references": r}, digest=True)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)


def test_files_of_version_2_have_one_reference_of_no_known_error():
    loaded = load_checkpoint(EXAMPLE)
    assert loaded.metadata["version"] == checkpoints.FORMAT_VERSION
    assert list(loaded.potential.biases()) == ["default"]
    assert loaded.metadata["references"]["default"]["fit"]["frames"] == 950
    assert loaded.potential.bias.knows(counts_of({6: 2, 1: 6, 8: 1})[0])


def test_a_shift_of_the_energy_goes_into_every_reference():
    potential = with_references(default=-1.0, pbe=-2.0)
    potential.backbone.readout[-1].bias.data += 0.25
    graph = graph_from_atoms(ethanol(), 4.0)
    own, before = potential.bias, {}
    for name, bias in potential.biases().items():
        potential.bias = bias
        before[name] = float(potential(graph)[0])
    potential.bias = own
    freeze_energy_shifts(potential)
    for name, bias in potential.biases().items():
        potential.bias = bias
        assert float(potential(graph)[0]) == pytest.approx(before[name], abs=1e-5)


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_float64_includes_the_radial_functions(tmp_path, name):
    potential = small_potential(name, cutoff=4.7).double()
    save_checkpoint(tmp_path / "p.safetensors", potential)
    loaded = load_checkpoint(tmp_path / "p.safetensors").potential
    assert {t.dtype for t in loaded.backbone.state_dict().values()} == {torch.float64}
    graph = graph_from_atoms(ethanol(), 4.7)
    assert torch.equal(potential(graph)[0], loaded(graph)[0])


def test_damaged_foreign_and_newer_files_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, small_potential())
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: sha256"):
        load_checkpoint(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of ase-biasgrad"):
        load_checkpoint(path)
    metadata = {"format": checkpoints.FORMAT, "version": checkpoints.FORMAT_VERSION + 1}
    save_file({"x": torch.zeros(1)}, path, {"ase_biasgrad": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="update ase-biasgrad"):
        load_checkpoint(path)


def test_files_of_version_1_have_no_digest_and_are_read():
    loaded = load_checkpoint(VERSION_1)
    assert loaded.metadata["version"] == checkpoints.FORMAT_VERSION
    assert loaded.training == {"note": "version 1"}
    graph = graph_from_atoms(ethanol(), loaded.potential.cutoff)
    values = loaded.potential.evaluate(graph, ["energy", "forces"])
    assert float(values["energy"]) == pytest.approx(-100.04792542615905, abs=1e-6)
    np.testing.assert_allclose(
        values["forces"][0], [0.00520646, -0.00888114, 0.00113592], atol=1e-6
    )


def test_loading_draws_no_random_numbers_and_ignores_the_default_dtype(tmp_path):
    potential = small_potential("graph_convolution")
    save_checkpoint(tmp_path / "p.safetensors", potential)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            loaded = load_checkpoint(tmp_path / "p.safetensors").potential
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    graph = graph_from_atoms(ethanol(), 4.0)
    one, two = (p.evaluate(graph, ["forces"])["forces"] for p in (potential, loaded))
    assert torch.equal(one, two)


@pytest.mark.parametrize("stored", ["{", "[]", '{"format": "ase-biasgrad checkpoint"}'])
def test_damaged_metadata_is_an_error_that_names_the_file(tmp_path, stored):
    path = tmp_path / "p.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"ase_biasgrad": stored})
    with pytest.raises(CheckpointError, match=r"p\.safetensors: the metadata"):
        load_checkpoint(path)


def test_a_version_that_nothing_upgrades_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    metadata = {"format": checkpoints.FORMAT, "version": 0}
    save_file({"x": torch.zeros(1)}, path, {"ase_biasgrad": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="version: 0 is one that nothing upgrades"):
        load_checkpoint(path)


def rewritten(path, edit=None, tensors=None, digest=False) -> None:
    """Write a checkpoint again with other metadata or tensors, without its digest or with one."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["ase_biasgrad"])
    tensors = load_file(path) | (tensors or {})
    if edit is not None:
        metadata = edit(metadata)
    if not digest:  # as version 1 was
        metadata = {**metadata, "version": 1}
        if isinstance(references := metadata.get("references"), dict):
            metadata["bias"] = references.get("default")
    stored = {"ase_biasgrad": json.dumps(metadata)}
    if digest:
        stored["sha256"] = file_digest(*split_file(save(tensors, stored)))
    save_file(tensors, path, stored)


def test_one_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    save_checkpoint(path, small_potential())
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1  # the last bit of a weight or of a composition
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"p\.safetensors: sha256: the content is not"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("interactions", 10**6, "interactions: 1000000 layers, and [0-9]+ tensors"),
        ("readout_layers", 10**6, "readout_layers: 1000000 layers"),
        ("interactions", 3, "interactions.2.*: missing"),
        ("features", 8, "by the arguments it is"),
        ("features", 10**6, "from 0 to 100000"),
        ("features", 10**400, "from 0 to 100000"),
        ("features", True, "features=True must be like 128"),
        ("cutoff", math.inf, "cutoff=inf must be"),
        ("cutoff", 5.5, "cutoff: 4.0, and the backbone's is 5.5"),
        ("scale", None, "scale: missing"),
        ("scale", math.nan, "scale=nan must be"),
        ("radial_basis", 3, "radial_basis=3 must be like 'gaussian'"),
    ],
)
def test_arguments_are_compared_before_anything_is_built(tmp_path, key, value, message):
    path = tmp_path / "p.safetensors"
    save_checkpoint(path, small_potential())

    def edit(metadata):
        arguments = metadata["backbone"]["arguments"]
        arguments[key] = value
        metadata["backbone"]["arguments"] = {k: v for k, v in arguments.items() if v is not None}
        return metadata

    rewritten(path, edit)
    with pytest.raises(CheckpointError, match=rf"p\.safetensors: .*{message}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"bias.per_element": torch.full((119,), 1e38).double()}, "bias.per_element: beyond"),
        ({"bias.per_element": torch.zeros(119).long()}, "bias.per_element: .*'I64'"),
        ({"bias.per_element": torch.full((119,), math.nan).double()}, "per_element: holds NaN"),
        ({"bias.compositions": torch.zeros(2, 119, dtype=torch.int64)}, "bias.[a-z]+: "),
        ({"bias.compositions": torch.zeros(0, dtype=torch.int64)}, "bias.compositions: "),
        ({"x": torch.zeros(1)}, "x: no tensor of this name"),
        ({"backbone.readout.0.weight": torch.zeros(8, 16).double()}, "'F32'.*'F64'|'F64'.*'F32'"),
        ({"backbone.representation.cutoff_fn.cutoff": torch.tensor([9.0])}, "the cutoff is 4.0"),
    ],
)
def test_tensors_that_do_not_fit_the_arguments_are_refused(tmp_path, tensors, message):
    path = tmp_path / "p.safetensors"
    save_checkpoint(path, small_potential())
    rewritten(path, tensors=tensors)
    with pytest.raises(CheckpointError, match=rf"p\.safetensors: .*({message})"):
        load_checkpoint(path)


def loaded_or_refused(path):
    """Read a checkpoint; None if it is refused with our message."""
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    return None


def mutants(content: bytes, count: int, random: np.random.Generator):
    """Copies with flipped bits, cut off, with lengths that lie, or with bytes put in."""
    length = int.from_bytes(content[:8], "little")
    for k in range(count):
        other = bytearray(content)
        place = int(random.integers(length + 8 if k % 2 else len(content)))
        if k % 5 == 0:
            del other[place : place + int(random.integers(1, 1 + len(content) - place))]
        elif k % 5 == 1:
            other[:8] = int(random.integers(2**62) >> random.integers(62)).to_bytes(8, "little")
        elif k % 5 == 2:
            other[place:place] = random.bytes(int(random.integers(1, 20)))
        else:
            other[place] ^= 1 << int(random.integers(8))
        yield bytes(other)


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_right(tmp_path, count):
    path, old = tmp_path / "p.safetensors", tmp_path / "old.safetensors"
    save_checkpoint(path, load_checkpoint(VERSION_1).potential, {"note": "α"})
    right = load_checkpoint(path)
    state, refused = right.potential.state_dict(), 0
    random = np.random.default_rng(count)
    for content in mutants(path.read_bytes(), count, random):
        path.write_bytes(content)
        if (loaded := loaded_or_refused(path)) is None:
            refused += 1
            continue
        assert loaded.metadata == right.metadata
        assert all(torch.equal(state[k], v) for k, v in loaded.potential.state_dict().items())
    assert refused > 0.9 * count
    for content in mutants(VERSION_1.read_bytes(), count, random):
        old.write_bytes(content)
        loaded_or_refused(old)


ODD = (
    *(None, True, -1, 0, 10**6, 10**400, math.nan, math.inf, 1e300, "", "x" * 99, [], {}, [[]]),
    *([10**9], ["group"] * 10**5, {"a": 1}),
)


def edited(value, odd):
    """Copies of nested metadata with each value, in turn, replaced by `odd` or left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(value, dict):
            yield {k: v for k, v in value.items() if k != key}
        for other in (odd, *(edited(inner, odd) if isinstance(inner, (dict, list)) else ())):
            copy = value.copy()
            copy[key] = other
            yield copy


@pytest.mark.parametrize("name", ["atomgraph", "tensornet", "schnet"])
@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("values", [ODD[3:6], pytest.param(ODD, marks=pytest.mark.slow)])
def test_edited_metadata_is_refused_or_gives_a_potential(tmp_path, name, digest, values):
    path = tmp_path / "p.safetensors"
    save_checkpoint(path, small_potential(name), {})
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["ase_biasgrad"])
    graph = graph_from_atoms(ethanol(), 4.0)
    good = path.read_bytes()
    refused = 0
    for one in values:
        for changed in edited(metadata, one):
            path.write_bytes(good)
            rewritten(path, lambda _, changed=changed: changed, digest=digest)
            if (loaded := loaded_or_refused(path)) is None:
                refused += 1
            else:
                loaded.potential(graph)
    assert refused > 20


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**6,
        '{"a":' * 10**5,
        '{"format": ' + "[" * 65 + "]" * 65 + "}",
        '{"format": 1, "format": 2}',
        "9" * 10**5,
        "\\ud800",
        '{"version": 1e999}',
    ],
)
def test_json_that_no_parser_likes(tmp_path, text):
    path = tmp_path / "p.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"ase_biasgrad": text})
    with pytest.raises(CheckpointError, match=r"p\.safetensors: the metadata"):
        load_checkpoint(path)
    length = len(text).to_bytes(8, "little")
    path.write_bytes(length + text.encode())  # as the header itself
    with pytest.raises(CheckpointError, match=r"p\.safetensors: "):
        load_checkpoint(path)
