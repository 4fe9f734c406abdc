"""The command line as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from conftest import copper, small_potential
from helpers import biasgrad

from ase_biasgrad.calculators import BiasGradCalculator, ExtrapolationWarning
from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
from ase_biasgrad.committee_file import save_committee
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.graph import graph_from_atoms
from ase_biasgrad.readouts import Readouts
from ase_biasgrad.training_range import TrainingRange


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def data(folder):
    write(folder / "start.xyz", bulk("Cu", cubic=True))
    biasgrad(
        folder, "data", "sample", "start.xyz", "-o", "cu.h5", "--calculator", "emt",
        "--frames", 20, "--interval", 3, "--equilibration", 5,
        "--temperature", 300, "--temperature", 600,
    )  # fmt: skip
    return folder / "cu.h5"


def test_sampled_data_is_labelled_by_the_calculator(data):
    dataset = Dataset(data)
    assert len(dataset) == 40
    frame = dataset[33]
    atoms = frame.atoms()
    atoms.calc = EMT()
    assert atoms.get_potential_energy() == pytest.approx(frame.energy, abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), frame.forces, atol=1e-10)
    np.testing.assert_allclose(atoms.get_stress(), frame.stress, atol=1e-10)
    assert np.abs(dataset[0].positions - dataset[39].positions).max() > 0.05


def test_train_evaluate_fit_bias_and_info(folder, data):
    (folder / "c.yaml").write_text(
        "data: {path: cu.h5, train: 24, validation: 8}\n"
        "backbone: {name: painn, features: 16, interactions: 2, cutoff: 4.0}\n"
        "force_stage: {epochs: 50, batch_size: 5, schedule: {warmup_steps: 0}}\n"
        "trainer: {progress_bar: false}\n"
    )
    said = biasgrad(folder, "train", "c.yaml", "force_stage.epochs=3", "-o", "run")
    assert "energy zero: scalar" in said
    assert said.count("force MAE (per Å)") == 2
    assert "test frames, which chose nothing\n8 frames; " in said
    assert "not a run folder" in biasgrad(folder, "train", "--resume", "nowhere", code=1)
    assert "holds a run already" in biasgrad(folder, "train", "c.yaml", "-o", "run", code=1)
    checkpoint = "run/potential.safetensors"
    said = biasgrad(
        folder, "evaluate", checkpoint, "cu.h5", "--json", "e.json", "--report", "rep",
        "--frames", ":10",
    )  # fmt: skip
    assert "10 frames" in said
    assert json.loads((folder / "e.json").read_text())["frames"] == 10
    assert (folder / "rep" / "errors.png").exists()
    said = biasgrad(
        folder, "fit-bias", checkpoint, "cu.h5", "-o", "m.safetensors", "--method", "median"
    )
    assert re.search(r"mean residual left at each composition:\n  Cu4: -?\d+\.\d+ meV\n", said)
    one, two = (load_checkpoint(folder / name) for name in (checkpoint, "m.safetensors"))
    assert two.potential.bias.fit_report["method"] == "median"
    assert float(one.potential.bias.per_element[29]) != float(two.potential.bias.per_element[29])
    assert "backbone" in biasgrad(folder, "info", checkpoint)
    assert "learning_rate" in biasgrad(folder, "train", "--options")
    assert "Cu4: 40 frames" in biasgrad(folder, "data", "info", "cu.h5")


def test_ctrl_c_says_how_to_go_on(folder, data):
    (folder / "long.yaml").write_text(
        "data: {path: cu.h5, train: 30, validation: 10}\n"
        "backbone: {name: schnet, features: 8, interactions: 1, cutoff: 4.0}\n"
        "force_stage: {epochs: 100000, batch_size: 5}\n"
        "trainer: {progress_bar: false}\n"
    )
    command = [sys.executable, "-m", "ase_biasgrad.cli", "train", "long.yaml", "-o", "long"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so would theirs
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last, deadline = folder / "long" / "states" / "last.ckpt", time.monotonic() + 600
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "biasgrad train --resume long" in said


def test_convert_brings_in_a_schnetpack_model_with_its_bias(folder, data):
    spk = pytest.importorskip("schnetpack")
    model = spk.model.NeuralNetworkPotential(
        spk.representation.PaiNN(16, 2, spk.nn.GaussianRBF(12, 4.0), spk.nn.CosineCutoff(4.0)),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(16, output_key="energy")],
    )
    torch.save(model, folder / "best_model")
    said = biasgrad(
        folder, "convert", "best_model", "-o", "converted.safetensors", "--energy-unit",
        "kcal/mol", "--data", "cu.h5", "--trust-pickle",
    )  # fmt: skip
    assert "energy zero: scalar" in said
    potential = load_checkpoint(folder / "converted.safetensors").potential
    frame = Dataset(data)[0]
    energy = potential.evaluate(graph_from_atoms(frame.atoms(), 4.0), ["energy"])["energy"]
    assert abs(float(energy) - frame.energy) < 1.0


def test_relax(folder, data):
    save_checkpoint(folder / "p.safetensors", small_potential("schnet"))
    write(folder / "w.xyz", molecule("H2O"))
    said = biasgrad(
        folder, "relax", "w.xyz", "-c", "p.safetensors", "-o", "out.xyz", "--fmax", 0.05,
        "--steps", 1, code=1,
    )  # fmt: skip
    assert "NOT converged after 1 steps" in said
    assert len(read(folder / "out.xyz")) == 3
    said = biasgrad(
        folder, "relax", "start.xyz", "-c", "p.safetensors", "-o", "cell.cif", "--cell",
        "--fmax", 100, "--trajectory", "path.traj",
    )  # fmt: skip
    assert "converged after 0 steps" in said
    (only,) = read(folder / "path.traj", ":")
    assert {"energy", "forces", "stress"} <= set(only.calc.results)
    for name in ("out.unknown", "nowhere/out.xyz"):
        biasgrad(folder, "relax", "w.xyz", "-c", "p.safetensors", "-o", name, code=2)


def test_md_stops_outside_of_the_training_range(folder, data):
    atoms = molecule("CH3CH2OH")
    write(folder / "w.xyz", atoms)
    bonds = atoms.get_all_distances()[np.triu_indices(9, 1)]
    closest = {(a, b): float(bonds.min()) - 0.02 for a in (1, 6, 8) for b in (1, 6, 8) if a <= b}
    record = {"range": TrainingRange(closest).record()}
    save_checkpoint(folder / "p.safetensors", small_potential("schnet"), record)
    common = ("md", "w.xyz", "-c", "p.safetensors", "--interval", 50, "--dtype", "float64")
    line = (*common, "--temperature", 3000, "--steps", 400, "--stop-outside")
    with pytest.warns(ExtrapolationWarning):
        said = biasgrad(folder, *line, "-o", "o.traj")
    steps = int(re.search(r"ended after (\d+) of 400 steps: the structure is outside", said)[1])
    assert 0 < steps < 400
    frames = read(folder / "o.traj", ":")
    assert len(frames) == 1 + steps // 50 + (steps % 50 > 0)
    assert frames[-1].get_all_distances()[np.triu_indices(9, 1)].min() < bonds.min() - 0.02
    with pytest.warns(ExtrapolationWarning):
        said = biasgrad(folder, *line, "-o", "o.traj", "--restart")
    assert "ended after" in said or "400 steps" in said
    info = json.loads(biasgrad(folder, "info", "p.safetensors"))
    assert info["training"]["range"]["closest"]["H-C"] == closest[1, 6]


def test_md_stops_where_a_committee_is_not_sure(folder, data):
    for seed in (0, 1):
        save_checkpoint(folder / f"c{seed}.safetensors", small_potential("schnet", seed))
    line = ("md", "start.xyz", "-c", "c0.safetensors", "--steps", 20, "--stop-spread")
    assert "needs a committee" in biasgrad(folder, *line, 1.0, "-o", "n1.traj", code=2)
    both = (*line[:4], "-c", "c1.safetensors", *line[4:])
    said = biasgrad(folder, *both, 1e-6, "-o", "s.traj", "--temperature", 1000)
    steps = int(re.search(r"ended after (\d+) of 20 steps: the force on atom \d \(Cu\)", said)[1])
    assert steps < 20
    assert "20 steps of" in biasgrad(folder, *both, 1e6, "-o", "t.traj")
    # a potential with readouts is looked at with each frame that is written
    readouts = Readouts(np.eye(2, 8), (1, 6, 8, 29), np.zeros((2, 4)))
    save_committee(folder / "r.safetensors", [folder / "c0.safetensors"], None, {}, readouts)
    one = (*line[:3], "r.safetensors", *line[4:], 1e-6, "--interval", 5, "--temperature", 1000)
    said = biasgrad(folder, *one, "-o", "u.traj")
    assert int(re.search(r"ended after (\d+) of 20 steps: the force on", said)[1]) % 5 == 0
    said = biasgrad(folder, *one, "-o", "v.traj", "--engine", "lammps", code=2)
    assert "needs several potentials" in said


def test_md_and_its_restart(folder, data):
    save_checkpoint(folder / "p.safetensors", small_potential("schnet"))
    common = ("md", "start.xyz", "-c", "p.safetensors", "--interval", 2, "--dtype", "float64")
    biasgrad(folder, *common, "-o", "a.traj", "--steps", 8, "--log", "a.log")
    biasgrad(folder, *common, "-o", "b.traj", "--steps", 4)
    assert "exists" in biasgrad(folder, *common, "-o", "b.traj", "--steps", 4, code=2)
    biasgrad(folder, *common, "-o", "b.traj", "--steps", 4, "--restart")
    one, two = (read(folder / f"{name}.traj", ":") for name in "ab")
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-9)
    potential = BiasGradCalculator(folder / "p.safetensors", dtype="float64")
    for frame in (*one, *two):  # the first frame and the one of the restart included
        potential.calculate(frame, ["forces"])
        for name in ("energy", "forces", "stress"):
            np.testing.assert_allclose(frame.calc.results[name], potential.results[name], atol=1e-9)
    assert len((folder / "a.log").read_text().splitlines()) == 5
    for more in ((), ("--restart",)):
        biasgrad(folder, *common, "-o", "l.traj", "--steps", 2, "--ensemble", "langevin", *more)
    begin, middle, end = (atoms.get_momenta() for atoms in read(folder / "l.traj", ":"))
    assert np.abs((end - middle) - (middle - begin)).max() > 0.01  # not the same noise again
    biasgrad(folder, *common, "-o", "n.traj", "--steps", 2, "--ensemble", "npt")
    write(folder / "w.xyz", molecule("H2O"))
    said = biasgrad(
        folder, "md", "w.xyz", "-c", "p.safetensors", "-o", "w.traj", "--ensemble", "npt", code=1
    )
    assert "periodic in all three directions" in said
    restart = ("-c", "p.safetensors", "--restart", "-o")
    assert "does not exist" in biasgrad(folder, "md", "w.xyz", *restart, "q.traj", code=2)
    assert "holds Cu4" in biasgrad(folder, "md", "w.xyz", *restart, "a.traj", code=1)


def test_errors_are_one_message(folder):
    assert "no such file" in biasgrad(folder, "data", "import", "x.npz", "-o", "x.h5", code=1)
    assert "no such checkpoint" in biasgrad(folder, "info", "x.safetensors", code=1)
    command = [sys.executable, "-m", "ase_biasgrad.cli", "info", "x.safetensors"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("biasgrad: ")
    assert done.stderr.count("\n") == 1
    assert "--trust-pickle" in biasgrad(
        folder, "convert", "m", "-o", "x.safetensors", "--energy-unit", "eV", code=2
    )
    assert "no calculator 'magic'" in biasgrad(
        folder, "data", "sample", "H2O", "-o", "x.h5", "--calculator", "magic", code=1
    )
    (folder / "garbage.xyz").write_text("hello")
    sample = ("data", "sample", "garbage.xyz", "-o", "x.h5")
    assert "garbage.xyz: ASE cannot read it" in biasgrad(folder, *sample, code=1)
    assert not (folder / "x.h5").exists()


def test_sampling_with_a_calculator_of_the_user(folder):
    (folder / "springs.py").write_text(
        "from ase.calculators.lj import LennardJones\n\n\nclass Springs(LennardJones):\n    pass\n"
    )
    write(folder / "pair.xyz", Atoms("Ar2", [[0, 0, 0], [0, 0, 1.2]]))
    command = [
        *(sys.executable, "-P", "-m", "ase_biasgrad.cli", "data", "sample", "pair.xyz"),
        *("-o", "pair.h5", "--calculator", "springs:Springs", "--arguments", '{"sigma": 1.1}'),
        *("--frames", "2", "--equilibration", "0", "--temperature", "50"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pair.h5: 2 frames by springs:Springs" in done.stdout


def test_restart_cuts_a_torn_frame_off_and_keeps_constraints(folder, data):
    atoms = copper()
    atoms.set_constraint(FixAtoms([1]))
    start = atoms.copy()
    save_checkpoint(folder / "any.safetensors", small_potential("schnet"))
    write(folder / "fixed.traj", atoms)
    md = ("-c", "any.safetensors", "-o", "torn.traj", "--interval", "1", "--timestep", "0.1")
    biasgrad(folder, "md", "fixed.traj", *md, "--steps", "5")
    whole = read(folder / "torn.traj", ":")
    with (folder / "torn.traj").open("r+b") as file:
        file.truncate((folder / "torn.traj").stat().st_size - 50)
    start.set_constraint()
    write(folder / "free.xyz", start)
    said = biasgrad(folder, "md", "free.xyz", *md, "--steps", "3", "--restart")
    assert "torn.traj: the last frame is torn; it goes on from frame 4" in said
    again = read(folder / "torn.traj", ":")
    assert len(again) == 5 + 3
    for one, two in zip(again[:5], whole[:5], strict=True):
        np.testing.assert_array_equal(one.positions, two.positions)
        np.testing.assert_array_equal(one.get_forces(), two.get_forces())
    for frame in again:
        np.testing.assert_array_equal(frame.positions[1], atoms.positions[1])
    (folder / "torn.traj").write_bytes(b"- of UlmASE-Trajectory")
    assert "torn.traj: cannot be gone on from" in biasgrad(
        folder, "md", "free.xyz", *md, "--restart", code=1
    )


def test_outputs_replace_nothing_unasked(folder):
    save_checkpoint(folder / "kept.safetensors", small_potential("schnet"))
    write(folder / "two.traj", [copper(), copper(1)])
    (folder / "there.xyz").write_text("mine")
    relax = ("relax", "two.traj", "-c", "kept.safetensors", "--fmax", "1000", "-o")
    for output in ("two.traj", "there.xyz"):
        before = (folder / output).read_bytes()
        said = biasgrad(folder, *relax, output, code=1)
        assert output in said
        assert (folder / output).read_bytes() == before
    biasgrad(folder, *relax, "there.xyz", "--overwrite")
    assert len(read(folder / "there.xyz")) == 4
    assert "is what is read" in biasgrad(folder, *relax, "two.traj", "--overwrite", code=1)
    text = (folder / "kept.safetensors").read_bytes()
    fit = ("fit-bias", "kept.safetensors", "cu.h5", "-o", "kept.safetensors", "--overwrite")
    assert "is what is read" in biasgrad(folder, *fit, code=1)
    assert (folder / "kept.safetensors").read_bytes() == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_terminals_without_the_fields_signs_get_plain_letters(folder, encoding):
    command = [sys.executable, "-m", "ase_biasgrad.cli", "train", "--options"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"sqrt3" in done.stdout
