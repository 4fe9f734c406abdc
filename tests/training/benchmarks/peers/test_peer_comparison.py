"""Peers that are made up: what they are told, what is kept of them, and when they are ended."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.benchmarks import tables
from ase_biasgrad.training.benchmarks.peers import comparison, environments, measurement
from ase_biasgrad.training.benchmarks.peers.comparison import COLUMNS, Row, compare, identity
from ase_biasgrad.training.benchmarks.peers.frames import parts
from ase_biasgrad.training.benchmarks.peers.measurement import Failed, Limits, Task, measure
from ase_biasgrad.training.benchmarks.peers.protocol import Frames, module_at

HEAD = """
from pathlib import Path
TITLE, REQUIREMENTS, SOURCE = "made up", (), "nobody"
def settings(): return {"width": 1}
"""
# knows the truth, less the mean energy of the frames that it is told
KNOWS = (
    HEAD
    + """
from ase.calculators.emt import EMT
def train(job):
    known = []
    for atoms in job.train.atoms():
        atoms.calc = EMT()
        known.append(atoms.get_potential_energy())
    assert abs(job.train.energy.mean()) < 1e-9 and len(job.validation) == 2
    assert not (job.folder / "test.npz").exists()
    (job.model / "zero").write_text(repr(float(sum(known) / len(known))))
    return {"size": "none", "epochs": 3}
class Shifted(EMT):
    def calculate(self, *arguments):
        super().calculate(*arguments)
        self.results["energy"] -= self.zero
def calculator(model):
    made = Shifted()
    made.zero = float((model / "zero").read_text())
    return made
"""
)
SLEEPS = HEAD + "import time\ndef train(job): time.sleep(100)\ndef calculator(model): pass\n"
BUSY = HEAD + "def train(job):\n    while True: pass\ndef calculator(model): pass\n"
FAILS = HEAD + "def train(job): raise ValueError('no such|thing')\ndef calculator(model): pass\n"


def frames(count: int, seed: int) -> Frames:
    """Water, shaken, with the labels of EMT."""
    random, atoms = np.random.default_rng(seed), molecule("H2O")
    first, energy, forces, positions = atoms.positions.copy(), [], [], []
    for _ in range(count):
        atoms.positions = first + random.normal(0, 0.05, (3, 3))
        atoms.calc = EMT()
        positions.append(atoms.positions.copy())
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    return Frames(atoms.numbers, np.array(positions), np.array(energy), np.array(forces))


def task(minutes: float = 1.0) -> Task:
    return Task(frames(4, 0), frames(2, 1), frames(3, 2), minutes, md_seconds=0.0)


def peer(folder: Path, name: str, code: str):
    file = folder / f"{name}.py"
    file.write_text(code, encoding="utf-8")
    return module_at(file)


def test_a_peer_that_knows_the_truth_has_no_error_and_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "STARTS", 1)
    knows = peer(tmp_path, "knows", KNOWS)
    fails = peer(tmp_path, "fails", FAILS)
    said = []
    arguments = (task(), [knows, fails], tmp_path / "results", tmp_path / "none", said.append)
    rows = list(compare(*arguments))
    figures = rows[0].figures
    assert figures is not None, rows
    assert figures["force_mae"] < 1e-12
    assert figures["energy_mae"] < 1e-12
    assert figures["efwt"] == 1.0
    assert 0 < figures["md_step_seconds"] < figures["start_seconds"]
    assert figures["training_seconds"] > 0
    zero = next((tmp_path / "results" / "work").glob("peer_knows-*/model/zero"))
    assert figures["bytes_on_disk"] == len(zero.read_text())
    assert figures["training"] == {"size": "none", "epochs": 3}
    assert "numpy" in figures["versions"]
    assert rows[1].figures is None
    assert "train: ValueError: no such|thing" in rows[1].reason

    stored = list((tmp_path / "results").glob("peers-*.json"))
    assert len(stored) == 1  # a failure is no result, and is tried again
    content = stored[0].read_bytes()
    # it would fail if it ran again
    Path(knows.__file__).write_text(KNOWS.replace("known = []", "raise SystemExit"))
    again = list(compare(*arguments))
    assert again[0] == rows[0]
    assert stored[0].read_bytes() == content
    assert any("is there already" in line for line in said)
    assert sum("peer_fails: 1 minutes" in line for line in said) == 2
    stored[0].unlink()  # as after an interruption: what was trained is not trained again
    after = next(compare(*arguments)).figures
    assert after is not None
    assert after["training_seconds"] == figures["training_seconds"]
    assert after["force_mae"] == figures["force_mae"]


@pytest.mark.parametrize(
    ("name", "code", "limits", "said"),
    [
        ("sleeps", SLEEPS, Limits(slow=(0.0, 1.0)), "train: was not done after 1 s, and ended"),
        ("busy", BUSY, Limits(late=(0.0, 0.0)), "was not done after 1 s of the processor"),
    ],
)
def test_a_peer_that_does_not_end_is_ended(tmp_path, name, code, limits, said):
    python, _ = environments.environment(tmp_path, name, (), print)
    driver = Path(peer(tmp_path, name, code).__file__)
    with pytest.raises(Failed, match=said):
        measure(driver, python, task(1 / 60), tmp_path / "work", limits)


def test_errors_are_those_of_the_metrics(tmp_path):
    given = task()
    path = tmp_path / "predictions.npz"
    zero = given.train.energy.mean()
    energy = given.test.energy - zero + [0.01, -0.03, 0.01]
    forces = given.test.forces + 0.02
    forces[2, 1, 1] += 0.02
    np.savez(path, energy=energy, forces=forces)
    found = measurement.errors(given, path)
    assert found["energy_mae"] == pytest.approx(0.05 / 3)
    assert found["force_mae"] == pytest.approx(0.02 + 0.02 / 27)
    assert found["efwt"] == pytest.approx(1 / 3)  # the second by its energy, the third by a force
    np.savez(path, energy=energy, forces=forces[:2])
    with pytest.raises(Failed, match="forces of shape"):
        measurement.errors(given, path)
    np.savez(path, energy=energy * np.nan, forces=forces)
    with pytest.raises(Failed, match="energies that are not finite"):
        measurement.errors(given, path)


def test_every_option_and_frame_is_part_of_the_identity(tmp_path):
    made_up = peer(tmp_path, "identity", HEAD)
    given = task()
    first = identity(made_up, given, "a machine")
    assert json.loads(json.dumps(first)) == first
    others = [
        identity(made_up, task(2.0), "a machine"),
        identity(made_up, given, "another"),
        identity(peer(tmp_path, "other", HEAD), given, "a machine"),
    ]
    made_up.settings = lambda: {"width": 2}
    others.append(identity(made_up, given, "a machine"))
    assert all(first != other for other in others)
    moved = frames(3, 2)
    moved.forces[0, 0, 0] += 1e-9
    changed = Task(given.train, given.validation, moved, 1.0)
    assert comparison.digest(changed) != comparison.digest(given)
    assert comparison.digest(task()) == comparison.digest(given)


def test_the_table_has_figures_or_a_reason():
    figures = {
        "force_mae": 0.00446, "energy_mae": 0.0012, "efwt": 0.9, "training_seconds": 606.0,
        "md_step_seconds": 0.00033, "start_seconds": 0.31, "md_memory": 171.4,
        "bytes_on_disk": 910_000, "training": {"size": "64 × 2", "epochs": 101.7},
    }  # fmt: skip
    rows = [Row("ours", figures), Row("theirs", None, "is not installed: no | such thing")]
    ours, theirs = tables.table(COLUMNS, [row.cells() for row in rows]).splitlines()[2:]
    assert ours == "| ours | 64 × 2 | 4.46 | 1.20 | 0.900 | 10.1 | 102 | 0.33 | 0.3 | 171 | 0.91 |"
    assert theirs == f"| theirs | is not installed: no / such thing |{' – |' * 9}"


def test_every_driver_says_what_it_needs():
    assert comparison.all_peers()[0] == "biasgrad"
    for name in comparison.all_peers():
        driver = comparison.driver_of(name)
        assert json.dumps(driver.settings())
        assert driver.TITLE
        assert driver.SOURCE
        pinned = [r for r in driver.REQUIREMENTS if "==" in r]
        assert bool(pinned) == (name != "biasgrad")
    with pytest.raises(ValueError, match="no peer 'nobody'; choose of biasgrad"):
        comparison.driver_of("nobody")


def test_an_environment_that_is_not_installed_says_why(tmp_path, monkeypatch):
    class Done:
        returncode, stdout = 1, ""
        stderr = "WARNING: slow\nERROR: No matching distribution found for nothing==1\nmore\n"

    monkeypatch.setattr(environments.subprocess, "run", lambda *_, **__: Done)
    with pytest.raises(environments.NotInstalled, match="No matching distribution found") as raised:
        environments.environment(tmp_path, "nothing", ("nothing==1",), print)
    log = next(tmp_path.glob("nothing-*/pip.log"))
    assert str(log) in str(raised.value)


def test_an_environment_that_is_there_is_used_again(tmp_path, monkeypatch):
    commands = []

    class Done:
        returncode, stderr, stdout = 0, "", json.dumps({"nothing": "1"})

    monkeypatch.setattr(
        environments.subprocess, "run", lambda command, **_: commands.append(command) or Done
    )
    place = tmp_path / f"nothing-{environments._digest(('nothing==1',))}"
    place.mkdir()  # of an installation that was interrupted
    monkeypatch.setattr(environments.shutil, "rmtree", lambda folder: commands.append(folder))
    first = environments.environment(tmp_path, "nothing", ("nothing==1",), print)
    assert first[1] == {"nothing": "1"}
    assert commands[0] == place
    assert "nothing==1" in commands[2]
    count = len(commands)
    assert environments.environment(tmp_path, "nothing", ("nothing==1",), print) == first
    assert len(commands) == count


def written(path: Path, of: Frames) -> Path:
    with DatasetWriter(path) as writer:
        writer.append(of.numbers, of.positions, energy=of.energy, forces=of.forces)
    return path


def test_frames_are_split_and_copies_refused(tmp_path):
    own, tests = (
        written(tmp_path / "own.h5", frames(12, 0)),
        written(tmp_path / "t.h5", frames(5, 1)),
    )
    train, validation, test = parts(own, None, 6, 3, 3, 0)
    every = np.concatenate([train.energy, validation.energy, test.energy])
    assert sorted(every) == sorted(frames(12, 0).energy)
    train, validation, test = parts(own, tests, 6, 3, 4, 0)
    assert (len(train), len(validation)) == (6, 3)
    np.testing.assert_array_equal(test.energy, frames(5, 1).energy[:4])
    with pytest.raises(DataError, match=r"t\.h5: has 5 frames, and 6"):
        parts(own, tests, 6, 3, 6, 0)
    with pytest.raises(DataError, match=r"own.h5: frame \d+, to test on, has the structure"):
        parts(own, own, 6, 3, 12, 0)
    other = frames(2, 3)
    with DatasetWriter(tmp_path / "bare.h5") as writer:
        writer.append(other.numbers, other.positions, energy=other.energy)
    with pytest.raises(DataError, match=r"bare\.h5: its frames have no forces"):
        parts(tmp_path / "bare.h5", None, 1, 1, 0, 0)
    with DatasetWriter(tmp_path / "two.h5") as writer:
        for numbers in ([8, 1, 1], [7, 1, 1]):
            writer.append(np.array(numbers), other.positions, forces=other.forces)
    with pytest.raises(DataError, match=r"two.h5: holds 2 kinds of frames \(H2N, H2O\)"):
        parts(tmp_path / "two.h5", None, 2, 1, 1, 0)
