"""What a user can say about a source, and what an import says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ase_biasgrad.data.dataset import DataError


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    frames: int
    skipped: int
    conversions: list[str]


@dataclass(frozen=True)
class ImportOptions:
    """How sources are read.

    Parameters
    ----------
    labels
        Label set of an rMD17 file: `revised` or `original`.
    energy_unit, length_unit
        Of the source, where it does not say them itself.
    keys
        Where labels are in the source, such as `{"energy": "dft_energy"}`; names other than
        energy, forces and stress are brought in as they are, without conversion.
    skip_unlabelled
        Leave out frames that lack energy or forces instead of refusing them.
    without
        Labels that are not brought in, of energy, forces, stress.
    """

    labels: str = "revised"
    energy_unit: str | None = None
    length_unit: str | None = None
    keys: dict[str, str] | None = None
    skip_unlabelled: bool = False
    without: tuple[str, ...] = ()


DEFAULTS = ImportOptions()


def said_unit(
    path: Path, kind: str, option: str | None, own: str | None, factor: Callable[[str], float]
) -> str | None:
    """The name of a unit by the file itself or by the user.

    Raises
    ------
    DataError
        If they contradict each other.
    """
    if option and own and factor(option) != factor(own):
        raise DataError(
            f"{path}: says that its {kind} unit is {own}, and you say {option}; leave "
            f"--{kind}-unit out, or correct the file"
        )
    return option or own


def describe(path: Path, energy: str, length: str, by: str, others: list[str]) -> str:
    """One line on what was converted."""
    said = f"{path.name}: energies {energy} → eV, lengths {length} → Å ({by})"
    return said + (f"; as they are: {', '.join(others)}" if others else "")
