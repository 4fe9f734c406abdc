"""A bias as a file of its own: JSON that says everything by symbol, to read, mail and compare.

    {"format": "ase-biasgrad bias", "version": 1, "units": {"energy": "eV"}, "zero": …,
     "elements": ["H", "O"], "energies": […], "covariance": [[…]], "misfit": …,
     "compositions": [{"counts": {"H": 2, "O": 1}, "offset": …, "residual": …, "error": …,
                       "kind": "data"}], "fit": {…}}

Numbers that are not known are null.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ase_biasgrad.bias_arrays import BiasArrays, EnergyZero
from ase_biasgrad.files import write_whole
from ase_biasgrad.units import N_ELEMENTS

if TYPE_CHECKING:
    from ase_biasgrad.bias import Bias

FORMAT, VERSION = "ase-biasgrad bias", 1
UNITS = {"energy": "eV"}
ROW_KINDS = ("data", "isolated atom", "anchor")
LARGEST = 1e12  # eV, and atoms of a composition
KINDS = {
    "zero": str,
    "elements": list,
    "energies": list,
    "covariance": list,
    "compositions": list,
    "fit": dict,
}


class BiasFileError(ValueError):
    """A file that is no bias, is damaged, or newer; the message names the file and the key."""


def save_bias(path: str | Path, bias: Bias) -> None:
    """Write a bias to `path` (`*.json`), whole or not at all."""
    arrays = bias.arrays()
    energies, counts = arrays.per_element, arrays.compositions
    numbers = np.flatnonzero((energies != 0) | counts.any(axis=0))
    columns = (arrays.offsets, arrays.residuals, arrays.errors, arrays.isolated)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "units": UNITS,
        "zero": bias.zero,
        "elements": [chemical_symbols[z] for z in numbers],
        "energies": energies[numbers].tolist(),
        "covariance": _nulls(arrays.covariance[np.ix_(numbers, numbers)].tolist()),
        "misfit": _nulls(float(arrays.misfit)),
        "compositions": [
            {
                "counts": {chemical_symbols[z]: int(row[z]) for z in np.flatnonzero(row)},
                "offset": offset,
                "residual": residual,
                "error": _nulls(error),
                "kind": ROW_KINDS[kind],
            }
            for row, offset, residual, error, kind in zip(
                counts, *(column.tolist() for column in columns), strict=True
            )
        ],
        "fit": _nulls(bias.fit_report),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def load_bias(path: str | Path) -> Bias:
    """Read a bias as a module of torch; errors are those of `read_bias`."""
    from ase_biasgrad.bias import Bias

    return Bias.from_arrays(read_bias(path))


def read_bias(path: str | Path) -> BiasArrays:
    """Read a bias that `save_bias` wrote as NumPy arrays, without torch.

    Raises `FileNotFoundError` if there is no such file, and `BiasFileError` if it is no bias, or
    something in it cannot be; the message names the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such bias")
    try:
        return _read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise BiasFileError(f"{path}: {error}") from error


def _read(content: Any) -> BiasArrays:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("no bias of ase-biasgrad; write one with `biasgrad fit-bias … -o x.json`")
    if type(version := content.get("version")) is not int or version < 1:
        raise ValueError(f"version: {str(version)[:80]}, must be a number from 1")
    if version > VERSION:
        raise ValueError(f"version: {version}, this package reads {VERSION}; update ase-biasgrad")
    if content.get("units") != UNITS:
        raise ValueError(f"units: {str(content.get('units'))[:80]}, must be {UNITS}")
    for key, kind in KINDS.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{key}: missing, or not of type {kind.__name__}")
    if content["zero"] not in get_args(EnergyZero):
        raise ValueError(f"zero: {content['zero'][:80]!r} is none of {get_args(EnergyZero)}")
    numbers = [_number(symbol, "elements") for symbol in content["elements"]]
    if sorted(set(numbers)) != numbers:
        raise ValueError("elements: must be in the order of their numbers, each once")
    rows = [_row(row, f"compositions[{k}]") for k, row in enumerate(content["compositions"])]
    counts = np.array([row["counts"] for row in rows]).reshape(-1, N_ELEMENTS)
    if counts[:, [z for z in range(N_ELEMENTS) if z not in numbers]].any():
        raise ValueError("compositions: hold an element that is not in elements")
    n = len(numbers)
    energies = _reals(content["energies"], "energies", (n,))
    covariance = _covariance(content["covariance"], n)
    per_element = np.zeros(N_ELEMENTS)
    per_element[numbers] = energies
    whole = np.full((N_ELEMENTS, N_ELEMENTS), np.nan if np.isnan(covariance).all() else 0.0)
    whole[np.ix_(numbers, numbers)] = covariance
    columns = {
        name: np.array([row[key] for row in rows], dtype)
        for name, key, dtype in (
            ("offsets", "offset", float),
            ("residuals", "residual", float),
            ("errors", "error", float),
            ("isolated", "kind", np.int64),
        )
    }
    misfit = _reals(content.get("misfit"), "misfit", (), unknown=True)
    if misfit < 0:
        raise ValueError(f"misfit: {misfit}, a standard deviation is not negative")
    return BiasArrays(
        content["zero"],
        content["fit"],
        per_element,
        covariance=whole,
        misfit=np.asarray(misfit),
        compositions=counts.astype(np.int64),
        **columns,
    )


def _covariance(value: Any, n: int) -> np.ndarray:
    """A symmetric positive semidefinite matrix `(n, n)`, or one of nulls."""
    found = _reals(value, "covariance", (n, n) if n else (0,), unknown=True).reshape(n, n)
    if n and np.isnan(found).any() and not np.isnan(found).all():
        raise ValueError("covariance: some numbers are null and some are not")
    if n and not np.isnan(found).any():
        size = np.abs(found).max()
        if np.abs(found - found.T).max() > 1e-9 * size:
            raise ValueError("covariance: is not symmetric")
        if np.linalg.eigvalsh(found).min() < -1e-9 * size:
            raise ValueError("covariance: has a negative variance")
    return found


def _row(row: Any, where: str) -> dict[str, Any]:
    """One composition with its counts `(N_ELEMENTS,)`."""
    if not isinstance(row, dict) or not isinstance(row.get("counts"), dict) or not row["counts"]:
        raise ValueError(f"{where}.counts: missing, must be numbers of atoms by symbol")
    counts = np.zeros(N_ELEMENTS, np.int64)
    for symbol, count in row["counts"].items():
        if type(count) is not int or not 0 < count < LARGEST:
            raise ValueError(f"{where}.counts.{symbol}: {str(count)[:80]}, must be a number from 1")
        counts[_number(symbol, f"{where}.counts")] = count
    if row.get("kind") not in ROW_KINDS:
        raise ValueError(f"{where}.kind: {str(row.get('kind'))[:80]!r} is none of {ROW_KINDS}")
    error = _reals(row.get("error"), f"{where}.error", (), unknown=True)
    if error < 0:
        raise ValueError(f"{where}.error: {error}, a standard error is not negative")
    return {
        "counts": counts,
        "offset": _reals(row.get("offset"), f"{where}.offset", ()),
        "residual": _reals(row.get("residual"), f"{where}.residual", ()),
        "error": error,
        "kind": ROW_KINDS.index(row["kind"]),
    }


def _number(symbol: Any, where: str) -> int:
    if not isinstance(symbol, str) or atomic_numbers.get(symbol, 0) < 1:
        raise ValueError(f"{where}: {str(symbol)[:80]!r} is no element")
    return atomic_numbers[symbol]


def _reals(value: Any, where: str, shape: tuple[int, ...], unknown: bool = False) -> np.ndarray:
    """Finite numbers of a shape as float64; null is NaN where `unknown` allows it."""
    try:
        found = np.array(value, dtype=object)
        plain = all(type(x) in (int, float) or (unknown and x is None) for x in found.ravel())
        found = found.astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {str(value)[:80]}: {error}") from error
    if not plain or found.shape != shape:
        raise ValueError(f"{where}: {str(value)[:80]}, must be numbers of shape {shape}")
    if not (np.isnan(found) & unknown | (np.abs(found) <= LARGEST)).all():
        raise ValueError(f"{where}: {str(value)[:80]}, beyond {LARGEST:g} eV or not finite")
    return found


def _nulls(value: Any) -> Any:
    """A JSON value with None for NaN."""
    if isinstance(value, dict):
        return {key: _nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nulls(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
