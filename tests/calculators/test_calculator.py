"""What the conformance suite does not ask: committees, checkpoints, biases, registration."""

import multiprocessing
import pickle
import subprocess
import sys
import threading
import uuid

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculatorSetupError, InputError, get_calculator_class
from ase.calculators.socketio import SocketClient, SocketIOCalculator
from ase.io import read
from conftest import copper, ethanol, small_potential

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calculators.ase_plugin import register
from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.data.writer import DatasetWriter

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)


def run_python(code: str, folder) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_committee_mean_and_spread():
    potentials = [small_potential("schnet", seed) for seed in range(4)]
    atoms = copper()
    singles = []
    for potential in potentials:
        atoms.calc = BiasGradCalculator(potential, dtype="float64")
        atoms.get_forces()
        singles.append(atoms.calc.results)
    atoms.calc = BiasGradCalculator(potentials, dtype="float64")
    for name in ("energy", "forces", "stress"):
        values = np.array([results[name] for results in singles])
        atoms.get_forces()
        np.testing.assert_allclose(atoms.calc.results[name], values.mean(axis=0), atol=1e-10)
        spread = values.std(axis=0, ddof=1)
        np.testing.assert_allclose(atoms.calc.results[f"{name}_std"], spread, atol=1e-10)
    assert type(atoms.calc.results["energy_std"]) is float
    assert "forces_std" not in atoms.calc.export_properties()


def test_the_bias_is_added_in_float64():
    potential = small_potential()
    atoms = ethanol()
    atoms.calc = BiasGradCalculator(potential)
    bare, forces = atoms.get_potential_energy(), atoms.get_forces()
    offset = -17_639.123456789  # aspirin's size, in eV
    counts = np.bincount(atoms.numbers, minlength=119)[None]
    potential.bias.fit(np.array([offset]), counts, "mean")
    atoms.calc = BiasGradCalculator(potential)
    assert atoms.get_potential_energy() == pytest.approx(bare + offset, abs=1e-10)
    assert np.array_equal(atoms.get_forces(), forces)
    np.testing.assert_allclose(atoms.get_potential_energies().mean(), (bare + offset) / 9)


def test_a_fitted_bias_is_quiet_where_it_is_known_and_warns_elsewhere(recwarn):
    from ase_biasgrad.calculators.calculator import EnergyZeroWarning

    potential = small_potential()
    atoms = ethanol()
    potential.bias.fit(np.zeros(1), np.bincount(atoms.numbers, minlength=119)[None], "mean")
    atoms.calc = BiasGradCalculator(potential, strict=True)
    atoms.get_potential_energy()
    assert not [w for w in recwarn if issubclass(w.category, EnergyZeroWarning)]
    other = copper()
    other.calc = BiasGradCalculator(potential)
    with pytest.warns(EnergyZeroWarning, match="fitted to other compositions"):
        other.get_potential_energy()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"engine": "warp"}, "engine='warp'"),
        ({"device": "toaster"}, "device='toaster'"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
        ({"skin": -0.1}, "skin"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(CalculatorSetupError, match=message):
        BiasGradCalculator(small_potential(), **arguments)
    with pytest.raises(CalculatorSetupError, match="no checkpoint"):
        BiasGradCalculator([])
    with pytest.raises(CalculatorSetupError, match="neither the path"):
        BiasGradCalculator(42)


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_energies_and_forces_equal_those_of_schnetpack(tmp_path, name):
    import schnetpack as spk
    import torch

    from ase_biasgrad.convert import convert_schnetpack

    torch.manual_seed(0)
    kind = {"schnet": spk.representation.SchNet, "painn": spk.representation.PaiNN}[name]
    model = spk.model.NeuralNetworkPotential(
        representation=kind(
            n_atom_basis=32,
            n_interactions=3,
            radial_basis=spk.nn.GaussianRBF(20, 5.0),
            cutoff_fn=spk.nn.CosineCutoff(5.0),
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=32, output_key="energy"),
            spk.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
    )
    torch.nn.init.constant_(model.output_modules[0].outnet[-1].bias, 0.3)
    torch.save(model, tmp_path / "best_model")
    theirs = spk.interfaces.SpkCalculator(
        str(tmp_path / "best_model"),  # by position: SchNetPack 2.2 renamed the argument
        neighbor_list=spk.transform.MatScipyNeighborList(cutoff=5.0),
        energy_unit="kcal/mol",
        dtype=torch.float64,
    )
    potential = convert_schnetpack(tmp_path / "best_model", "kcal/mol")
    ours = BiasGradCalculator(potential, dtype="float64")
    for atoms in (ethanol(), copper()):
        atoms.calc = theirs
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = ours
        assert abs(atoms.get_potential_energy() - energy) < 1e-6
        assert np.abs(atoms.get_forces() - forces).max() < 1e-5
        assert np.abs(forces).max() > 1e-3


def _energy(atoms) -> float:
    return atoms.get_potential_energy()


def test_spawned_processes_get_calculators(tmp_path):
    save_checkpoint(tmp_path / "p.safetensors", small_potential())
    structures = [ethanol(seed) for seed in range(2)]
    for atoms in structures:
        atoms.calc = BiasGradCalculator(tmp_path / "p.safetensors", device="cpu")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        energies = pool.map(_energy, structures)
    assert energies == pytest.approx([atoms.get_potential_energy() for atoms in structures])


def test_sockets(tmp_path):
    atoms, remote = copper(), copper()
    remote.calc = BiasGradCalculator(small_potential(), dtype="float64")
    name = f"biasgrad-test-{uuid.uuid4().hex}"
    with SocketIOCalculator(unixsocket=name) as server:
        client = threading.Thread(
            target=lambda: SocketClient(unixsocket=name).run(remote, use_stress=True)
        )
        client.start()
        atoms.calc = server
        forces = atoms.get_forces()
        stress = atoms.get_stress()
    client.join(30)
    atoms.calc = BiasGradCalculator(small_potential(), dtype="float64")
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-8)
    np.testing.assert_allclose(stress, atoms.get_stress(), atol=1e-8)


def test_imports_are_light(tmp_path):
    code = (
        "import sys, ase_biasgrad, ase_biasgrad.calculators\n"
        "import ase_biasgrad.calculators.ase_plugin, ase_biasgrad.cli\n"
        "print([m for m in ('torch', 'schnetpack', 'pytorch_lightning') if m in sys.modules])"
    )
    assert run_python(code, tmp_path).strip() == "[]"
    code = (
        "import sys\nfrom ase_biasgrad import BiasGradCalculator\n"
        "print([m for m in ('schnetpack', 'pytorch_lightning', 'wandb') if m in sys.modules])"
    )
    assert run_python(code, tmp_path).strip() == "[]"


@pytest.mark.parametrize(
    "act",
    [
        "BiasGradCalculator('p.safetensors', device='cpu')",
        "pickle.loads(open('c.pickle', 'rb').read()).get_forces()",
    ],
)
def test_making_a_calculator_leaves_the_process_as_it_was(tmp_path, act):
    save_checkpoint(tmp_path / "p.safetensors", small_potential())
    atoms = ethanol()
    atoms.calc = BiasGradCalculator(tmp_path / "p.safetensors", device="cpu")
    atoms.get_forces()
    (tmp_path / "c.pickle").write_bytes(pickle.dumps(atoms))
    code = (
        "import logging, os, pickle, sys\n"
        "from ase_biasgrad import BiasGradCalculator\n"
        "root, environment = logging.getLogger(), dict(os.environ)\n"
        "before = (list(root.handlers), root.level)\n"
        f"{act}\n"
        "print((root.handlers, root.level) == before, dict(os.environ) == environment)\n"
        "print('schnetpack' in sys.modules)"
    )
    assert run_python(code, tmp_path).split() == ["True", "True", "False"]


def test_ase_knows_the_calculator_by_name(tmp_path):
    register()
    register()
    save_checkpoint(tmp_path / "p.safetensors", small_potential())
    calc = get_calculator_class("biasgrad")(checkpoint=tmp_path / "p.safetensors")
    assert isinstance(calc, BiasGradCalculator)
    assert calc.name == "biasgrad"
    plugins = subprocess.run(
        [sys.executable, "-m", "ase", "info", "--plugins"], capture_output=True, text=True
    )
    assert "biasgrad" in plugins.stdout


def test_ase_run(tmp_path):
    save_checkpoint(tmp_path / "p.safetensors", small_potential())
    with DatasetWriter(tmp_path / "x.biasgrad.h5") as writer:
        writer.append(ethanol().numbers, ethanol().positions, energy=0.0)
    command = ["-m", "ase", "run", "biasgrad", "x.biasgrad.h5", "-o", "out.extxyz"]
    parameters = "checkpoint='p.safetensors',device='cpu'"
    done = subprocess.run(
        [sys.executable, *command, "-p", parameters], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = ethanol()
    expected.calc = BiasGradCalculator(tmp_path / "p.safetensors", device="cpu")
    energy = read(tmp_path / "out.extxyz").get_potential_energy()
    assert energy == pytest.approx(expected.get_potential_energy(), abs=1e-6)


def fitted_to(level: float, counts=((29,) * 4, (29,)), isolated=(False, True)):
    """A potential fitted to crystals and an isolated atom, at a level of reference energies."""
    potential = small_potential()
    rows = np.array([np.bincount(numbers, minlength=119) for numbers in counts])
    residuals = np.where(isolated, 0.0, level * rows.sum(axis=1))
    potential.bias.fit(residuals, rows, "mean", isolated=np.array(isolated))
    potential.bias.fit_report["reference"] = {"Cu4": level}
    return potential


def test_an_isolated_atom_that_the_fit_is_off_for_is_not_known_and_its_crystal_is():
    crystal, atom, boxed = bulk("Cu"), Atoms("Cu"), Atoms("Cu", cell=[15.0] * 3, pbc=True)
    calc = BiasGradCalculator(fitted_to(-3.5), strict=True)
    energy = {1: calc.get_potential_energy(crystal)}
    energy[27] = calc.get_potential_energy(crystal * 3)
    assert energy[27] == pytest.approx(27 * energy[1], rel=1e-5)
    for structure in (atom, boxed):
        with pytest.raises(InputError, match=r"0\.1 eV per atom at Cu"):
            calc.get_potential_energy(structure)
    assert calc.get_potential_energy(crystal) == energy[1]


def test_a_committee_of_different_energy_zeros_is_refused():
    with pytest.raises(
        CalculatorSetupError, match="member 1 has not been fitted, that of member 0"
    ):
        BiasGradCalculator([fitted_to(-3.5), small_potential()])
    with pytest.raises(CalculatorSetupError, match=r"-3\.500 and -7\.100 eV per atom at Cu4"):
        BiasGradCalculator([fitted_to(-3.5), fitted_to(-3.6), fitted_to(-7.1)])
    calc = BiasGradCalculator([fitted_to(-3.5), fitted_to(-3.6)], strict=True)
    calc.calculate(bulk("Cu"), ["energy"])
    assert calc.results["energy_std"] == pytest.approx(0.1 / np.sqrt(2), abs=1e-6)


def test_references_by_name_share_forces_and_differ_by_their_bias(tmp_path):
    potential, atoms = fitted_to(-3.5), bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    other = fitted_to(-7.25).bias
    potential.add_reference("r2scan", other)
    save_checkpoint(tmp_path / "p.safetensors", potential)
    calcs = {
        name: BiasGradCalculator(tmp_path / "p.safetensors", device="cpu", reference=name)
        for name in (None, "default", "r2scan")
    }
    for calc in calcs.values():
        calc.get_property("stress", atoms)
    default = calcs[None].results
    assert calcs["default"].results["energy"] == default["energy"]
    shift = calcs["r2scan"].results["energy"] - default["energy"]
    assert shift == pytest.approx(4 * (-7.25 + 3.5), abs=1e-9)
    for name in ("forces", "stress"):
        assert np.array_equal(calcs["r2scan"].results[name], default[name])
    assert calcs["r2scan"].todict()["reference"] == "r2scan"
    assert calcs[None].todict()["reference"] == "default"
    with pytest.raises(CalculatorSetupError, match="'pbe' is unknown; there are default, r2scan"):
        BiasGradCalculator(tmp_path / "p.safetensors", reference="pbe")
