"""SchNet and PaiNN are SchNetPack's: the same energies, forces and initial weights."""

import pytest
import torch
from conftest import copper, ethanol, small_potential

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.convert import schnetpack_model
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import Potential


@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
@pytest.mark.parametrize("envelope", ["cosine", "mollifier"])
@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_energies_and_forces_are_those_of_schnetpack(name, basis, envelope):
    arguments = {"radial_basis": basis, "cutoff_function": envelope, "readout_layers": 3}
    potential = small_potential(name, **arguments).double()
    graph = collate([graph_from_atoms(atoms, 4.0) for atoms in (ethanol(), copper())])
    ours = potential.evaluate(graph, ["energy", "forces"])
    model = schnetpack_model(potential.backbone).double()
    i, j = graph.edge_index
    theirs = model(
        {
            "_atomic_numbers": graph.numbers,
            "_positions": graph.positions,
            "_idx_i": i,
            "_idx_j": j,
            "_idx_m": graph.batch,
            "_n_atoms": torch.tensor([9, 4]),
            "_offsets": graph.edge_vectors() - (graph.positions[j] - graph.positions[i]),
        }
    )
    for key in ("energy", "forces"):
        torch.testing.assert_close(ours[key].detach(), theirs[key].detach(), rtol=0, atol=1e-11)
    assert ours["forces"].abs().max() > 0.01


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_initial_weights_are_drawn_as_schnetpack_draws_them(name):
    torch.manual_seed(3)
    backbone = build_backbone(name, {"features": 8, "interactions": 2, "radial_functions": 5})
    torch.manual_seed(3)
    again = schnetpack_model(backbone).representation  # built with random weights, then loaded
    torch.manual_seed(3)
    fresh = type(again)(8, 2, again.radial_basis, again.cutoff_fn)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, backbone.representation.state_dict()[key]), key
    assert Potential(backbone).backbone is backbone
