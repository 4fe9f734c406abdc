"""Active learning against blind sampling: force error by labels, and coverage of the intervals.

    python tests/benchmarks/active_learning.py -o study --seed 0 --seed 1 --seed 2

`biasgrad learn` at 300 and 600 K, and `biasgrad data sample` at the same temperatures, from one
structure, labelled by one reference. The final potential is trained in the same way on the first n
frames of either, and its forces are compared with the reference on independent dynamics at each
temperature. 90 % intervals are those of the committee of the round that had as many labels.

Each result is a file in the folder. What is there is not done again, so the same line goes on after
an interruption, or adds seeds. Prints a Markdown table and how many blind frames have the error of
n that were asked for; writes `active_learning.svg`.
"""

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.data.labelling import Reference, prepare
from ase_biasgrad.data.sampling import sample, starting_structure

TEMPERATURES = (300.0, 600.0)
# steps between two frames; 25 fs, so that frames of the blind sample are hardly correlated
INTERVAL = 50
YTICKS = (2, 5, 10, 20, 50, 100)  # meV/Å
Found = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--structure", default="CH3CH2OH")
    parser.add_argument("--calculator", default="gfn2-xtb")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--labels", type=int, nargs="*", default=[100, 200], help="of learn")
    parser.add_argument("--blind", type=int, nargs="*", default=[50, 100, 200, 400])
    parser.add_argument("--test", type=int, default=500, help="frames at each temperature")
    parser.add_argument("--interval", type=int, default=INTERVAL)
    parser.add_argument("--workers", type=int, default=2, help="processes; 1: this one does it")
    parser.add_argument("--settings", type=json.loads, default={}, help="of LearnOptions, JSON")
    options = parser.parse_args()
    prepare(Reference(options.calculator))  # tblite has to be loaded before torch
    study = Study(options)
    for seed in options.seed or [0]:
        study.run(seed)
    study.tell()


class Study:
    """The study in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.path = options, options.output
        self.path.mkdir(parents=True, exist_ok=True)
        self.tests = {}
        for temperature in TEMPERATURES:
            self.tests[temperature] = self.path / f"test{temperature:g}.h5"
            self.sampled(self.tests[temperature], [temperature], options.test, 10_000)

    def sampled(self, path: Path, temperatures: Sequence[float], frames: int, seed: int) -> Path:
        """A dataset of dynamics; `frames` at each temperature."""
        if not path.exists():
            calculator = Reference(self.options.calculator).calculator()
            atoms = starting_structure(self.options.structure)
            sample(
                atoms,
                calculator,
                path,
                temperatures=temperatures,
                frames=frames,
                interval=self.options.interval,
                seed=seed,
                progress=False,
            )
        return path

    def kept(self, name: str, compute: Callable[[], Found]) -> Found:
        """The result of that name, computed if it is not there."""
        from ase_biasgrad.training.active.folder import write_json

        path = self.path / "results" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            print(f"{name} …", flush=True)
            write_json(path, compute())
        found: Found = json.loads(path.read_text(encoding="utf-8"))
        return found

    # --- the work of one seed --------------------------------------------------------------

    def run(self, seed: int) -> None:
        """All results of one seed."""
        learned = self.learned(seed)
        for n in self.options.labels:
            self.kept(f"learn-{seed}-{n}", functools.partial(self.of_learned, learned, n, seed))
        for n in self.options.blind:
            self.kept(f"blind-{seed}-{n}", functools.partial(self.of_blind, n, seed))

    def learned(self, seed: int) -> Any:
        """Folder of the active learning, which is finished."""
        from ase_biasgrad import BiasGradCalculator
        from ase_biasgrad.training.active.folder import LearnFolder
        from ase_biasgrad.training.active.jobs import MakeExecutor, process_executor, running
        from ase_biasgrad.training.active.learn import learn
        from ase_biasgrad.training.active.options import LearnOptions

        path, options = self.path / f"learned{seed}", self.learn_options(seed)
        if (path / "learn.json").exists():
            folder = LearnFolder.existing(path)
        else:
            structures = [starting_structure(self.options.structure)]
            folder = LearnFolder.new(path, structures, LearnOptions(**options))
        if not (path / "potential.safetensors").exists():
            make = functools.partial(BiasGradCalculator, device="cpu")
            reference, workers = Reference(self.options.calculator), self.options.workers
            executor: MakeExecutor = functools.partial(ThreadPoolExecutor, 1)
            if workers > 1:
                executor = process_executor(workers, reference)
            with running(executor) as jobs:
                learn(folder, jobs, make, lambda line: print(line, flush=True))
        return folder

    def learn_options(self, seed: int) -> Found:
        """Options of `learn` in the study."""
        return {
            "calculator": self.options.calculator,
            "temperatures": TEMPERATURES,
            "budget": max(self.options.labels),
            "per_round": max(1, (max(self.options.labels) - 20) // 4),
            "seed": seed,
            **self.options.settings,
        }

    def of_learned(self, folder: Any, n: int, seed: int) -> Found:
        """Errors of a potential trained on the first n labels, and coverage of the intervals."""
        found = self.trained(folder.path / "data.h5", n, seed, f"learn-{seed}-{n}")
        rounds = [r for r in folder.rounds() if r.summary.exists()]
        labels = [json.loads(r.summary.read_text())["labels"] for r in rounds]
        own = rounds[int(np.argmin(np.abs(np.array(labels) - n)))]
        covered = {f"{t:g}": coverage_on(own.committee, self.tests[t]) for t in TEMPERATURES}
        return {**found, "coverage": covered, "committee_labels": labels[own.number]}

    def of_blind(self, n: int, seed: int) -> Found:
        """Errors of a potential trained on n frames of dynamics, half at each temperature."""
        each = -(-n // len(TEMPERATURES))
        path = self.sampled(self.path / f"blind{seed}-{n}.h5", TEMPERATURES, each, 100 + seed)
        return self.trained(path, n, seed, f"blind-{seed}-{n}")

    # --- measures --------------------------------------------------------------------------

    def trained(self, data: Path, n: int, seed: int, name: str) -> Found:
        """Errors on the tests of the final potential of `learn`, trained on the first n frames."""
        from ase_biasgrad.checkpoint import load_checkpoint

        folder = self.path / "trainings" / name
        potential = load_checkpoint(
            trained_as(self.path / f"learned{seed}", data, n, folder)
        ).potential
        return {
            "labels": n,
            "errors": {f"{t:g}": force_errors(potential, self.tests[t]) for t in TEMPERATURES},
        }

    # --- what is told ----------------------------------------------------------------------

    def tell(self) -> None:
        """Print the table of all seeds that have results, and draw the curves."""
        rows = {kind: self.by_labels(kind) for kind in ("learn", "blind")}
        print("\n| data | labels | seeds | MAE 300 K | MAE 600 K | inside, 300 K | inside, 600 K |")
        print("|---|---|---|---|---|---|---|")
        for kind, results in rows.items():
            for n, found in sorted(results.items()):
                maes = [1000 * np.array([f["errors"][t]["mae"] for f in found]) for t in KELVIN]
                told = [f"{m.mean():.1f} ± {m.std():.1f}" if len(m) > 1 else f"{m[0]:.1f}"
                        for m in maes]  # fmt: skip
                cover = [
                    f"{np.mean([f['coverage'][t]['forces'] for f in found]):.1%}"
                    if kind == "learn"
                    else ""
                    for t in KELVIN
                ]
                print(f"| {kind} | {n} | {len(found)} | {' | '.join([*told, *cover])} |")
        print("\nMAE in meV/Å; inside: of the 90 % intervals of the committee\n")
        for n, found in sorted(rows["learn"].items()):
            error = float(np.mean([f["errors"]["600"]["mae"] for f in found]))
            print(f"{n} labels of learn have the error of {frames_for(error, rows['blind'])}")
        draw(rows, self.path / "active_learning.svg")

    def by_labels(self, kind: str) -> dict[int, list[Found]]:
        """Results of all seeds by number of labels."""
        found: dict[int, list[Found]] = {}
        for path in sorted((self.path / "results").glob(f"{kind}-*.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(result["labels"], []).append(result)
        return found


def trained_as(learned: Path, data: Path, n: int, folder: Path) -> Path:
    """Checkpoint of a training like the last one in a folder of `learn`, on the first n frames."""
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.active.folder import LearnFolder, split_of, write_json
    from ase_biasgrad.training.active.learn import FINAL_EVERY
    from ase_biasgrad.training.active.members import final_config, train_in

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "split.json", split_of(min(n, len(Dataset(data))), FINAL_EVERY))
    config = final_config(LearnFolder(learned), folder / "split.json")
    config["data"]["path"] = str(data.resolve())
    train_in(folder / "run", config)
    return folder / "run" / "potential.safetensors"


def force_errors(potential: Any, data: Path) -> Found:
    """Errors of forces in eV/Å on a dataset."""
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.evaluation.predict import predict
    from ase_biasgrad.training.frames.device_frames import DeviceFrames

    dataset = Dataset(data)
    frames = DeviceFrames(dataset, range(len(dataset)), potential.cutoff)
    errors = predict(potential, frames).forces - frames.forces.numpy()
    return {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt(np.mean(errors**2)))}


def coverage_on(committee: Path, data: Path) -> Found:
    """Share of the errors of a committee's forces inside of its intervals, on a dataset."""
    from ase_biasgrad.committee_file import read_committee
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.evaluation.committee import coverage, errors_of_file

    stored, dataset = read_committee(committee), Dataset(data)
    covered = coverage(stored.calibration, errors_of_file(stored, dataset, range(len(dataset))))
    return {"forces": covered.forces, "by_element": covered.by_element}


KELVIN = [f"{t:g}" for t in TEMPERATURES]


def frames_for(error: float, blind: dict[int, list[Found]]) -> str:
    """Blind frames that have an error at 600 K, between those measured on a log-log scale."""
    labels = sorted(blind)
    errors = [float(np.mean([f["errors"]["600"]["mae"] for f in blind[n]])) for n in labels]
    if not errors or error < min(errors):
        return f"more than {labels[-1] if labels else 0} blind frames"
    if error > errors[0]:
        return f"fewer than {labels[0]} blind frames"
    falling = np.minimum.accumulate(errors)
    n = np.exp(np.interp(-np.log(error), -np.log(falling), np.log(labels)))
    return f"{n:.0f} blind frames"


def draw(rows: dict[str, dict[int, list[Found]]], path: Path) -> None:
    """Curves of the error at each temperature."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    looks = {"learn": ("#c1440e", "active learning"), "blind": ("#2a6f97", "blind sampling")}
    for axes, kelvin in zip(figure.subplots(1, 2, sharey=True), KELVIN, strict=True):
        for kind, (colour, name) in looks.items():
            points = [
                (n, 1000 * f["errors"][kelvin]["mae"])
                for n, found in sorted(rows[kind].items())
                for f in found
            ]
            labels = sorted({n for n, _ in points})
            means = [np.mean([e for m, e in points if m == n]) for n in labels]
            axes.plot(labels, means, color=colour, label=name)
            axes.plot([n for n, _ in points], [e for _, e in points], "o", color=colour, ms=4)
        axes.set(xscale="log", yscale="log", xlabel="labels", title=f"test at {kelvin} K")
        ticks = sorted({n for found in rows.values() for n in found})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_yticks(YTICKS, [str(e) for e in YTICKS])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("force MAE (meV/Å)")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
