"""TorchSim takes our potentials: its own conformance checks, and ASE's results in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.build import fcc100, molecule
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS
from conftest import BACKBONES, EXTENSIVE, copper, ethanol, small_potential

from ase_biasgrad.calculators import BiasGradCalculator, EnergyZeroWarning
from ase_biasgrad.potential import Potential

ts = pytest.importorskip("torch_sim", reason="torch-sim-atomistic (Python 3.12) is not installed")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402
from torch_sim.testing import (  # noqa: E402
    SIMSTATE_BULK_GENERATORS,
    assert_model_calculator_consistency,
)

from ase_biasgrad.calculators.torch_sim import TorchSimModel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.EnergyZeroWarning")
ETHANOL = Path(__file__).parents[2] / "examples" / "potentials" / "ethanol_rmd17.safetensors"
CPU, DOUBLE = torch.device("cpu"), torch.float64
EVERYTHING = range(1, 93)


def of_many_elements(name: str) -> Potential:
    """Random weights for the elements that the checks of TorchSim ask for."""
    potential = small_potential(name)
    return Potential(potential.backbone, potential.bias, EVERYTHING)


def slab():
    atoms = fcc100("Cu", (2, 2, 2), vacuum=5)
    atoms.rattle(0.05, seed=0)
    return atoms


BATCHES = {
    "molecules": lambda: [ethanol(), molecule("H2O"), ethanol(1)],
    "crystals": lambda: [copper(), copper(1), copper(2).repeat((2, 1, 1))],
    "slabs": lambda: [slab(), slab()],
}


def results_of_ase(potential, batch, **arguments) -> dict[str, np.ndarray]:
    calc = BiasGradCalculator(
        potential, device="cpu", **{"dtype": "float64", "engine": "reference", **arguments}
    )
    found = [dict(calc.evaluate_many([atoms])[0]) for atoms in batch]
    joined = {
        "energy": np.array([each["energy"] for each in found]),
        "forces": np.concatenate([each["forces"] for each in found]),
    }
    if "stress" in found[0]:
        joined["stress"] = np.stack([each["stress"] for each in found])
    return joined


def assert_like_ase(found, expected, tolerance: float) -> None:
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    for name, values in expected.items():
        ours = found[name].numpy()
        if name == "stress":
            np.testing.assert_allclose(ours, ours.transpose(0, 2, 1), atol=tolerance)
            ours = ours[:, rows, columns]
        np.testing.assert_allclose(ours, values, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EXTENSIVE)
def test_conformance_of_torch_sim(name, dtype):
    model = TorchSimModel(of_many_elements(name), "cpu", dtype)
    validate_model_outputs(model, CPU, dtype)


@pytest.mark.parametrize("state", ["cu", "ti", "rattled_sio2", "casio3"])
def test_consistency_with_the_calculator_by_torch_sim(state):
    potential = of_many_elements("tensornet")
    calc = BiasGradCalculator(potential, device="cpu", dtype="float64", engine="reference")
    model = TorchSimModel(potential, "cpu")
    made = SIMSTATE_BULK_GENERATORS[f"{state}_sim_state"](CPU, DOUBLE)
    assert_model_calculator_consistency(model, calc, made)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", BACKBONES)
def test_batches_are_as_in_ase(name, batch):
    potential, systems = small_potential(name), BATCHES[batch]()
    expected = results_of_ase(potential, systems)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        model = TorchSimModel(potential, "cpu", dtype)
        found = model(ts.io.atoms_to_state(systems, CPU, dtype))
        assert found["energy"].dtype == DOUBLE
        assert found["forces"].dtype == found["stress"].dtype == dtype
        assert_like_ase(found, expected, tolerance)


def test_energies_have_their_bias_and_all_their_digits():
    """At −4213 eV one step of float32 is 0.5 meV."""
    systems = BATCHES["molecules"]()[::2]
    expected = results_of_ase(ETHANOL, systems)
    assert expected["energy"].max() < -4000
    model = TorchSimModel(ETHANOL, "cpu", torch.float32)
    found = model(ts.io.atoms_to_state(systems, CPU, torch.float32))["energy"].numpy()
    np.testing.assert_allclose(found, expected["energy"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", ["molecules", "crystals", "slabs"])
def test_lists_stay_exact_while_batches_change(batch):
    """Atoms and cells move, a little or far, and systems leave, return and trade places."""
    random = np.random.default_rng(0)
    potential, systems = small_potential("painn"), BATCHES[batch]()
    model = TorchSimModel(potential, "cpu", skin=0.4)
    for step in range(12):
        for atoms in systems:
            atoms.positions += random.normal(0, (0.02, 0.02, 0.3)[step % 3], (len(atoms), 3))
            if batch == "crystals":
                strain = np.eye(3) + random.normal(0, 0.005, (3, 3))
                atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        chosen = [systems[k] for k in random.permutation(len(systems))][: 1 + step % len(systems)]
        found = model(ts.io.atoms_to_state(chosen, CPU, DOUBLE))
        assert_like_ase(found, results_of_ase(potential, chosen), 1e-9)


def test_relaxations_end_where_those_of_ase_do():
    """One molecule from several starts, FIRE to the same minima."""
    starts = []
    for seed in range(3):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.03, seed=seed)
        starts.append(atoms)
    model = TorchSimModel(ETHANOL, "cpu")
    final = ts.optimize(
        system=[atoms.copy() for atoms in starts],
        model=model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=2e-3, include_cell_forces=False),
        max_steps=1000,
    )
    calc = BiasGradCalculator(ETHANOL, device="cpu", dtype="float64", engine="reference")
    for atoms, energy in zip(starts, final.energy.tolist(), strict=True):
        atoms.calc = calc
        assert LBFGS(atoms, logfile=None).run(fmax=2e-3, steps=500)
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=2e-4)


def test_cells_relax_with_the_stress_of_ase():
    """Three steps of gradient descent, atoms and cells, go down by what the stress promises."""
    potential, systems = small_potential("schnet"), [copper(), copper(1)]
    model = TorchSimModel(potential, "cpu")
    before = results_of_ase(potential, systems)["energy"]
    final = ts.optimize(
        system=systems,
        model=model,
        optimizer=ts.Optimizer.gradient_descent,
        max_steps=3,
        steps_between_swaps=1,
        init_kwargs={"cell_filter": ts.CellFilter.frechet},
        pos_lr=1e-3,
        cell_lr=1e-3,
    )
    moved = ts.io.state_to_atoms(final)
    assert all(
        np.abs(atoms.cell.array - old.cell.array).max() > 1e-6
        for atoms, old in zip(moved, systems, strict=True)
    )
    after = results_of_ase(potential, moved)["energy"]
    np.testing.assert_allclose(final.energy.numpy(), after, atol=1e-9)
    assert (after < before).all()


@pytest.mark.parametrize("batch", ["molecules", "crystals"])
def test_dynamics_are_those_of_ase(batch):
    """Velocity Verlet of a batch from the same momenta: the same atoms after 20 steps."""
    potential, systems = small_potential("tensornet"), BATCHES[batch]()
    model = TorchSimModel(potential, "cpu")
    state = ts.nve_init(ts.io.atoms_to_state(systems, CPU, DOUBLE), model, kT=0.02)
    calc = BiasGradCalculator(potential, device="cpu", dtype="float64", engine="reference")
    # momenta are in (u eV)^½ in both
    momenta = np.split(state.momenta.numpy(), np.cumsum([len(a) for a in systems])[:-1])
    for atoms, p in zip(systems, momenta, strict=True):
        atoms.calc = calc.copy()
        atoms.set_momenta(p)
        VelocityVerlet(atoms, 0.5 * units.fs).run(20)
    for _ in range(20):
        state = ts.nve_step(state, model, dt=0.5 * units.fs)
    np.testing.assert_allclose(
        state.positions.numpy(), np.concatenate([a.positions for a in systems]), atol=1e-8
    )
    energies = [atoms.get_potential_energy() for atoms in systems]
    np.testing.assert_allclose(state.energy.numpy(), energies, atol=1e-8)


def test_the_runner_of_dynamics_takes_a_batch(tmp_path):
    files = [tmp_path / f"{k}.h5md" for k in range(2)]
    final = ts.integrate(
        system=[ethanol(), ethanol(1)],
        model=TorchSimModel(ETHANOL, "cpu", torch.float32),
        integrator=ts.Integrator.nvt_langevin,
        n_steps=5,
        temperature=300,
        timestep=0.0005,
        trajectory_reporter={"filenames": files, "state_frequency": 1},
    )
    assert final.positions.shape == (18, 3)
    assert torch.isfinite(final.energy).all()
    for file in files:
        with ts.TorchSimTrajectory(file) as trajectory:
            assert len(trajectory.get_array("positions")) == 1 + 5


def test_what_is_computed_and_in_which_mode():
    model = TorchSimModel(small_potential("schnet"), "cpu")
    state = ts.io.atoms_to_state([copper()], CPU, DOUBLE)
    full = model(state)
    with torch.inference_mode():
        inside = model(ts.io.atoms_to_state([copper()], CPU, DOUBLE))
    for name, values in full.items():
        torch.testing.assert_close(inside[name].clone(), values)
    model.compute_stress = False
    assert set(model(state)) == {"energy", "forces"}
    model.compute_forces = False
    assert set(model(state)) == {"energy"}
    torch.testing.assert_close(model(state)["energy"], full["energy"])


def test_what_a_model_does_not_take():
    model = TorchSimModel(small_potential("schnet"), "cpu")
    state = ts.io.atoms_to_state([ethanol()], CPU, torch.float32)
    with pytest.raises(TypeError, match=r"state is in torch.float32, the model in torch.float64"):
        model(state)
    with pytest.raises(ValueError, match=r"does not know \['U'\]; it was trained for \['H', "):
        model(ts.io.atoms_to_state([molecule("H2O"), water_of_uranium()], CPU, DOUBLE))
    broken = ts.io.atoms_to_state([ethanol()], CPU, DOUBLE)
    broken.positions[4, 1] = torch.nan
    with pytest.raises(ValueError, match="position of atom 4 is not finite"):
        model(broken)
    charged = ethanol()
    charged.info["charge"] = 1
    state = ts.io.atoms_to_state([charged], CPU, DOUBLE, system_extras_map={"charge": "charge"})
    with pytest.raises(ValueError, match="neutral singlet alone"):
        model(state)
    with pytest.raises(ValueError, match=r"neither torch\.float32 nor"):
        TorchSimModel(small_potential("schnet"), "cpu", torch.float16)
    with pytest.raises(ValueError, match="reference='r2scan' is unknown"):
        TorchSimModel(small_potential("schnet"), "cpu", reference="r2scan")
    with pytest.warns(EnergyZeroWarning, match="bias of this potential has not been fitted"):
        TorchSimModel(small_potential("schnet"), "cpu")(
            ts.io.atoms_to_state([ethanol()], CPU, DOUBLE)
        )


def water_of_uranium():
    atoms = molecule("H2O")
    atoms.numbers[0] = 92
    return atoms
