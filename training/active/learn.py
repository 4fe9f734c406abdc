"""Active learning: explore with a committee, label what it is not sure of, train, and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.calibration import Calibration
from ase_biasgrad.committee_file import StoredCommittee, read_committee
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.labelling import Reference, labelled
from ase_biasgrad.data.writer import closest_pair
from ase_biasgrad.files import whole_file
from ase_biasgrad.training.active.displacements import heat_displacements
from ase_biasgrad.training.active.explorers import Exploration, MakeCalculator, explore, tasks
from ase_biasgrad.training.active.features import farthest_points, structure_features
from ase_biasgrad.training.active.folder import (
    LearnError,
    LearnFolder,
    Round,
    read_json,
    split_of,
    write_json,
)
from ase_biasgrad.training.active.jobs import Jobs
from ase_biasgrad.training.active.members import final_config, member_config, train_in
from ase_biasgrad.training.active.options import LearnOptions
from ase_biasgrad.training.evaluation.committee import (
    CommitteeErrors,
    coverage,
    errors_of_file,
    make_committee,
)

if TYPE_CHECKING:
    from ase import Atoms

FEW_FAILURES, SHARE = 5, 0.2  # more failures than both stop it
TOO_CLOSE = 0.4  # Å; structures that no reference describes
FINAL_EVERY = 10  # frames, of which one validates the final potential
FINAL_STEP = 2.5  # duration of a step of the final training in those of a member
Say = Callable[[str], None]


@dataclass(frozen=True)
class Learned:
    """The results of active learning.

    Attributes
    ----------
    potential, committee, data
        Files of the final potential, the last committee, and all labelled frames.
    rounds
        Summaries of the rounds in JSON values.
    why
        The reason of its end.
    """

    potential: Path
    committee: Path
    data: Path
    rounds: list[dict[str, Any]]
    why: str


def learn(folder: LearnFolder, jobs: Jobs, make: MakeCalculator, say: Say = print) -> Learned:
    """Go on with active learning in a folder to its end; what is done already is not done again.

    Parameters
    ----------
    folder
        As made by `LearnFolder.new`, with whatever rounds are in it.
    jobs
        Labels, members and explorations run in its executor.
    make
        Makes the calculator of a committee from its file.
    say
        Gets one line a round.

    Raises
    ------
    LearnError
        If the reference fails too often, or no structure suits an explorer.
    """
    options, structures = folder.options(), folder.structures()
    tasks(structures, options, 0)  # refuses what suits no structure, before any work
    begun, number, why = time.monotonic(), 0, ""
    if not folder.round(0).chosen_file.exists():
        folder.round(0).choose(first_structures(structures, options))
    if not folder.round(0).summary.exists():
        say(f"{folder.path}: round 0 labels {options.initial} structures by {options.calculator}")
    while not why:
        own, start = folder.round(number), time.monotonic()
        if not own.summary.exists():
            _label(folder, own, options, jobs, say)
            of_member = _train(folder, own, options, jobs)
            found = _explore(folder, own, structures, options, jobs, make)
            summary = _summary(folder, own, options, found)
            seconds = {"seconds": time.monotonic() - start, "seconds_of_member": of_member}
            write_json(own.summary, {**summary, **seconds})
        summary = read_json(own.summary)
        why = _why_end(folder, number, options, summary)
        say(line(summary, options, seconds_left(summary, options, ended=bool(why))))
        number += 1
    summaries = [read_json(r.summary) for r in folder.rounds() if r.summary.exists()]
    say(f"{why}; training the final potential on {summaries[-1]['labels']} frames")
    potential = _finish(folder, number - 1, options, jobs)
    say(f"done in {(time.monotonic() - begun) / 60:.1f} min")
    committee = folder.path / "committee.safetensors"
    return Learned(potential, committee, folder.data, summaries, why)


def first_structures(structures: Sequence[Atoms], options: LearnOptions) -> list[Atoms]:
    """Structures for the first labels: the given ones, and displaced and strained copies."""
    random = np.random.default_rng([options.seed, 0])
    found = [atoms.copy() for atoms in structures]
    while len(found) < options.initial:
        k = len(found)
        atoms = structures[k % len(structures)].copy()
        found.append(_displaced(atoms, random.uniform(0.2, 0.6), options, random))
    for atoms in found:
        atoms.info = {"found_by": "start"}
        atoms.set_constraint()
    return found


def _displaced(
    atoms: Atoms, size: float, options: LearnOptions, random: np.random.Generator
) -> Atoms:
    if atoms.pbc.any():
        strain = size * options.strain * random.uniform(-1, 1, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    atoms.positions += heat_displacements(atoms, size * options.displacement, random)
    return atoms


# --- the parts of a round --------------------------------------------------------------------


def _label(folder: LearnFolder, own: Round, options: LearnOptions, jobs: Jobs, say: Say) -> None:
    """Label what was chosen; each label is in the dataset as soon as it is known."""
    reference = Reference(options.calculator, options.arguments)
    chosen, failed = own.chosen(), own.failures()
    done = folder.labelled(own.number)
    missing = [k for k in range(len(chosen)) if k not in done and k not in failed]
    before = [len(r.chosen()) - len(r.failures()) for r in folder.rounds()[: own.number]]
    with folder.appender() as writer:
        for place, result in jobs.results(labelled, [(reference, chosen[k]) for k in missing]):
            k = missing[place]
            if not isinstance(result, BaseException):
                own.keep(writer, k, chosen[k], result)
                done.add(k)
                continue
            reason = f"{type(result).__name__}: {result}"
            own.fail(k, reason)
            say(f"round {own.number}: structure {k} of {own.chosen_file} has no label: {reason}")
            _check_failures(folder, own, sum(before) + len(done), reason)


def _check_failures(folder: LearnFolder, own: Round, labels: int, reason: str) -> None:
    failed = sum(len(each.failures()) for each in folder.rounds())
    tried = labels + failed
    if failed > max(FEW_FAILURES, SHARE * tried):
        raise LearnError(
            f"{folder.path}: {folder.options().calculator} failed on {failed} of {tried} "
            f"structures, the last time with {reason}; mend it, delete "
            f"{own.path / 'failed'}/*.json, and go on with `biasgrad learn --resume {folder.path}`"
        )


def _train(folder: LearnFolder, own: Round, options: LearnOptions, jobs: Jobs) -> float:
    """Train the members on all labels up to this round, and join them; seconds of a member."""
    if own.committee.exists():
        return 0.0
    if not own.split.exists():
        write_json(own.split, split_of(len(folder.frames())))
    before = folder.round(own.number - 1) if own.number else None
    configs = [member_config(folder, own, before, k) for k in range(options.members)]
    runs = [own.member(k) for k in range(options.members)]
    seconds = _finished(jobs, train_in, list(zip(runs, configs, strict=True)), "training", runs)
    make_committee(runs, own.committee, {"round": own.number})
    return float(max(seconds))


def _finished(
    jobs: Jobs,
    function: Callable[..., Any],
    work: Sequence[tuple[Any, ...]],
    what: str,
    names: Sequence[str | Path],
) -> list[Any]:
    """Results of all work, in its order; `LearnError` tells what failed first."""
    found = {}
    for place, result in jobs.results(function, work):
        if isinstance(result, BaseException):
            raise LearnError(f"{names[place]}: the {what} failed: {result}") from result
        found[place] = result
    return [found[place] for place in range(len(work))]


def _explore(
    folder: LearnFolder,
    own: Round,
    structures: Sequence[Atoms],
    options: LearnOptions,
    jobs: Jobs,
    make: MakeCalculator,
) -> list[dict[str, Any]]:
    """Explore with the committee, and choose what the next round labels."""
    if own.explored.exists():
        return list(read_json(own.explored))
    work = tasks(structures, options, own.number, folder.frames())
    arguments = [(task, options, own.committee, make) for task in work]
    names = [task.name for task in work]
    explorations: list[Exploration] = _finished(jobs, explore, arguments, "exploration", names)
    counts = [len(r.chosen()) for r in folder.rounds()[: own.number + 1]]
    room = min(options.per_round, options.budget - sum(counts))
    if room > 0 and any(e.stopped for e in explorations):
        chosen = _chosen(folder, own, explorations, structures, options, room)
        folder.round(own.number + 1).choose(chosen)
    told = [
        {"name": e.name, "steps": e.steps, "largest": e.largest, "stopped": e.stopped,
         "candidates": len(e.candidates)} for e in explorations
    ]  # fmt: skip
    write_json(own.explored, told)
    return told


def _chosen(
    folder: LearnFolder,
    own: Round,
    explorations: Sequence[Exploration],
    structures: Sequence[Atoms],
    options: LearnOptions,
    room: int,
) -> list[Atoms]:
    """Candidates that differ most from each other and from what has been labelled."""
    known = [atoms for n in range(own.number + 1) for atoms in folder.round(n).chosen()]
    candidates = [atoms for e in explorations for atoms in e.candidates if not _collapsed(atoms)]
    if candidates:
        features = structure_features([*known, *candidates])
        places = farthest_points(features[len(known) :], features[: len(known)], room)
        chosen = [candidates[k] for k in places]
    else:
        chosen = []
    random = np.random.default_rng([options.seed, own.number + 1])
    while len(chosen) < min(room, len(structures)):  # nothing new was met before the first stop
        atoms = structures[len(chosen) % len(structures)].copy()
        atoms.info, size = {"found_by": "displacement"}, float(random.uniform(0.2, 1.0))
        atoms.set_constraint()
        chosen.append(_displaced(atoms, size, options, random))
    return chosen


def _collapsed(atoms: Atoms) -> bool:
    return closest_pair(atoms.positions, atoms.cell.array, atoms.pbc, TOO_CLOSE) is not None


# --- what is told ----------------------------------------------------------------------------


def _summary(
    folder: LearnFolder, own: Round, options: LearnOptions, explored: list[dict[str, Any]]
) -> dict[str, Any]:
    """Numbers of a round in JSON values."""
    dataset = Dataset(folder.data)
    stored, validation = validated(own, dataset)
    return {
        "round": own.number,
        "labels": len(dataset),
        "failed": sum(len(r.failures()) for r in folder.rounds()[: own.number + 1]),
        "force_mae": float(np.abs(validation.forces).mean()),
        "energy_mae": float(np.abs(validation.energy).mean()) if len(validation.energy) else None,
        "calibration": None if stored.calibration is None else stored.calibration.record(),
        "coverage": stored.metadata["note"].get("coverage_left_out"),
        "new": _errors_on_new(folder, own, dataset),
        "explored": explored,
    }


def validated(own: Round, dataset: Dataset) -> tuple[StoredCommittee, CommitteeErrors]:
    """Committee of a round, and its errors on the validation frames of that round."""
    stored = read_committee(own.committee)
    return stored, errors_of_file(stored, dataset, read_json(own.split)["validation"])


def _errors_on_new(folder: LearnFolder, own: Round, dataset: Dataset) -> dict[str, Any] | None:
    """Errors on the frames of this round of the committee that had not seen them."""
    if own.number == 0:
        return None
    before = folder.round(own.number - 1)
    known = len(read_json(before.split)["train"]) + len(read_json(before.split)["validation"])
    if known == len(dataset):
        return None
    stored, new = read_committee(before.committee), np.arange(known, len(dataset))
    errors, calibration = errors_of_file(stored, dataset, new), stored.calibration
    assert isinstance(calibration, Calibration)
    std, _ = calibration.of_forces(errors.numbers, errors.forces_spread)
    return {
        "frames": len(new),
        "force_mae": float(np.abs(errors.forces).mean()),
        "force_rmse": float(np.sqrt(np.mean(errors.forces**2))),
        "expected_rmse": float(np.sqrt(np.mean(std**2))),
        "coverage": coverage(calibration, errors).forces,
    }


def seconds_left(summary: dict[str, Any], options: LearnOptions, ended: bool) -> float:
    """Seconds to the end if the budget is spent: rounds like this one, and the last training."""
    rest = max(0, options.budget - summary["labels"] - summary["failed"]) / options.per_round
    rounds = 0.0 if ended else rest * summary["seconds"]
    steps = FINAL_STEP * options.final_steps / options.training_steps
    return float(rounds + steps * summary["seconds_of_member"])


def line(summary: dict[str, Any], options: LearnOptions, seconds_left: float) -> str:
    """One line about a round."""
    stopped = sum(e["stopped"] is not None for e in summary["explored"])
    failed = f" ({summary['failed']} failed)" if summary["failed"] else ""
    new = summary["new"]
    before = "" if new is None else f" ({1000 * new['force_mae']:.0f} on new frames, unseen)"
    minutes = max(1, round(seconds_left / 60))
    return (
        f"round {summary['round']}: {summary['labels']} of {options.budget} labels{failed}, force "
        f"MAE {1000 * summary['force_mae']:.0f} meV/Å{before}, {stopped} of "
        f"{len(summary['explored'])} explorations were unsure, {minutes} min left at most"
    )


def _why_end(
    folder: LearnFolder, number: int, options: LearnOptions, summary: dict[str, Any]
) -> str:
    """Reason to end after this round, or an empty text."""
    if not any(e["stopped"] for e in summary["explored"]):
        return "no exploration was unsure"
    if not folder.round(number + 1).chosen_file.exists():
        return f"the budget of {options.budget} labels is spent"
    return ""


def _finish(folder: LearnFolder, last: int, options: LearnOptions, jobs: Jobs) -> Path:
    """Train the final potential on all frames, which fits its bias, and write the results."""
    split = folder.path / "split.json"
    if not split.exists():
        write_json(split, split_of(len(folder.frames()), FINAL_EVERY))
    run, own = folder.path / "potential", folder.round(last)
    _finished(jobs, train_in, [(run, final_config(folder, split))], "training", [run])
    _copy(run / "potential.safetensors", folder.path / "potential.safetensors")
    _copy(own.committee, folder.path / "committee.safetensors")
    return folder.path / "potential.safetensors"


def _copy(source: Path, target: Path) -> None:
    with whole_file(target) as temporary:
        temporary.write_bytes(source.read_bytes())
