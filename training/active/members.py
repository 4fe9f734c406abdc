"""Trainings of active learning: members of the committee, and the final potential."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase_biasgrad.training.active.folder import LearnFolder, Round, read_json
from ase_biasgrad.training.active.options import LearnOptions
from ase_biasgrad.training.config import config_from

BATCH = 8
SMALL = {"name": "tensornet", "features": 32}
FINAL = {"name": "tensornet", "features": 64}
VALIDATIONS = 40  # in each training


def member_config(
    folder: LearnFolder, own: Round, before: Round | None, member: int
) -> dict[str, Any]:
    """Options of the training of a member; it goes on from its own network of the round before."""
    options = folder.options()
    config = _config(options, folder.data, own.split, options.training_steps)
    config["seed"] = 1000 * options.seed + member
    config = merged(config, options.config)
    if before is None:
        return merged({"backbone": SMALL}, config)
    config.pop("backbone", None)
    rate = config["force_stage"].pop("learning_rate") / 2
    warmup = config["force_stage"]["schedule"].pop("warmup_steps")
    parent = before.member(member) / "potential.safetensors"
    tuning = {"checkpoint": str(parent), "learning_rate": rate, "warmup_steps": warmup}
    return {**config, "fine_tuning": tuning}


def final_config(folder: LearnFolder, split: Path) -> dict[str, Any]:
    """Options of the training of the final potential."""
    options = folder.options()
    config = _config(options, folder.data, split, options.final_steps)
    return merged({**config, "backbone": FINAL, "seed": options.seed}, options.config)


def _config(options: LearnOptions, data: Path, split: Path, steps: int) -> dict[str, Any]:
    batch = options.config.get("force_stage", {}).get("batch_size", BATCH)
    frames = len(read_json(split)["train"])
    epochs = max(1, round(steps * batch / frames))
    paths = {"path": str(data.resolve()), "train": str(split), "validation": str(split), "test": 0}
    return {
        "data": paths,
        "force_stage": {
            "epochs": epochs,
            "batch_size": batch,
            "learning_rate": 4e-3,
            "schedule": {"warmup_steps": min(100, max(1, steps // 10))},
            "validate_every": max(1, epochs // VALIDATIONS),
        },
        "trainer": {"progress_bar": False},
    }


def merged(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options with others over them, group by group."""
    found = dict(config)
    for key, value in over.items():
        below = found.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        same = not both or value.get("name", below.get("name")) == below.get("name")  # type: ignore[union-attr]
        # another backbone has other arguments
        found[key] = merged(below, value) if both and same else value  # type: ignore[arg-type]
    return found


def train_in(folder: Path, config: dict[str, Any]) -> float:
    """Train in a run folder, or go on with the run in it; return the seconds that it took."""
    begun = time.monotonic()
    import torch

    from ase_biasgrad.training.run import resume, train

    if (folder / "potential.safetensors").exists():
        return 0.0
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the others want theirs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few frames for validation, in the first rounds
        if (folder / "config.yaml").exists():
            resume(folder)
        else:
            train(config_from(config, str(folder)), folder)
    return time.monotonic() - begun
