"""Two stages against joint losses on (r)MD17, a row for each bias fit and each energy weight.

Every training has a folder of its own and leaves one result when it is done: a study that was
interrupted goes on where it stopped, in the middle of a training too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.data.sets.md17 import import_md17
from ase_biasgrad.files import file_hash
from ase_biasgrad.metrics import EV_TO_KCAL_MOL
from ase_biasgrad.training.benchmarks.gradient_bias import fit_bias_by_gradient
from ase_biasgrad.training.benchmarks.results import Store
from ase_biasgrad.training.config import ForceStageOptions, TrainConfig, config_from
from ase_biasgrad.training.evaluation.evaluate import evaluate
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.lightning.loggers import read_epoch_table
from ase_biasgrad.training.run import resume, train
from ase_biasgrad.training.stages.bias import fit_bias

BIAS_FITS = ("mean", "median", "efwt", "gradient")
MOLECULES = ("aspirin", "benzene", "ethanol", "malonaldehyde", "naphthalene", "salicylic")


class Published(NamedTuple):
    """Force MAE (kcal/mol/Å), energy MAE (kcal/mol) and EFwT."""

    forces: float
    energy: float
    efwt: float


# The published table of bias-gradient regression: SchNet with 9 million parameters trained on
# 50 000 frames of MD17, labels of the original MD17 (Chmiela et al. 2017).
PUBLISHED = {
    "aspirin": Published(0.262, 0.149, 0.071),
    "benzene": Published(0.192, 0.075, 0.513),
    "ethanol": Published(0.128, 0.056, 0.904),
    "malonaldehyde": Published(0.209, 0.087, 0.637),
    "naphthalene": Published(0.150, 0.134, 0.752),
    "salicylic": Published(0.262, 0.115, 0.060),
    "toluene": Published(0.173, 0.106, 0.492),
    "uracil": Published(0.265, 0.127, 0.030),
}


@dataclass(frozen=True)
class Study:
    """Everything that is compared.

    `weights` are energy weights of joint losses. With `minutes` of each training the schedule
    follows the clock, as `force_stage.max_minutes` says; `epochs` counts otherwise.
    """

    molecules: tuple[str, ...] = MOLECULES
    backbones: tuple[str, ...] = ("painn",)
    labels: tuple[str, ...] = ("revised", "original")
    weights: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: tuple[int, ...] = (0,)
    epochs: int = 1000
    minutes: float | None = None
    train: int = 950
    validation: int = 50
    test: int = 1000
    batch_size: int = 10
    learning_rate: float = ForceStageOptions().learning_rate
    elastic_weight: float = ForceStageOptions().elastic_weight
    arguments: dict[str, Any] = field(default_factory=dict)  # of every backbone
    accelerator: str = "auto"


@dataclass(frozen=True)
class Training:
    """One training of a study; `weight` is None for two stages."""

    molecule: str
    labels: str
    backbone: str
    seed: int | None
    weight: float | None

    @property
    def name(self) -> str:
        recipe = "two-stages" if self.weight is None else f"joint-{self.weight:g}"
        return f"{self.molecule}-{self.labels}-{self.backbone}-{recipe}-{self.seed}"


@dataclass(frozen=True)
class Row:
    """Errors on test frames, in eV and eV/Å."""

    training: Training
    recipe: str
    forces: float
    energy: float
    efwt: float
    efwt_energy: float | None = None  # None where nothing was published
    efwt_forces: float | None = None
    epochs: int | None = None
    seconds: float | None = None

    def cells(self) -> list[object]:
        """The row in `COLUMNS`."""
        of, shares = self.training, (self.efwt, self.efwt_energy, self.efwt_forces)
        return [
            *(of.molecule, of.labels, of.backbone, self.recipe, of.seed),
            f"{self.forces * EV_TO_KCAL_MOL:.3f} ({1000 * self.forces:.2f})",
            f"{self.energy * EV_TO_KCAL_MOL:.3f} ({1000 * self.energy:.2f})",
            *(None if share is None else f"{share:.3f}" for share in shares),
            *(self.epochs, None if self.seconds is None else f"{self.seconds:.0f}"),
        ]


COLUMNS = (
    *("molecule", "labels", "backbone", "recipe", "seed", "force MAE, kcal/mol/Å (meV/Å)"),
    *("energy MAE, kcal/mol (meV)", "EFwT", "energy half", "force half", "epochs", "s"),
)


def published_row(molecule: str) -> Row:
    """The published row of a molecule."""
    of = Training(molecule, "original", "schnet, 9 M parameters, 50 000 frames", None, None)
    forces, energy, efwt = PUBLISHED[molecule]
    return Row(of, "published", forces / EV_TO_KCAL_MOL, energy / EV_TO_KCAL_MOL, efwt)


def run_study(study: Study, folder: Path, data: Path | None = None) -> Iterator[Row]:
    """Rows as they are finished; those in `folder` already are read, not computed.

    `folder` takes datasets, run folders and results. `data` is a folder with rMD17 files,
    `*<molecule>*train*.npz` and `*<molecule>*test*.npz` or one file `*<molecule>*.npz` of all
    frames; downloaded if None.

    Raises `DataError` if a molecule's files are missing or cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "rows", "md17")
    several = (study.molecules, study.labels, study.backbones, study.seeds, (None, *study.weights))
    for training in starmap(Training, product(*several)):
        own, tests = _datasets(training, folder / "data", data)
        digest = " ".join(Dataset(path).hash() for path in (own, tests) if path is not None)
        identity = _identity(study, training)
        result = store.find(digest, identity)
        if result is None:
            key = store.path(digest, identity, "").name.removeprefix("md17-")
            run = folder / "runs" / f"{training.name}-{key}"
            rows = _measure(study, training, own, tests, run)
            result = store.keep(digest, identity, {"rows": [asdict(row) for row in rows]})
        for values in result.figures["rows"]:
            yield Row(**{**values, "training": training})


def _identity(study: Study, training: Training) -> dict[str, Any]:
    """Options of one training: its own, and those that all of the study share."""
    several = ("molecules", "backbones", "labels", "weights", "seeds")
    shared = {name: value for name, value in asdict(study).items() if name not in several}
    fits = BIAS_FITS if training.weight is None else ()
    return {**shared, **asdict(training), "fits": fits}


def _measure(
    study: Study, training: Training, own: Path, tests: Path | None, run: Path
) -> list[Row]:
    """Train, and test on frames that the training never saw: a row for each bias fit."""
    started = (run / "config.yaml").exists()
    result = resume(run) if started else train(_config(study, training, own), run)
    table = read_epoch_table(run / "metrics.csv")
    potential = load_checkpoint(result.checkpoint).potential
    split = json.loads((run / "split.json").read_text())
    frames = DeviceFrames(Dataset(own), split["train"], potential.cutoff)
    tested = DeviceFrames(
        Dataset(own if tests is None else tests),
        _test_frames(study, own, tests, split),
        potential.cutoff,
    )

    def row(recipe: str) -> Row:
        report = evaluate(potential, tested)
        assert report.energy is not None
        assert report.efwt is not None
        of = report.efwt
        errors = (report.forces.mae, report.energy.mae, of.both, of.energy, of.forces)
        return Row(training, recipe, *errors, len(table), float(table[-1]["seconds"]))

    if training.weight is not None:
        return [row(f"joint, energy weight {training.weight:g}")]
    rows = []
    for fit in BIAS_FITS:
        if fit == "gradient":
            fit_bias_by_gradient(potential, frames)
        else:
            fit_bias(potential, frames, fit)
        rows.append(row(f"two stages, bias by {fit}"))
    return rows


def _config(study: Study, training: Training, dataset: Path) -> TrainConfig:
    joint = None if training.weight is None else {"energy_weight": training.weight}
    sizes = {"train": study.train, "validation": study.validation, "test": 0}
    options = {
        "data": {"path": str(dataset), **sizes},
        "backbone": {"name": training.backbone, **study.arguments},
        "force_stage": {
            "epochs": study.epochs,
            "max_minutes": study.minutes,
            "batch_size": study.batch_size,
            "learning_rate": study.learning_rate,
            "elastic_weight": study.elastic_weight,
            "joint": joint,
        },
        "trainer": {"progress_bar": False, "accelerator": study.accelerator},
        "seed": training.seed,
    }
    return config_from(options)


def _test_frames(
    study: Study, own: Path, tests: Path | None, split: dict[str, list[int]]
) -> np.ndarray:
    if tests is not None:
        return np.arange(min(study.test, len(Dataset(tests))))
    used = {frame for part in ("train", "validation") for frame in split[part]}
    unseen = np.setdiff1d(np.arange(len(Dataset(own))), sorted(used))
    if not len(unseen):
        raise DataError(f"{own}: training and validation leave no frame to test on")
    return np.sort(np.random.default_rng(0).permutation(unseen)[: study.test])


def _datasets(training: Training, folder: Path, data: Path | None) -> tuple[Path, Path | None]:
    """Dataset files of the frames to train on, and of those to test on if they are apart."""
    folder.mkdir(exist_ok=True)
    stem = f"{training.molecule}-{training.labels}"
    if data is None:
        path = folder / f"{stem}.h5"
        if not path.exists():
            import_md17(training.molecule, path, revised=True, labels=training.labels)
        return path, None
    sources = {
        part: sorted(data.glob(f"*{training.molecule}*{part}*.npz")) for part in ("train", "test")
    }
    if not all(sources.values()):
        sources = {"": sorted(data.glob(f"*{training.molecule}*.npz"))}
    units = ImportOptions(training.labels, energy_unit="kcal/mol", length_unit="Angstrom")
    paths = []
    for part, found in sources.items():
        if len(found) != 1:
            raise DataError(
                f"{data}: has {len(found)} files for {training.molecule} {part}, one is needed: "
                f"{[path.name for path in found]}"
            )
        # named by its content: other files of the same name are other data
        path = folder / f"{stem}{part and '-' + part}-{file_hash(found[0])[:8]}.h5"
        if not path.exists():
            import_files(found, path, units, progress=False)
        paths.append(path)
    return paths[0], paths[1] if len(paths) == 2 else None
