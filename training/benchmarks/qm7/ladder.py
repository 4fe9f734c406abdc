"""Rows of the ladder, cross-validated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ase_biasgrad.machine import hardware
from ase_biasgrad.metrics import EV_TO_KCAL_MOL, error_norms
from ase_biasgrad.training.benchmarks.qm7 import baselines, dense_rows, kernel_rows, potentials
from ase_biasgrad.training.benchmarks.qm7.task import Answer, Molecules, Task, task_of_fold
from ase_biasgrad.training.benchmarks.results import Result, Store


@dataclass(frozen=True)
class Row:
    """A method: its key on the command line, its line in the table, what was published of it."""

    key: str
    title: str
    fit: Callable[[Task], Answer]
    published: str = ""


def rows() -> list[Row]:
    """All rows from the bottom to the top, with one for every backbone that there is."""
    titles = {"schnet": "SchNet", "painn": "PaiNN", "tensornet": "TensorNet"}
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
    store: Store,
    size: int | None = None,
    minutes: float = 20.0,
    seed: int = 0,
    say: Callable[[str], None] = print,
    device: torch.device | str = "cpu",
) -> Result:
    """Train on the other folds, or on `size` molecules of them; test on `fold`, keep the errors.

    A network that is trained is kept beside its result; a training that was interrupted goes on.

    Figures are in kcal/mol, and in seconds of processor time, which other work on the machine
    does not change much. A result that is there already is not computed again.
    """
    task = task_of_fold(molecules, fold, size, seed, minutes)
    options = {"row": row.key, "fold": fold, "size": size, "minutes": minutes, "seed": seed}
    if found := store.find(molecules.digest, options):
        return found
    file = store.path(molecules.digest, options, ".safetensors")
    begin = time.process_time()
    answer = row.fit(replace(task, say=say, device=device, file=file))
    seconds = answer.cpu_seconds or time.process_time() - begin
    errors = (answer.energies - molecules.energies[task.test]) * EV_TO_KCAL_MOL
    if not np.isfinite(errors).all():
        raise RuntimeError(f"row {row.key}, fold {fold}: the predictions are not finite")
    norms = error_norms(errors)
    figures = {
        **{"trained_on": len(task.train), "mae": norms.mae, "rmse": norms.rmse},
        **{"seconds": seconds, "note": answer.note, "hardware": hardware(device)},
    }
    return store.keep(molecules.digest, options, figures)
