"""Readouts of one potential: last layers beside its own, in engines, files and the calculator."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from conftest import EXTENSIVE, copper, ethanol, small_potential, structure_of
from safetensors.numpy import load_file

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calculators.engines.select import select_engine
from ase_biasgrad.calibration import Calibration, Scale, atom_spread
from ase_biasgrad.checkpoint import CheckpointError, save_checkpoint
from ase_biasgrad.committee_file import read_committee, save_committee
from ase_biasgrad.graph import graph_from_atoms
from ase_biasgrad.potential import Potential, readout_derivatives
from ase_biasgrad.readouts import Readouts, last_layer
from ase_biasgrad.tensor_file import write_tensors

SCALES = Calibration({0: Scale(2.0, 4.0)}, Scale(3.0, 6.0), 20)


def with_last_layer(potential: Potential, row: np.ndarray) -> Potential:
    """The potential whose last layer has these weights and no bias."""
    arrays = potential.arrays()
    name, _ = last_layer(arrays.network)
    tensors = dict(arrays.network.tensors)
    tensors[f"{name}.weight"] = row[None].astype(tensors[f"{name}.weight"].dtype)
    tensors[f"{name}.bias"] = np.zeros_like(tensors[f"{name}.bias"])
    return Potential.from_arrays(replace(arrays, network=replace(arrays.network, tensors=tensors)))


def drawn(potential: Potential, count: int = 3) -> Readouts:
    width, random = last_layer(potential.arrays().network)[1], np.random.default_rng(1)
    elements = (1, 6, 8, 29)
    return Readouts(
        random.normal(size=(count, width)), elements, random.normal(size=(count, len(elements)))
    )


@pytest.mark.parametrize("atoms", [ethanol(), copper((2, 2, 2))], ids=["molecule", "crystal"])
@pytest.mark.parametrize("name", EXTENSIVE)
def test_engines_evaluate_other_last_layers(name, atoms):
    potential = small_potential(name)
    potential.backbone.double()
    structure, readouts = structure_of(atoms), drawn(potential)
    for kind in ("auto", "reference"):
        engine = select_engine([potential.arrays().network], "cpu", "float64", kind, 1.0)
        alone = engine.evaluate(structure, True)
        found = engine.readouts(structure, readouts.weights)
        again = engine.evaluate(structure, True)
        assert np.array_equal(alone.forces, again.forces)
        assert np.array_equal(alone.energies, again.energies)
        graph = graph_from_atoms(atoms, potential.cutoff)
        for k, row in enumerate(readouts.weights):
            expected = with_last_layer(potential, row).evaluate(graph, ("energies", "forces"))
            bias = potential.bias.per_atom(graph.numbers, graph.batch, 1)
            scale = float(expected["forces"].abs().max()) + 1
            tolerance = scale * (1e-12 if engine.name == "reference" else 2e-5)
            np.testing.assert_allclose(
                found.energies[k], expected["energies"] - bias, atol=tolerance
            )
            np.testing.assert_allclose(found.forces[k], expected["forces"], atol=tolerance)


def test_threads_share_the_passes_of_readouts():
    potential, atoms = small_potential("tensornet"), copper((4, 4, 4))
    atoms.rattle(0.1, seed=0)
    structure, weights = structure_of(atoms), drawn(potential).weights
    engine = select_engine([potential.arrays().network], "cpu", "float32", "auto", 1.0)
    one = engine.readouts(structure, weights)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = engine.fresh().readouts(structure, weights)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(one.forces, two.forces)
    assert np.array_equal(one.energies, two.energies)


def test_forces_are_derivatives_of_the_energies():
    potential, atoms = small_potential("painn"), ethanol()
    potential.backbone.double()
    weights = torch.from_numpy(drawn(potential).weights)

    def energies(moved):
        graph = graph_from_atoms(moved, potential.cutoff)
        return readout_derivatives(potential.backbone, graph, weights)

    forces, step = energies(atoms)[1][:, 4, 1], 1e-4
    ends = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[4, 1] += sign * step
        ends.append(energies(moved)[0].sum(dim=1))
    np.testing.assert_allclose(forces, -(ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.fixture
def stored(tmp_path):
    potential = small_potential("schnet")
    save_checkpoint(tmp_path / "p.safetensors", potential)
    readouts = drawn(potential, 4)
    save_committee(tmp_path / "c.safetensors", [tmp_path / "p.safetensors"], SCALES, {}, readouts)
    return tmp_path / "c.safetensors", potential, readouts


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.EnergyZeroWarning")
def test_the_calculator_gives_spreads_where_they_are_asked_for(stored):
    path, potential, readouts = stored
    atoms = ethanol()
    calc = BiasGradCalculator(path, device="cpu", dtype="float64")
    plain = BiasGradCalculator(potential, device="cpu", dtype="float64")
    with pytest.raises(PropertyNotImplementedError):
        plain.get_property("forces_std", atoms)
    energy = calc.get_potential_energy(atoms)
    assert "forces_std" not in calc.results
    std = calc.get_property("forces_std", atoms)
    assert calc.results["energy"] == energy == plain.get_potential_energy(atoms)
    assert np.array_equal(calc.results["forces"], plain.get_forces(atoms))
    members = [with_last_layer(potential, row) for row in readouts.weights]
    graph = graph_from_atoms(atoms, potential.cutoff)
    found = [member.evaluate(graph, ("energies", "forces")) for member in members]
    changes = np.stack([f["forces"].numpy() for f in found])
    raw = np.sqrt(np.mean(changes**2, axis=0))
    np.testing.assert_allclose(std, 2 * raw, rtol=1e-3, atol=1e-5)
    half_widths = calc.results["forces_interval"]
    np.testing.assert_allclose(half_widths, np.tile(4 * atom_spread(std / 2), (3, 1)).T)
    means = readouts.means[:, np.searchsorted(readouts.elements, atoms.numbers)]
    energies = np.stack([f["energies"].numpy() for f in found]) - means
    expected = 3 * np.sqrt(np.mean(energies.sum(axis=1) ** 2))
    assert calc.results["energy_std"] == pytest.approx(expected, rel=1e-3)
    assert calc.results["energy_interval"] == pytest.approx(2 * calc.results["energy_std"])
    atoms.rattle(0.01)
    calc.get_forces(atoms)
    assert "forces_std" not in calc.results
    both = BiasGradCalculator([path, path], device="cpu")  # another committee, without readouts
    both.get_forces(atoms)
    assert both.results["energy_std"] == 0


def test_readouts_are_read_as_they_were_written(stored):
    path, _, readouts = stored
    found = read_committee(path)
    assert found.calibration == SCALES
    assert found.metadata["version"] == 2
    assert found.readouts.elements == readouts.elements
    assert np.array_equal(found.readouts.weights, readouts.weights)
    assert np.array_equal(found.readouts.means, readouts.means)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.zeros((4, 5))}, r"readouts\.weights: float64 \(4, 5\), must be"),
        ({"weights": np.full((4, 8), np.nan)}, r"readouts\.weights: holds NaN"),
        ({"weights": np.zeros((4, 8), np.float32)}, r"readouts\.weights: float32"),
        ({"means": np.zeros((3, 4))}, r"4 with weights and 3 with means"),
        ({"elements": np.array([8, 6, 1, 29])}, r"readouts\.elements"),
        ({"elements": np.array([1, 6, 8, 9])}, r"readouts\.elements: lack \[29\]"),
        ({"elements": None}, r"readouts\.elements: missing"),
        ({"more": np.zeros(1)}, r"readouts\.more: missing, or no tensor"),
    ],
)
def test_readouts_that_do_not_fit_are_refused(stored, change, message):
    from safetensors.numpy import save

    path, *_ = stored
    metadata = read_committee(path).metadata
    tensors = load_file(path)
    for name, array in change.items():
        if array is None:
            del tensors[f"readouts.{name}"]
        else:
            tensors[f"readouts.{name}"] = array
    write_tensors(path, save, tensors, metadata)
    with pytest.raises(CheckpointError, match=rf"c\.safetensors: .*{message}"):
        read_committee(path)


def test_several_members_have_no_readouts(stored, tmp_path):
    _, _, readouts = stored
    member = tmp_path / "p.safetensors"
    for members, own in (([], readouts), ([member, member], readouts), ([member], None)):
        with pytest.raises(ValueError, match="two members or more, or one with readouts"):
            save_committee(tmp_path / "d.safetensors", members, SCALES, {}, own)
    assert not (tmp_path / "d.safetensors").exists()


def test_networks_without_a_last_layer_have_none(tmp_path):
    potential = small_potential("atomgraph")
    with pytest.raises(ValueError, match="atomgraph has no last layer"):
        last_layer(potential.arrays().network)
