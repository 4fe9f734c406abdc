"""Learning the difference to a baseline: labels, checkpoints, a calculator that adds it back."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError, PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from helpers import biasgrad, options, write_clusters

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.baseline import Baseline
from ase_biasgrad.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.graph import graph_from_atoms
from ase_biasgrad.training import baseline as baselines
from ase_biasgrad.training.config import ConfigError, config_from
from ase_biasgrad.training.evaluation.committee import make_committee
from ase_biasgrad.training.run import resume, train

# by autograd: no kernels to compile
BACKBONE = {"name": "graph_convolution", "features": 16, "interactions": 1, "cutoff": 4.0}
ARGUMENTS = {"sigma": 0.9, "epsilon": 0.5, "rc": 3.0, "smooth": True}


class Counting(LennardJones):
    """A class of the user's, that counts what it is asked and may be interrupted."""

    asked = 0
    most = 10**9

    def calculate(self, *arguments):
        super().calculate(*arguments)
        type(self).asked += 1
        if type(self).asked > type(self).most:
            raise KeyboardInterrupt


def given(path, baseline, **force_stage) -> dict:
    config = options(path, epochs=2, **force_stage)
    return {**config, "backbone": BACKBONE, "baseline": baseline}


@pytest.fixture(scope="module", params=[False, True], ids=["molecules", "periodic"])
def run(request, tmp_path_factory):
    """A finished run with a baseline that a checkpoint may name."""
    folder = tmp_path_factory.mktemp("baseline")
    path = write_clusters(folder / "x.h5", periodic=request.param)
    config = config_from(given(path, {"calculator": "lj", "arguments": ARGUMENTS}))
    result = train(config, folder / "run")
    return SimpleNamespace(folder=folder, result=result, dataset=Dataset(path))


def test_the_calculator_is_network_and_bias_and_baseline(run):
    potential = load_checkpoint(run.result.checkpoint).potential
    calc = BiasGradCalculator(run.result.checkpoint, device="cpu", dtype="float64")
    base = LennardJones(**ARGUMENTS)
    for frame in (run.dataset[0], run.dataset[1]):
        atoms = frame.atoms()
        own = potential.double().evaluate(graph_from_atoms(atoms, potential.cutoff))
        atoms.calc = base
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        by_atom = atoms.get_potential_energies()
        stress = atoms.get_stress() if atoms.pbc.all() else None
        atoms.calc = calc
        assert atoms.get_potential_energy() == pytest.approx(own["energy"].item() + energy)
        np.testing.assert_allclose(
            atoms.get_forces(), own["forces"].numpy() + forces, rtol=0, atol=1e-5
        )
        assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())
        assert np.ptp(atoms.get_potential_energies() - by_atom) > 0
        if stress is not None:
            alone = BiasGradCalculator(_without_baseline(potential), device="cpu", dtype="float64")
            np.testing.assert_allclose(
                atoms.get_stress(), alone.get_property("stress", atoms) + stress, atol=1e-10
            )


def _without_baseline(potential):
    other = potential.of_reference(None)
    other.baseline = None
    return other


def test_forces_are_derivatives_of_the_energy(run):
    from ase.calculators.fd import calculate_numerical_forces

    atoms = run.dataset[0].atoms()
    atoms.calc = BiasGradCalculator(run.result.checkpoint, device="cpu", dtype="float64")
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, rtol=0, atol=2e-5)


def test_what_else_a_calculator_does(run):
    calc = BiasGradCalculator(run.result.checkpoint, device="cpu")
    frames = [run.dataset[k].atoms() for k in (0, 1, 2)]
    many = calc.evaluate_many(frames)
    other, unpickled = calc.copy(), pickle.loads(pickle.dumps(calc))
    for atoms, results in zip(frames, many, strict=True):
        for each in (calc, other, unpickled):
            assert each.get_property("energy", atoms) == pytest.approx(results["energy"], abs=1e-5)
            np.testing.assert_allclose(
                each.get_property("forces", atoms), results["forces"], atol=1e-5
            )
        assert results["free_energy"] == results["energy"]
    assert calc.todict()["baseline"]["arguments"] == ARGUMENTS
    with pytest.raises(PropertyNotImplementedError, match=r"no exact Hessian of the baseline lj"):
        calc.get_hessian(frames[0])
    # a potential in memory knows its baseline, too
    loaded = BiasGradCalculator(load_checkpoint(run.result.checkpoint).potential, device="cpu")
    assert loaded.get_property("energy", frames[0]) == pytest.approx(many[0]["energy"], abs=1e-5)


def test_errors_are_those_of_the_whole_potential(run):
    calc = BiasGradCalculator(run.result.checkpoint, device="cpu")
    frames = json.loads((run.folder / "run" / "split.json").read_text())["test"]
    errors, energies = [], []
    for k in frames:
        frame = run.dataset[k]
        atoms = frame.atoms()
        atoms.calc = calc
        errors.append(np.abs(atoms.get_forces() - frame.forces).ravel())
        energies.append(abs(atoms.get_potential_energy() - frame.energy))
    report = run.result.test
    assert report.forces.mae == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    assert report.energy.mae == pytest.approx(np.mean(energies), rel=1e-4, abs=1e-5)
    reference = np.concatenate([run.dataset[k].forces for k in frames])
    assert report.force_rms == pytest.approx(np.sqrt((reference**2).mean()), rel=1e-10)
    biasgrad(run.folder, "evaluate", "run", "--json", "e.json", "--overwrite")
    told = json.loads((run.folder / "e.json").read_text())
    assert told["forces"]["mae"] == pytest.approx(report.forces.mae, rel=1e-4)


def test_every_command_goes_through_it(run, tmp_path):
    from ase.io import read, write

    atoms = run.dataset[0].atoms()
    write(tmp_path / "x.xyz", atoms)
    checkpoint = run.result.checkpoint
    at_once = {"steps": 1, "interval": 1, "device": "cpu", "dtype": "float64", "temperature": 1e-6}
    flags = [text for name, value in at_once.items() for text in (f"--{name}", value)]
    biasgrad(tmp_path, "md", "x.xyz", "-c", checkpoint, "-o", "md.traj", *flags)
    calc = BiasGradCalculator(checkpoint, device="cpu", dtype="float64")
    first = read(tmp_path / "md.traj", index=0)
    expected = calc.get_property("energy", first)
    assert first.get_potential_energy() == pytest.approx(expected, abs=1e-9)
    biasgrad(
        tmp_path,
        *("relax", "x.xyz", "-c", checkpoint, "-o", "relaxed.xyz"),
        *("--steps", 1, "--fmax", 1e9, "--device", "cpu"),
    )
    relaxed = read(tmp_path / "relaxed.xyz")
    assert relaxed.get_potential_energy() == pytest.approx(expected, abs=1e-4)
    data = run.dataset.path
    biasgrad(tmp_path, "fit-bias", checkpoint, data, "-o", "fitted.safetensors", "--frames", ":40")
    fitted = load_checkpoint(tmp_path / "fitted.safetensors").potential
    assert fitted.baseline == load_checkpoint(checkpoint).potential.baseline
    before = load_checkpoint(checkpoint).potential.bias.per_element
    np.testing.assert_allclose(fitted.bias.per_element, before, atol=0.5)  # 12 345 eV without it


def test_the_checkpoint_records_it(run, tmp_path):
    stored = read_checkpoint(run.result.checkpoint)
    assert stored.metadata["version"] == 4
    record = stored.potential.baseline
    assert record["calculator"] == "lj"
    assert record["kind"] == "ase.calculators.lj.LennardJones"
    assert record["package"] == "ase"
    assert record["version"]
    plain = _without_baseline(load_checkpoint(run.result.checkpoint).potential)
    save_checkpoint(tmp_path / "plain.safetensors", plain)
    assert "baseline" not in read_checkpoint(tmp_path / "plain.safetensors").metadata


def test_another_version_is_told_and_another_class_refused(run):
    potential = load_checkpoint(run.result.checkpoint).potential
    potential.baseline = {**potential.baseline, "version": "0.1"}
    with pytest.warns(UserWarning, match=r"ase 0\.1\), and ase .* is installed"):
        BiasGradCalculator(potential, device="cpu")
    from ase.calculators.emt import EMT

    with pytest.raises(CalculatorSetupError, match=r"this baseline is ase\.calculators\.emt\.EMT"):
        BiasGradCalculator(potential, device="cpu", baseline=EMT())
    with pytest.raises(CalculatorSetupError, match="trained without one"):
        BiasGradCalculator(_without_baseline(potential), device="cpu", baseline=EMT())
    with pytest.raises(CalculatorSetupError, match="members 0 and 1 were trained on differences"):
        BiasGradCalculator([potential, _without_baseline(potential)], device="cpu")


@pytest.mark.parametrize(
    ("calculator", "arguments"),
    [
        ("os:system", {"command": "touch owned"}),
        ("builtins:exec", {"source": "open('owned', 'w')"}),
        ("espresso", {"command": "touch owned"}),
        ("emt", {"restart": "owned"}),
    ],
)
def test_a_checkpoint_runs_nothing(run, tmp_path, monkeypatch, calculator, arguments):
    monkeypatch.chdir(tmp_path)
    potential = load_checkpoint(run.result.checkpoint).potential
    potential.baseline = {**potential.baseline, "calculator": calculator, "arguments": arguments}
    save_checkpoint(tmp_path / "evil.safetensors", potential)
    with pytest.raises(CalculatorSetupError, match="could run anything"):
        BiasGradCalculator(tmp_path / "evil.safetensors", device="cpu")
    assert not (tmp_path / "owned").exists()


def test_a_damaged_record_is_refused(run, tmp_path):
    potential = load_checkpoint(run.result.checkpoint).potential
    for record, message in (
        ({"calculator": "lj"}, "must have the keys"),
        ({**potential.baseline, "arguments": []}, r"baseline\.arguments"),
    ):
        potential.baseline = record
        save_checkpoint(tmp_path / "x.safetensors", potential)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / "x.safetensors")


def test_a_class_of_the_users_is_handed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "asked", 0)
    path = write_clusters(tmp_path / "x.h5")
    name = {"calculator": f"{__name__}:Counting", "arguments": ARGUMENTS}
    checkpoint = train(config_from(given(path, name)), tmp_path / "run").checkpoint
    with pytest.raises(CalculatorSetupError, match=r"Counting.*could run anything.*baseline=…"):
        BiasGradCalculator(checkpoint, device="cpu")
    atoms = Dataset(path)[0].atoms()
    atoms.calc = BiasGradCalculator(checkpoint, device="cpu", baseline=Counting(**ARGUMENTS))
    assert np.isfinite(atoms.get_potential_energy())
    said = biasgrad(tmp_path, "evaluate", "run", code=1)
    assert "--trust-baseline" in said
    assert "force" in biasgrad(tmp_path, "evaluate", "run", "--trust-baseline").lower()


def test_labels_are_calculated_once_and_an_interruption_loses_a_part_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "FRAMES_IN_PART", 16)
    path = write_clusters(tmp_path / "x.h5")
    name = {"calculator": f"{__name__}:Counting", "arguments": ARGUMENTS}
    config = config_from(given(path, name))
    monkeypatch.setattr(Counting, "asked", 0)
    monkeypatch.setattr(Counting, "most", 40)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    parts = sorted(p.name for p in (tmp_path / "run" / "baseline").iterdir())
    assert parts == ["00000.npz", "00001.npz"]
    monkeypatch.setattr(Counting, "asked", 0)
    train(config, tmp_path / "run")
    assert Counting.asked == 60 - 32
    resume(tmp_path / "run")
    assert Counting.asked == 60 - 32
    with np.load(tmp_path / "run" / "baseline" / "00003.npz") as last:
        frame = Dataset(path)[59].atoms()
        frame.calc = LennardJones(**ARGUMENTS)
        assert last["energy"][-1] == pytest.approx(frame.get_potential_energy(), abs=1e-12)
        np.testing.assert_array_equal(last["forces"][-len(frame) :], frame.get_forces())


def test_labels_of_something_else_and_damaged_ones_are_refused(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    first = given(path, {"calculator": "lj", "arguments": ARGUMENTS})
    train(config_from(first), tmp_path / "run")
    part = tmp_path / "run" / "baseline" / "00000.npz"
    (tmp_path / "other" / "baseline").mkdir(parents=True)
    (tmp_path / "other" / "baseline" / "00000.npz").write_bytes(part.read_bytes())
    second = given(path, {"calculator": "lj", "arguments": {**ARGUMENTS, "sigma": 0.8}})
    with pytest.raises(DataError, match=r"00000\.npz: holds labels of another baseline"):
        train(config_from(second), tmp_path / "other")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"00000\.npz: damaged"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("none-such", r"baseline: there is no calculator 'none-such'"),
        ({"calculator": "ase.build:molecule", "arguments": {"sigmas": 1}}, r"baseline: "),
        ({"name": "lj"}, r"baseline\.calculator"),
    ],
)
def test_a_baseline_that_cannot_be_made_is_refused(tmp_path, baseline, message):
    path = write_clusters(tmp_path / "x.h5")
    with pytest.raises((ConfigError, DataError), match=message):
        train(config_from(given(path, baseline)), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_frame_on_which_it_fails_is_named(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    config = config_from(given(path, "emt"))  # EMT knows H and O, but has no stress of molecules
    train(config, tmp_path / "run")

    class Failing(LennardJones):
        def calculate(self, *arguments):
            raise RuntimeError("no convergence")

    baseline = Baseline("x:Failing", {}, "x.Failing")
    with pytest.raises(DataError, match=r"x\.h5: frame 7: the baseline fails: RuntimeError: no"):
        baselines.baseline_labels(baseline, Failing(), Dataset(path), np.array([7, 8]))


def test_fine_tuning_keeps_to_the_baseline(run, tmp_path):
    path = run.dataset.path
    base = given(path, "emt")
    del base["backbone"], base["force_stage"]["learning_rate"], base["force_stage"]["schedule"]
    base["fine_tuning"] = {"checkpoint": str(run.result.checkpoint)}
    with pytest.raises(ConfigError, match=r"baseline: is .*emt.* was trained with .*'lj'"):
        train(config_from(base), tmp_path / "run")


def test_gfn2_is_a_baseline_by_its_name(tmp_path):
    pytest.importorskip("tblite.ase", exc_type=ImportError)
    from ase.build import molecule

    from ase_biasgrad.data.sampling import sample
    from ase_biasgrad.named_calculators import labelling_calculator

    sample(
        molecule("H2O"), labelling_calculator("gfn1-xtb"), tmp_path / "x.h5", frames=12, interval=2,
        equilibration=5, progress=False,
    )  # fmt: skip
    config = given(tmp_path / "x.h5", "gfn2-xtb")
    config["data"] |= {"train": 8, "validation": 2}
    result = train(config_from(config), tmp_path / "run")
    atoms = Atoms("OH2", Dataset(tmp_path / "x.h5")[0].positions)
    atoms.calc = BiasGradCalculator(result.checkpoint, device="cpu")
    energy = atoms.get_potential_energy()
    assert energy == pytest.approx(Dataset(tmp_path / "x.h5")[0].energy, abs=0.1)


@pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.ExtrapolationWarning")
def test_spreads_are_scaled_to_errors_of_network_and_baseline_together(run, tmp_path):
    report = make_committee([run.folder / "run"], tmp_path / "c.safetensors")
    calc = BiasGradCalculator(
        tmp_path / "c.safetensors", device="cpu", dtype="float64", repulsion=False
    )
    split = json.loads((run.folder / "run" / "split.json").read_text())
    errors, energies = [], []
    for frame in split["validation"]:
        atoms = run.dataset[frame].atoms()
        reference, energy = atoms.get_forces(), atoms.get_potential_energy()
        calc.get_property("forces_std", atoms)
        errors.append(calc.results["forces"] - reference)
        energies.append(calc.results["energy"] - energy)
    np.testing.assert_allclose(report.errors.forces, np.concatenate(errors), atol=1e-4)
    np.testing.assert_allclose(report.errors.energy, energies, atol=1e-4)
