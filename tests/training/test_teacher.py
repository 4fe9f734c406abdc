"""A student that learns from a teacher's forces on frames that are made with it."""

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from helpers import biasgrad, options, write_clusters

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.training.config import ConfigError, config_from
from ase_biasgrad.training.run import resume, train
from ase_biasgrad.training.run_folder import RunFolder

# by autograd: no kernels to compile
BACKBONE = {"name": "graph_convolution", "features": 16, "interactions": 1, "cutoff": 4.0}
ARGUMENTS = {"rc": 3.0, "smooth": True}
FRAMES = {
    "frames": 24,
    "trajectories": 3,
    "interval": 2,
    "equilibration": 4,
    "temperatures": [50.0],
}


def lesson(path, **given) -> dict:
    names = {"names": ["lj"], "arguments": ARGUMENTS}
    config = {**options(path, epochs=2), "backbone": BACKBONE}
    return {**config, "teacher": {**names, **FRAMES, **given}}


def test_frames_of_the_teacher_join_the_training_part_and_no_other(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    result = train(config_from(lesson(path)), tmp_path / "run", LennardJones(**ARGUMENTS))
    run = RunFolder.read(tmp_path / "run")
    assert run.sizes == {"train": 64, "validation": 10, "test": 10}
    whole, plain = Dataset(path), RunFolder.new(config_from(options(path)), tmp_path / "plain")
    for part, frames in plain.split.items():
        for mine, theirs in zip(run.split[part], frames, strict=False):
            own, other = run.dataset[mine], whole[theirs]
            np.testing.assert_array_equal(own.positions, other.positions)
            np.testing.assert_array_equal(own.forces, other.forces)
            assert own.energy == other.energy
    structures = set()
    for place in run.split["train"][40:]:
        frame = run.dataset[place]
        assert frame.energy is None
        atoms = frame.atoms()
        atoms.calc = LennardJones(**ARGUMENTS)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), rtol=0, atol=1e-10)
        structures.add(atoms.positions.tobytes())
    assert len(structures) == 24
    child = load_checkpoint(result.checkpoint)
    assert child.training["data"]["labelled"] == {"energy": 40, "forces": 64, "stress": 0}
    assert child.training["data"]["teacher"]["class"] == "ase.calculators.lj.LennardJones"
    assert child.potential.bias.zero == "per-element"


def test_an_interrupted_lesson_goes_on_and_another_one_is_refused(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    config = config_from(lesson(path))
    calls = {"left": 40}

    class Tiring(LennardJones):
        def calculate(self, *arguments):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise KeyboardInterrupt
            super().calculate(*arguments)

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", Tiring(**ARGUMENTS))
    assert len(Dataset(tmp_path / "run" / "taught.h5")) == 60 + 8  # one trajectory
    calls["left"] = 10**6
    train(config, tmp_path / "run", Tiring(**ARGUMENTS))
    spent = 10**6 - calls["left"]
    assert 40 < spent < 60  # two of three trajectories of 20 steps
    assert resume(tmp_path / "run").checkpoint.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "taught.h5").write_bytes((tmp_path / "run" / "taught.h5").read_bytes())
    with pytest.raises(ConfigError, match=r"taught\.h5: is of another teacher"):
        train(config, tmp_path / "other", LennardJones(**ARGUMENTS))


def test_a_committee_teaches_from_the_command_line(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    for seed in (0, 1):
        config = {**options(path, epochs=3), "backbone": BACKBONE, "seed": seed}
        train(config_from(config), tmp_path / f"teacher{seed}")
    (tmp_path / "c.yaml").write_text(
        "data: {path: x.h5, train: 40, validation: 10}\n"
        "backbone: {name: graph_convolution, features: 16, interactions: 1, cutoff: 4.0}\n"
        "force_stage: {epochs: 1}\ntrainer: {accelerator: cpu, progress_bar: false}\n"
        "teacher: {frames: 6, trajectories: 2, interval: 1, equilibration: 1}\n"
    )
    names = [tmp_path / f"teacher{seed}" / "potential.safetensors" for seed in (0, 1)]
    flags = [text for name in names for text in ("--teacher", name)]
    biasgrad(tmp_path, "train", "c.yaml", "-o", "run", *flags)
    run = RunFolder.read(tmp_path / "run")
    frame = run.dataset[len(run.dataset) - 1]
    committee = BiasGradCalculator(names, device="cpu")
    expected = committee.get_property("forces", frame.atoms())
    np.testing.assert_allclose(frame.forces, expected, rtol=0, atol=1e-4)
    described = run.origin()["data"]["teacher"]
    assert [one["checkpoint"] for one in described["potentials"]] == ["potential.safetensors"] * 2
    assert described["names"] == ["potential.safetensors"] * 2


def test_a_teacher_that_cannot_teach_is_refused(tmp_path):
    path = write_clusters(tmp_path / "x.h5")
    with pytest.raises(ConfigError, match="teacher: hand train"):
        train(config_from(lesson(path)), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"teacher\.names"):
        config_from(lesson(path, names=[]))
    (tmp_path / "c.yaml").write_text("data: {path: x.h5}\n")
    said = biasgrad(tmp_path, "train", "c.yaml", "--teacher", "lj", "--teacher", "emt", code=1)
    assert "several can be checkpoints alone" in said
