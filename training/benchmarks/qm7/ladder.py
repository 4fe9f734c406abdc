"""Rows of the ladder, cross-validated; every result is a file, so that runs add up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ase_biasgrad.files import whole_file
from ase_biasgrad.metrics import EV_TO_KCAL_MOL, error_norms
from ase_biasgrad.training.benchmarks.qm7 import baselines, dense_rows, kernel_rows, potentials
from ase_biasgrad.training.benchmarks.qm7.task import Answer, Molecules, Task, task_of_fold


@dataclass(frozen=True)
class Row:
    """A method: its key on the command line, its line in the table, what was published of it."""

    key: str
    title: str
    fit: Callable[[Task], Answer]
    published: str = ""


@dataclass(frozen=True)
class Result:
    """Errors of one row on one fold, in kcal/mol."""

    row: str
    fold: int
    trained_on: int  # molecules
    mae: float
    rmse: float
    seconds: float  # of processor time, which other work on the machine does not change much
    note: str
    hardware: str


def rows() -> list[Row]:
    """All rows from the bottom to the top, with one for every backbone that there is."""
    titles = {"schnet": "SchNet", "painn": "PaiNN"}
    published = {"schnet": "about 1 (DTNN)", "painn": "about 2 (directional MP)"}
    names = [key.removeprefix("bias+") for key in potentials.ROWS]
    return [
        Row("mean", "mean predictor", baselines.mean, "179"),
        Row("composition", "composition: the bias, no backbone", baselines.composition, "15"),
        Row("dense-raw", "dense network, raw inputs", dense_rows.raw),
        Row("dense-standardised", "… standardised", dense_rows.standardised),
        Row("dense-centred", "… centred, rotations, averaging", dense_rows.centred),
        Row("dense-sorted", "… on sorted Coulomb matrices", dense_rows.sorted_matrices),
        Row("dense-random", "… on random ones, expanded", dense_rows.random_matrices, "3.5"),
        Row("kernel-spectrum", "Gaussian kernel, eigenspectra", kernel_rows.spectrum, "9.9"),
        Row("kernel-sorted", "Laplacian kernel, sorted", kernel_rows.sorted_matrices, "3.07"),
        Row("bias+dense-centred", "bias + dense, centred", dense_rows.bias_and_centred),
        Row("bias+dense-random", "bias + dense, random", dense_rows.bias_and_random_matrices),
        *(
            Row(f"bias+{name}", f"bias + {titles.get(name, name)}", fit, published.get(name, ""))
            for name, fit in zip(names, potentials.ROWS.values(), strict=True)
        ),
    ]


def chosen_rows(keys: Sequence[str]) -> list[Row]:
    """Rows by their keys, all without any.

    Raises
    ------
    ValueError
        If there is no such row; the message lists those there are.
    """
    known = {row.key: row for row in rows()}
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"there are no rows {unknown}; choose from: {', '.join(known)}")
    return [known[key] for key in keys] if keys else list(known.values())


def run(
    row: Row,
    molecules: Molecules,
    fold: int,
    hardware: str,
    size: int | None = None,
    minutes: float = 20.0,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Result:
    """Train on the other folds, or on `size` molecules of them; test on `fold`."""
    task = replace(task_of_fold(molecules, fold, size, seed, minutes), say=say)
    begin = time.process_time()
    answer = row.fit(task)
    seconds = time.process_time() - begin
    errors = (answer.energies - molecules.energies[task.test]) * EV_TO_KCAL_MOL
    if not np.isfinite(errors).all():
        raise RuntimeError(f"row {row.key}, fold {fold}: the predictions are not finite")
    norms = error_norms(errors)
    return Result(
        row.key, fold, len(task.train), norms.mae, norms.rmse, seconds, answer.note, hardware
    )


def save(result: Result, folder: Path) -> Path:
    """Write one result to its own file, in place of an earlier one of the same kind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.row}-fold{result.fold}-{result.trained_on}.json"
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    return path


def load(folder: Path) -> list[Result]:
    """All results in a folder.

    Raises
    ------
    ValueError
        If a file there is none.
    """
    results = []
    for path in sorted(folder.glob("*-fold*.json")):
        try:
            results.append(Result(**json.loads(path.read_text(encoding="utf-8"))))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: is no result of this benchmark: {error}") from error
    return results
