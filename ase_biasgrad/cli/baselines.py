"""Baselines on the command line: made where the user trusts them, tblite loaded in time."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

TrustBaseline = Annotated[
    bool,
    typer.Option(
        "--trust-baseline",
        help="make the baseline that the checkpoint names, although it may run any code",
    ),
]


def import_from_working_folder() -> None:
    """Let module:Class be a file in the working folder."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def trusted_baseline(checkpoint: Path, trust: bool) -> BaseCalculator | None:
    """The baseline that a checkpoint names, if the user trusts it; else None."""
    if not trust:
        return None
    from ase_biasgrad.baseline import Baseline
    from ase_biasgrad.checkpoint import read_checkpoint

    if (record := read_checkpoint(checkpoint).potential.baseline) is None:
        raise ValueError(f"{checkpoint}: has no baseline; leave --trust-baseline out")
    import_from_working_folder()
    return Baseline.from_record(record).made(trust=True)


def load_tblite_before_torch(arguments: Sequence[str]) -> None:
    """Import tblite where a checkpoint, a configuration or a run among the arguments names it.

    The OpenMP that some versions of torch bring keeps it from loading afterwards.
    """
    for argument in arguments:
        with contextlib.suppress(OSError, ImportError):
            path = Path(argument)
            file = path / "config.yaml" if path.is_dir() else path
            if file.suffix not in (".safetensors", ".yaml", ".yml"):
                continue
            if re.search(rb"tblite|-xtb", _beginning(file)):
                import tblite.ase  # noqa: F401


def _beginning(file: Path) -> bytes:
    """A text, or the header of a safetensors file."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little") if file.suffix == ".safetensors" else 2**17
        return stream.read(min(size, 2**24))
