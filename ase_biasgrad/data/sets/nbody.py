"""Charged particles: the simulations of the N-body benchmark, and the file that holds them.

The data of Fuchs et al. 2020 (arXiv:2006.10503), after Kipf et al. 2018 (arXiv:1802.04687):
particles of unit mass with charges ±1 and forces ``F_i = Σ_j q_i q_j (x_i − x_j)/|x_i − x_j|³``,
whose components are clipped, in a box with reflecting walls. The variant of Satorras et al. 2021
(EGNN, arXiv:2102.09844) has no walls. Quantities have no units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from ase_biasgrad.charged_particles import System, Trajectories, simulate
from ase_biasgrad.data.hdf5 import add_column, get_text, new_file, set_text
from ase_biasgrad.files import whole_file

FORMAT, VERSION = "ase-biasgrad nbody", 1
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Variant:
    """A published data set: its system, simulations per split, and the task's frames.

    The task starts at frame `start`, or at any frame where `start` is None, and asks for the
    change `ahead` frames later.
    """

    system: System
    sizes: dict[str, int]
    start: int | None
    ahead: int


VARIANTS = {
    # the paper has no validation set; ours is beside its sizes
    "paper": Variant(System(), {"train": 5000, "validation": 1000, "test": 1000}, None, 5),
    "egnn": Variant(
        System(half_width=None), {"train": 3000, "validation": 2000, "test": 2000}, 30, 10
    ),
}


class NBodyDataError(ValueError):
    """A file that is no N-body data set; the message names it."""


# --- the file ------------------------------------------------------------------------------


def write_dataset(
    path: str | Path,
    variant: str = "paper",
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    progress: bool = False,
) -> None:
    """Simulate all splits of a variant and write them to one HDF5 file, float32.

    A group per split has `positions` and `velocities (simulations, frames, n, 3)` and
    `charges (simulations, n)`; attributes hold the system, the task and the seed. Splits have
    seeds of their own, so that the size of one does not change another; `sizes` replaces the
    variant's.
    """
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; choose one of {sorted(VARIANTS)}")
    chosen = VARIANTS[variant]
    with whole_file(path) as temporary, new_file(temporary) as file:
        file.attrs.update(version=VERSION, seed=seed)
        system = json.dumps(asdict(chosen.system))
        for name, text in (("format", FORMAT), ("variant", variant), ("system", system)):
            set_text(file, name, text)
        for number, split in enumerate(SPLITS):
            simulations = {**chosen.sizes, **(sizes or {})}[split]
            split_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            trajectories = simulate(chosen.system, simulations, split_seed, progress)
            group = file.create_group(split)
            for name, values in vars(trajectories).items():
                add_column(group, name, values.astype(np.float32))


@dataclass(frozen=True)
class NBodyData:
    """A data set as read: its variant and system, and a split's trajectories."""

    variant: str
    system: System
    path: Path

    def read(self, split: str) -> Trajectories:
        """The trajectories of a split, float32."""
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}; choose one of {SPLITS}")
        try:
            with h5py.File(self.path) as file:
                parts = [file[split][name][:] for name in Trajectories.__annotations__]
        except Exception as error:  # whatever h5py makes of a damaged file
            raise NBodyDataError(f"{self.path}: {split}: damaged: {error}") from error
        positions, velocities, charges = parts
        fits = positions.ndim == 4 and positions.shape[3] == 3
        if not fits or velocities.shape != positions.shape or len(charges) != len(positions):
            shapes = [part.shape for part in parts]
            raise NBodyDataError(f"{self.path}: {split}: shapes {shapes} are no trajectories")
        return Trajectories(positions, velocities, charges)


def open_dataset(path: str | Path) -> NBodyData:
    """Open a file that `write_dataset` wrote.

    Raises `FileNotFoundError` if there is no such file, and `NBodyDataError` if it is something
    else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; make it with `biasgrad data nbody`")
    try:
        with h5py.File(path) as file:
            if "format" not in file.attrs or get_text(file, "format") != FORMAT:
                raise NBodyDataError("is no N-body data set (`biasgrad data nbody` makes one)")
            if file.attrs["version"] > VERSION:
                raise NBodyDataError("needs a newer version of ase-biasgrad")
            variant = get_text(file, "variant")
            if variant not in VARIANTS:
                raise NBodyDataError(f"has the variant {variant!r}, none of {sorted(VARIANTS)}")
            return NBodyData(variant, System(**json.loads(get_text(file, "system"))), path)
    except NBodyDataError as error:
        raise NBodyDataError(f"{path}: {error}") from None
    except Exception as error:  # whatever h5py makes of other files
        raise NBodyDataError(f"{path}: is no HDF5 file, or a damaged one: {error}") from error
