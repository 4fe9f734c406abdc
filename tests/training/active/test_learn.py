"""The loop: rounds, budget, failures, interruptions; the reference is EMT."""

import functools
import json
import re
from concurrent.futures import Executor

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from helpers import biasgrad
from inline import Inline

from ase_biasgrad import BiasGradCalculator, Dataset, load_checkpoint
from ase_biasgrad.training.active import explorers
from ase_biasgrad.training.active.explorers import Task, explore, tasks
from ase_biasgrad.training.active.folder import LearnError, LearnFolder, split_of
from ase_biasgrad.training.active.jobs import Jobs
from ase_biasgrad.training.active.learn import learn, seconds_left
from ase_biasgrad.training.active.members import merged
from ase_biasgrad.training.active.options import LearnOptions
from ase_biasgrad.training.active.report import rounds_table, write_learning_report

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MAKE = functools.partial(BiasGradCalculator, device="cpu")
SMALL = {
    "backbone": {"name": "schnet", "features": 16, "interactions": 1, "cutoff": 4.0},
    "force_stage": {"batch_size": 4},
    "trainer": {"accelerator": "cpu"},
}


class Moody(EMT):
    """EMT that fails on some structures."""

    share = 0.2

    def calculate(self, atoms=None, *arguments, **keywords):
        if (abs(atoms.positions).sum() * 1e3) % 1 < self.share:
            raise RuntimeError("did not converge")
        super().calculate(atoms, *arguments, **keywords)


class Sulky(Moody):
    """EMT that always fails."""

    share = 1.1


def settings(**changes) -> LearnOptions:
    given = {
        "calculator": "emt", "temperatures": (300.0, 600.0), "budget": 18, "initial": 12,
        "per_round": 6, "members": 2, "steps": 40, "trajectories": 2,
        "limit": 0.01, "training_steps": 8,
        "final_steps": 12, "config": SMALL,
    }  # fmt: skip
    return LearnOptions(**{**given, **changes})


def run(folder: LearnFolder, executor: Executor | None = None):
    said: list[str] = []
    return learn(folder, Jobs(lambda: executor or Inline()), MAKE, said.append), said


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    path = tmp_path_factory.mktemp("learn") / "learned"
    folder = LearnFolder.new(path, [molecule("CH3CH2OH")], settings())
    return folder, *run(folder)


def positions(path) -> list:
    return [frame.positions.tolist() for frame in Dataset(path)]


def test_the_budget_is_spent_in_rounds(learned):
    folder, result, said = learned
    assert [r["labels"] for r in result.rounds] == [12, 18]
    assert result.why == "the budget of 18 labels is spent"
    assert len(Dataset(result.data)) == 18
    assert "round 0 labels 12 structures by emt" in said[0]
    assert "round 1: 18 of 18 labels, force MAE" in said[2]
    assert re.search(r"4 of 4 explorations were unsure, \d+ min left at most", said[2])
    assert load_checkpoint(result.potential).potential.bias.zero != "none"
    atoms = molecule("CH3CH2OH")
    atoms.calc = MAKE(result.committee)
    atoms.get_forces()
    assert "forces_interval" in atoms.calc.results
    report = write_learning_report(folder, result)
    assert "ended because the budget" in (report / "summary.txt").read_text()
    assert (report / "rounds.png").stat().st_size > 0
    assert json.loads((report / "summary.json").read_text())["rounds"] == result.rounds
    assert (report / "reliability.png").stat().st_size > 0
    told = json.loads((report / "reliability.json").read_text())
    assert told["force_mae"] == pytest.approx(result.rounds[-1]["force_mae"], rel=1e-6)
    assert told["coverage_left_out"] == result.rounds[-1]["coverage"]
    assert {"H", "all"} <= set(told["calibration"]["forces"])  # C and O are too few on their own


def test_labels_are_those_of_the_reference(learned):
    for frame in Dataset(learned[1].data):
        atoms = frame.atoms()
        expected, atoms.calc = atoms.get_forces(), EMT()
        assert np.allclose(atoms.get_forces(), expected)
        assert frame.energy == pytest.approx(atoms.get_potential_energy())


def test_frames_that_are_chosen_differ(learned):
    found = np.array(positions(learned[1].data))
    apart = np.abs(found[:, None] - found[None]).max(axis=(2, 3))
    assert apart[~np.eye(len(found), dtype=bool)].min() > 1e-3


def test_members_go_on_from_their_own_and_validation_frames_stay_so(learned):
    folder = learned[0]
    one, two = (json.loads(folder.round(n).split.read_text()) for n in (0, 1))
    assert set(one["validation"]) <= set(two["validation"])
    assert set(one["train"]) <= set(two["train"])
    parent = load_checkpoint(folder.round(1).member(1) / "potential.safetensors").training["parent"]
    assert (
        parent["sha256"]
        == load_checkpoint(folder.round(0).member(1) / "potential.safetensors").sha256
    )


@pytest.mark.parametrize("seed", range(2))
def test_interrupted_runs_end_as_if_they_had_not_been(learned, tmp_path, seed):
    random = np.random.default_rng(seed)
    folder = LearnFolder.new(tmp_path / "x", [molecule("CH3CH2OH")], settings())
    for _ in range(40):
        try:
            result, _ = run(folder, Inline(int(random.integers(1, 20))))
            break
        except KeyboardInterrupt:
            folder = LearnFolder.existing(tmp_path / "x")
    assert positions(result.data) == positions(learned[1].data)
    tensors = [load_checkpoint(r.potential).potential.state_dict() for r in (result, learned[1])]
    for name, tensor in tensors[0].items():
        assert tensor.numpy().tobytes() == tensors[1][name].numpy().tobytes()


def test_it_ends_when_no_trajectory_stops(tmp_path):
    options = settings(limit=1e6, explorers=("md", "displacements", "relaxation"))
    folder = LearnFolder.new(tmp_path / "x", [molecule("CH3CH2OH")], options)
    result, _ = run(folder)
    assert result.why == "no exploration was unsure"
    assert [e["steps"] for e in result.rounds[0]["explored"][:2]] == [40, 40]
    assert len(result.rounds) == 1


def test_failures_are_left_out_and_named(tmp_path):
    options = settings(calculator="test_learn:Moody")
    folder = LearnFolder.new(tmp_path / "x", [molecule("CH3CH2OH")], options)
    result, said = run(folder)
    last = result.rounds[-1]
    assert last["failed"] > 0
    assert last["labels"] + last["failed"] == 18
    assert any("has no label: RuntimeError: did not converge" in line for line in said)
    report = write_learning_report(folder, result)
    assert "did not converge" in (report / "summary.txt").read_text()
    assert "failed" in rounds_table(result.rounds)


def test_too_many_failures_stop_it(tmp_path):
    options = settings(calculator="test_learn:Sulky")
    folder = LearnFolder.new(tmp_path / "x", [molecule("CH3CH2OH")], options)
    with pytest.raises(LearnError, match=r"failed on 6 of 6 structures.*did not converge"):
        run(folder)


def test_a_crystal_is_strained_and_a_path_explored(learned, tmp_path):
    from ase.build import bulk

    folder, options = learned[0], settings(explorers=("strain", "neb"), limit=1e6)
    crystal = bulk("Cu", cubic=True)
    with pytest.raises(ValueError, match="needs two after each other"):
        tasks([crystal], options, 0)
    ethanol, other = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    other.rotate(10, "z")
    found = tasks([ethanol, other, crystal], options, 0)
    assert [(t.explorer, t.start) for t in found] == [
        ("strain", "structure 2"),
        ("strain", "structure 2"),
        ("neb", "structure 0"),
    ]
    result = explore(found[-1], options, folder.round(0).committee, MAKE)
    assert result.steps >= 9
    assert result.stopped is None
    box = ethanol.copy()
    box.set_cell([7, 7, 7])
    box.pbc = True
    task = Task("strain", (box,), "structure 0", 0.0, (0,))
    assert explore(task, options, folder.round(0).committee, MAKE).steps == 40


class Told(Calculator):
    """Tells expected errors one after another, in eV/Å."""

    implemented_properties = ("energy", "forces")

    def __init__(self, errors) -> None:
        super().__init__()
        self.errors = iter(errors)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        std = np.zeros((len(atoms), 3))
        std[-1, 0] = next(self.errors)
        self.results = {"energy": 0.0, "forces": np.zeros_like(std), "forces_std": std}


def watched(errors, limit: float, end: float):
    """Findings on the way of a structure with these expected errors."""
    atoms, watch = molecule("H2O"), explorers.Watch("walk", limit, end)
    atoms.calc = Told(errors)
    for k in range(len(errors)):
        atoms.positions[0, 0] = k
        if not watch.goes_on(atoms):
            break
    return watch.found


def test_a_committee_that_is_unsure_everywhere_leads_on_and_an_unusual_frame_ends_it():
    found = watched([0.1, 0.2, 0.4, 0.5, 0.1, 0.9, 0.1], limit=0.3, end=0.8)
    assert found.steps == 6
    assert found.largest == 0.9
    assert found.stopped == "a force is expected to be off by 0.400 eV/Å"
    assert [atoms.positions[0, 0] for atoms in found.candidates] == [1, 2, 3, 5]
    assert watched([0.1, 0.2, 0.25], limit=0.3, end=0.8).stopped is None


def test_many_candidates_are_thinned_out_evenly():
    count = 7 * explorers.MOST_CANDIDATES
    found = watched([0.2] * count + [0.9], limit=0.3, end=0.8)
    places = [int(atoms.positions[0, 0]) for atoms in found.candidates]
    assert explorers.MOST_CANDIDATES / 2 < len(places) <= explorers.MOST_CANDIDATES + 1
    assert places[0] == 0
    assert places[-1] == count  # what ended it
    assert set(np.diff(places[:-1])) == {8}


def test_explorations_go_on_from_the_newest_frames():
    ethanol, water = molecule("CH3CH2OH"), molecule("H2O")
    labelled = [(water, ethanol)[k % 2] for k in range(80)]
    options = settings(trajectories=5, temperatures=(300.0, 600.0))
    first = [t.start for t in tasks([ethanol], options, 0, labelled)]
    assert first == ["structure 0"] * 10  # displaced copies are no places to go on from
    later = range(1, 21)
    starts = [t.start for number in later for t in tasks([ethanol], options, number, labelled)]
    assert starts.count("structure 0") == 20 * 2
    frames = {int(start.split()[1]) for start in starts if start.startswith("frame")}
    assert frames == set(range(61, 81, 2))  # the last ten of ethanol
    few = [t.start for t in tasks([ethanol], options, 1, labelled[:2])]
    assert set(few) == {"structure 0", "frame 1"}


def test_what_cannot_be_used_is_refused(tmp_path):
    for change, said in (
        ({"explorers": ("swim",)}, "'swim' is unknown"),
        ({"budget": 5}, "less than 12 initial"),
        ({"temperatures": (-1.0,)}, "above 0 K"),
        ({"members": 1}, "members is 1"),
    ):
        with pytest.raises(ValueError, match=said):
            settings(**change)
    with pytest.raises(LearnError, match=r"no learn\.json"):
        LearnFolder.existing(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(FileExistsError, match="--resume"):
        LearnFolder.new(tmp_path, [molecule("H2O")], settings())


def test_options_are_merged_group_by_group():
    base = {"a": {"name": "x", "k": 1}, "b": {"c": {"d": 1}}}
    assert merged(base, {"a": {"k": 2}, "b": {"c": {"e": 2}}}) == {
        "a": {"name": "x", "k": 2}, "b": {"c": {"d": 1, "e": 2}},
    }  # fmt: skip
    assert merged(base, {"a": {"name": "y"}})["a"] == {"name": "y"}


def test_the_time_that_is_left_is_that_of_rounds_and_of_the_last_training():
    summary = {"labels": 11, "failed": 1, "seconds": 60.0, "seconds_of_member": 10.0}
    last = 10.0 * 2.5 * 12 / 8
    assert seconds_left(summary, settings(), ended=False) == pytest.approx(60 + last)
    assert seconds_left(summary, settings(), ended=True) == pytest.approx(last)


def test_every_fifth_frame_validates():
    assert split_of(11) == {"train": [0, 1, 2, 3, 5, 6, 7, 8, 10], "validation": [4, 9]}


def test_the_command_in_processes(tmp_path):
    line = ("learn", "CH3CH2OH", "-o", "out", "--calculator", "emt", "--budget", 12)
    small = ("--initial", 12, "--members", 2, "--steps", 10, "--limit", 1e6, "--workers", 2)
    options = ("backbone.name=schnet", "backbone.features=16", "trainer.accelerator=cpu")
    more = [word for option in options for word in ("--option", option)]
    steps = ("--training-steps", 8, "--final-steps", 8)
    said = biasgrad(tmp_path, *line, *small, *more, *steps)
    assert "no exploration was unsure" in said
    assert (tmp_path / "out" / "report" / "rounds.png").exists()
    again = biasgrad(tmp_path, "learn", "--resume", "out")
    assert "no exploration was unsure" in again
    assert "exists" in biasgrad(tmp_path, *line, code=1)
