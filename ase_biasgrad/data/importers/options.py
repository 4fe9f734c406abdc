"""Choices of an import, the units of a source, and the report of an import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.units import UnitError, energy_unit, force_unit, length_unit, stress_unit


@dataclass(frozen=True)
class ImportReport:
    """Frames brought in and left out, what was taken and converted, and numbers in doubt."""

    frames: int
    skipped: int
    conversions: list[str]
    accepted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ImportOptions:
    """Options of reading sources.

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
        Leave out frames that have no label at all instead of refusing them.
    without
        Labels that are not brought in, of energy, forces, stress.
    accept
        Go on where numbers are implausible; the report names them.
    format
        ASE's name of the format, for files whose names do not say it.
    """

    labels: str = "revised"
    energy_unit: str | None = None
    length_unit: str | None = None
    keys: dict[str, str] | None = None
    skip_unlabelled: bool = False
    without: tuple[str, ...] = ()
    accept: bool = False
    format: str | None = None


DEFAULTS = ImportOptions()


@dataclass(frozen=True)
class Units:
    """Units of a source: factors to eV and Å, and a line that says who named them."""

    factors: dict[str, float]
    said: str


def units_of(
    path: Path,
    options: ImportOptions,
    own: Mapping[str, str],
    by: str = "as it says",
    convention: str = "ASE's convention",
    fallback: bool = True,
) -> Units:
    """Units by the file itself (`own`, by our names), by the user, or eV and Å as `fallback`.

    `by` and `convention` say of the first and the last where they come from. Raises `DataError` if
    the file and the user contradict each other, or nobody says them, and `UnitError` on a unit that
    is not known.
    """
    try:
        energy = _said_unit(path, "energy", options.energy_unit, own.get("energy"), energy_unit)
        length = _said_unit(path, "length", options.length_unit, own.get("positions"), length_unit)
        missing = [k for k, unit in (("energy", energy), ("length", length)) if unit is None]
        if missing and not fallback:
            raise DataError(
                f"{path}: says nothing of its units; name them with "
                f"{' and '.join(f'--{kind}-unit' for kind in missing)} (MD17, rMD17 and most sGDML "
                "files: kcal/mol and Angstrom)"
            )
        return _units(energy or "eV", length or "Angstrom", own, options, by, convention)
    except UnitError as error:
        raise UnitError(f"{path}: {error}") from error


def _units(
    e: str, r: str, own: Mapping[str, str], options: ImportOptions, by: str, convention: str
) -> Units:
    def who(option: str | None, name: str) -> str:
        return by if name in own else "as you say" if option else convention

    by_energy, by_length = who(options.energy_unit, "energy"), who(options.length_unit, "positions")
    factors = {
        "positions": length_unit(r),
        "energy": energy_unit(e),
        "forces": energy_unit(e) / length_unit(r),
        "stress": energy_unit(e) / length_unit(r) ** 3,
    }
    said = f"energies {_arrow(e, factors['energy'], 'eV')}"
    said += f" ({by_energy})" if by_energy != by_length else ""
    said += f", lengths {_arrow(r, factors['positions'], 'Å')} ({by_length})"
    for name, factor in (("forces", force_unit), ("stress", stress_unit)):
        if name in own:
            factors[name] = factor(own[name])
            said += f", {name} in {own[name]} ({by})"
    return Units(factors, said)


def _arrow(unit: str, factor: float, ours: str) -> str:
    return f"in {ours}" if factor == 1 else f"{unit} → {ours}"


def _said_unit(
    path: Path, kind: str, option: str | None, own: str | None, factor: Callable[[str], float]
) -> str | None:
    """Name of a unit by the file itself or by the user.

    Raises `DataError` if they contradict each other.
    """
    if option and own and factor(option) != factor(own):
        raise DataError(
            f"{path}: says that its {kind} unit is {own}, and you say {option}; leave "
            f"--{kind}-unit out, or correct the file"
        )
    return option or own
