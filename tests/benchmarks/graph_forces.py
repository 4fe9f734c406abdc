"""Forces of graph models trained on energies or on forces, beside SchNet's and no forces at all.

    python tests/benchmarks/graph_forces.py TRAIN.extxyz TEST.extxyz --pictures docs/pictures

Without files of frames it makes copper by EMT, to see that all works. The energy stage (bias by
least squares, then energies) and the two-stage recipe (forces and stress, then the bias) see the
same training and validation frames in the same number of steps; errors are those of the test
frames, also by the `config_type` that the files name. The network of `--curve` is trained on fewer
frames, too; `voronoi` is the same network with weights by Voronoi cells. Prints Markdown tables;
`--pictures` draws forces over those of the reference, and errors over the number of training
frames.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from matplotlib.figure import Figure

from ase_biasgrad import Dataset, Potential, build_backbone, import_files, load_checkpoint
from ase_biasgrad.files import whole_file
from ase_biasgrad.training import (
    DeviceFrames,
    TrainingOptions,
    config_from,
    fit_energies,
    predict,
    train,
)

VALIDATION = 20
CONVOLUTION = {"name": "graph_convolution", "interactions": 3, "radial_functions": 25}
MODELS = {
    "schnet": {"name": "schnet", "interactions": 3, "radial_functions": 25},
    "graph_convolution": CONVOLUTION,
    "voronoi": {**CONVOLUTION, "weights": "voronoi"},
    "atomgraph": {"name": "atomgraph", "features": 80},
}
LABELS = ("energies", "forces")
TITLES = {
    **{model: model for model in MODELS},
    "graph_convolution": "distances",
    "voronoi": "Voronoi",
}
COLOURS = {"energies": "#c2452d", "forces": "#3b6ea5"}


@dataclass(frozen=True)
class Errors:
    """Errors on the test frames of one model, in meV/Å and meV per atom."""

    model: str
    labels: str
    frames: int  # that it was trained on
    seconds: float
    reference: np.ndarray  # (a, 3) meV/Å
    forces: np.ndarray  # (a, 3) errors
    energies: np.ndarray  # (m,) errors per atom
    frame_of_atom: np.ndarray  # (a,)


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.test is None:
            options.train, options.test = folder / "train.extxyz", folder / "test.extxyz"
            for seed, file in enumerate((options.train, options.test)):
                ase.io.write(file, [copper(seed, k) for k in range(60 if seed else 100)])
        for part in ("train", "test"):
            import_files([getattr(options, part)], folder / f"{part}.h5", progress=False)
        order = np.random.default_rng(0).permutation(len(Dataset(folder / "train.h5")))
        order = order[: options.frames]
        np.savetxt(folder / "validation.txt", order[:VALIDATION], "%d")
        kinds = np.array(
            [a.info.get("config_type", "not named") for a in ase.io.read(options.test, ":")]
        )
        done = []
        print(
            "| model | trained on | force MAE, meV/Å | RMSE | energy MAE, meV/atom | CPU time, s |"
        )
        print("|---|---|---|---|---|---|", flush=True)
        for model, labels, frames in plan(options, len(order) - VALIDATION):
            done.append(measured(options, folder, model, labels, order[VALIDATION:][:frames]))
            row(done[-1])
        no_forces = done[0].reference
        print(f"| none | – | {mae(no_forces):.1f} | {np.sqrt(np.mean(no_forces**2)):.1f} | – | – |")
    full = [e for e in done if e.frames == len(order) - VALIDATION]
    by_kind([e for e in full if e.model == options.curve], kinds)
    if options.pictures:
        draw_forces(
            [e for e in full if e.model in (options.curve, "voronoi")],
            options.pictures / "graph_forces.png",
        )
        draw_curve(
            [e for e in done if e.model == options.curve], options.pictures / "graph_curve.png"
        )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path, nargs="?")
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--frames", type=int, help="training and validation frames; all by default")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--curve", default="graph_convolution", help="also trained on fewer frames")
    parser.add_argument("--fewer", type=int, nargs="*", default=[24, 72])
    parser.add_argument(
        "--rivals",
        nargs="*",
        default=["schnet:forces", "atomgraph:energies", "atomgraph:forces"],
        metavar="MODEL:LABELS",
        help=f"of {', '.join(MODELS)}",
    )
    parser.add_argument("--pictures", type=Path, help="folder to draw into")
    options = parser.parse_args()
    if options.train and not options.test:
        parser.error("a file of test frames is missing: name both files, or none")
    return options


def copper(seed: int, frame: int) -> Atoms:
    """Rattled and strained copper with energy and forces of EMT."""
    random = np.random.default_rng([seed, frame])
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + random.normal(0, 0.02, (3, 3))), scale_atoms=True
    )
    atoms.positions += random.normal(0, 0.12, atoms.positions.shape)
    atoms.calc = EMT()
    atoms.get_forces()
    return atoms


def plan(options: argparse.Namespace, frames: int) -> list[tuple[str, str, int]]:
    """Model, labels and number of training frames of everything that is trained."""
    rivals = [(*rival.split(":"), frames) for rival in options.rivals]
    sizes = [frames, *options.fewer]
    return [(options.curve, labels, n) for n in sizes for labels in LABELS] + rivals


def measured(
    options: argparse.Namespace, folder: Path, model: str, labels: str, frames: np.ndarray
) -> Errors:
    begin = time.process_time()
    fit = {"energies": on_energies, "forces": on_forces}[labels]
    potential = fit(options, model, folder, frames)
    seconds = time.process_time() - begin
    test = Dataset(folder / "test.h5")
    on = DeviceFrames(test, range(len(test)), potential.cutoff)
    assert on.forces is not None
    assert on.energy is not None
    predicted, reference = predict(potential, on), 1000 * on.forces.numpy()
    energies = 1000 * (predicted.energy - on.energy.numpy()) / on.atom_counts
    forces = 1000 * predicted.forces - reference
    owner = np.repeat(np.arange(len(on)), on.atom_counts)
    return Errors(model, labels, len(frames), seconds, reference, forces, energies, owner)


def arguments(options: argparse.Namespace, model: str) -> dict:
    """Name and arguments of the backbone of a model."""
    return {"features": options.features, "cutoff": options.cutoff, **MODELS[model]}


def on_forces(
    options: argparse.Namespace, model: str, folder: Path, frames: np.ndarray
) -> Potential:
    """The two-stage recipe."""
    parts = {part: folder / f"{part}.txt" for part in ("train", "validation")}
    np.savetxt(parts["train"], frames, "%d")
    config = config_from(
        {
            "data": {"path": folder / "train.h5", **parts, "test": 0},
            "backbone": arguments(options, model),
            "force_stage": {
                "epochs": epochs(options, frames),
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "schedule": {"warmup_steps": 50},
            },
            "bias_stage": {"method": "least-squares"},
            "trainer": {"progress_bar": False},
        }
    )
    run = folder / f"{model}-forces-{len(frames)}"
    return load_checkpoint(train(config, run).checkpoint).potential


def on_energies(
    options: argparse.Namespace, model: str, folder: Path, frames: np.ndarray
) -> Potential:
    """The bias first, then the backbone on the energies that are left."""
    dataset = Dataset(folder / "train.h5")
    torch.manual_seed(0)
    elements = np.flatnonzero(dataset.compositions().sum(axis=0)).tolist()
    backbone = arguments(options, model)
    potential = Potential(build_backbone(backbone.pop("name"), backbone), elements=elements)
    how = (epochs(options, frames), options.batch_size, options.learning_rate)
    on = DeviceFrames(dataset, frames, potential.cutoff)
    fit_energies(potential, on, TrainingOptions(*how, ema_decay=0.995))
    return potential


def epochs(options: argparse.Namespace, frames: np.ndarray) -> int:
    return max(1, round(options.steps / -(-len(frames) // options.batch_size)))


def row(e: Errors) -> None:
    rmse = np.sqrt(np.mean(e.forces**2))
    print(
        f"| {e.model} | {e.labels} of {e.frames} frames | {mae(e.forces):.1f} | {rmse:.1f} "
        f"| {mae(e.energies):.2f} | {e.seconds:.0f} |",
        flush=True,
    )


def by_kind(models: list[Errors], kinds: np.ndarray) -> None:
    """Errors by the kind of frame; energies also less the median error of their kind."""
    print("\n| kind | frames | trained on | force MAE | energy MAE | less the kind's offset |")
    print("|---|---|---|---|---|---|")
    for kind in np.unique(kinds):
        mine = kinds == kind
        for e in models:
            forces, energies = e.forces[mine[e.frame_of_atom]], e.energies[mine]
            offset = mae(energies - np.median(energies))
            print(
                f"| {kind} | {mine.sum()} | {e.labels} | {mae(forces):.1f} "
                f"| {mae(energies):.2f} | {offset:.2f} |"
            )


def draw_forces(models: list[Errors], picture: Path) -> None:
    """A row of panels for each model, energies left and forces right."""
    names = list(dict.fromkeys(e.model for e in models))
    figure = Figure(figsize=(8.4, 4.1 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(LABELS), sharex=True, sharey=True, squeeze=False)
    for e in models:
        axis = axes[names.index(e.model), LABELS.index(e.labels)]
        reference = e.reference / 1000
        predicted = reference + e.forces / 1000
        edge = 1.05 * np.abs(reference).max()
        axis.plot([-edge, edge], [-edge, edge], color="0.6", lw=0.8)
        axis.plot(
            reference.ravel(), predicted.ravel(), ".", ms=2, alpha=0.6, color=COLOURS[e.labels]
        )
        axis.set(
            title=f"{TITLES[e.model]}, trained on {e.labels}: {mae(e.forces):.0f} meV/Å",
            xlim=(-edge, edge),
            ylim=(-edge, edge),
            aspect="equal",
        )
    figure.supxlabel("reference force, eV/Å")
    figure.supylabel("predicted force, eV/Å")
    save(figure, picture)


def draw_curve(models: list[Errors], picture: Path) -> None:
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for labels in LABELS:
        mine = sorted((e for e in models if e.labels == labels), key=lambda e: e.frames)
        for axis, of in zip(axes, ("forces", "energies"), strict=True):
            values = [mae(getattr(e, of)) for e in mine]
            axis.plot([e.frames for e in mine], values, "o-", color=COLOURS[labels], label=labels)
    axes[0].axhline(mae(models[0].reference), color="0.6", ls="--", label="no forces")
    for axis, name in zip(axes, ("force MAE, meV/Å", "energy MAE, meV/atom"), strict=True):
        axis.set(xscale="log", xlabel="training frames", ylabel=name)
        axis.set_ylim(0)
        axis.minorticks_off()
        ticks = sorted({e.frames for e in models})
        axis.set_xticks(ticks, [str(k) for k in ticks])
    axes[1].legend(*axes[0].get_legend_handles_labels(), title="trained on", frameon=False)
    save(figure, picture)


def save(figure: Figure, picture: Path) -> None:
    with whole_file(picture) as path:
        figure.savefig(path, dpi=110, format="png")


def mae(errors: np.ndarray) -> float:
    return float(np.abs(errors).mean())


if __name__ == "__main__":
    main()
