"""Copies of labelled frames with shifted energies, everything else of them as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.files import whole_file

# (numbers, frame) → shifts of the atoms (n,) in eV, of which an energy gets the sum
Shift = Callable[[np.ndarray, int], np.ndarray]
KEYS = ("energy", "free_energy")
# key=value of a comment line of extxyz; what is quoted or in brackets is one value
FIELD = re.compile(r"""([^\s=]+)=("(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|\S+)""")
DATASETS = (".h5", ".hdf5")
XYZ = (".xyz", ".extxyz")


def shift_energies(
    source: str | Path, output: str | Path, shift: Shift, keys: Sequence[str] | None = None
) -> int:
    """Write the frames of `source` with shifted energies to `output`; return their number.

    A text file (extxyz) is copied character by character but for the numbers that are energies; a
    dataset (HDF5) keeps every other label bit for bit. Raises `DataError` on a file of another
    kind, a frame without an energy, or units that are not eV.

    Parameters
    ----------
    shift
        Shifts of the atoms of a frame; may raise.
    keys
        Keys of the energies in a text file, by default those of `energy` and `free_energy` that a
        frame has. A column `energies` of the atoms is shifted, too.
    """
    source, output = Path(source), Path(output)
    if source.suffix in DATASETS and output.suffix in DATASETS:
        return _shifted_dataset(source, output, shift)
    if source.suffix not in XYZ or output.suffix not in XYZ:
        raise DataError(
            f"{source} → {output}: energies are shifted from extxyz to extxyz, or from a dataset "
            "(*.h5) to a dataset"
        )
    count = 0
    with (
        whole_file(output) as temporary,
        source.open(encoding="utf-8", newline="") as lines,
        temporary.open("w", encoding="utf-8", newline="") as written,
    ):
        for frame in _frames(source, lines):
            if len(frame) == 1:  # a blank line at the end
                written.writelines(frame)
                continue
            where = f"{source}: frame {count}"
            written.writelines(_shifted(frame, where, count, shift, keys))
            count += 1
    return count


def _shifted_dataset(source: Path, output: Path, shift: Shift) -> int:
    with Dataset(source) as dataset:
        history = {"shifted_from": {"sha256": dataset.hash(), "provenance": dataset.provenance}}
        with DatasetWriter(output, history) as writer:
            for k, frame in enumerate(dataset):
                energy = frame.energy
                if energy is not None:
                    energy += float(shift(frame.numbers, k).sum())
                writer.append_frame(replace(frame, energy=energy), f"{source}: frame {k}")
        return len(dataset)


def _frames(path: Path, lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines of each frame: the number of atoms, the comment, and one for each atom.

    A blank line between frames comes alone.
    """
    rest = iter(lines)
    for number, first in enumerate(rest):
        if not first.strip():
            yield [first]
            continue
        if not first.strip().isdigit():
            raise DataError(f"{path}: frame {number}: {first.strip()[:80]!r} is no number of atoms")
        frame = [first, *(line for _, line in zip(range(int(first) + 1), rest, strict=False))]
        if len(frame) < int(first) + 2:
            raise DataError(f"{path}: frame {number}: ends before its {int(first)} atoms")
        yield frame


def _shifted(
    frame: list[str], where: str, number: int, shift: Shift, keys: Sequence[str] | None
) -> list[str]:
    """Lines of a frame with its energies shifted."""
    comment, atoms = frame[1], frame[2:]
    fields = {key: value.strip("\"'") for key, value in FIELD.findall(comment)}
    for key, unit in fields.items():
        if re.fullmatch(r"(energy|energies|e)_units?", key.lower()) and unit.lower() != "ev":
            raise DataError(f"{where}: {key}={unit}; energies are shifted in eV alone")
    wanted = [key for key in keys or KEYS if key in fields]
    if not wanted:
        raise DataError(
            f"{where}: has none of the energies {', '.join(keys or KEYS)}; name the key of one "
            f"with --key, among {', '.join(fields)}"
        )
    columns = _columns(fields.get("Properties", "species:S:1:pos:R:3"), where)
    by_atom = shift(_numbers(atoms, columns, where), number)
    total = float(by_atom.sum())

    def edited(field: re.Match[str]) -> str:
        key, value = field.groups()
        if key not in wanted:
            return field[0]
        quote = value[0] if value[0] in "\"'" else ""
        return f"{key}={quote}{_sum(value.strip(quote), total, f'{where}: {key}')}{quote}"

    if "energies" in columns:
        place = columns["energies"]
        atoms = [
            _with_token(line, place, lambda old, b=b: _sum(old, float(b), f"{where}: energies"))  # type: ignore[misc]
            for line, b in zip(atoms, by_atom, strict=True)
        ]
    return [frame[0], FIELD.sub(edited, comment), *atoms]


def _sum(text: str, shift: float, where: str) -> str:
    try:
        return repr(float(text) + shift)
    except ValueError as error:
        raise DataError(f"{where}: {text[:80]!r} is no number") from error


def _columns(properties: str, where: str) -> dict[str, int]:
    """First column of each property of the atoms."""
    parts = properties.split(":")
    if len(parts) % 3 or not all(width.isdigit() for width in parts[2::3]):
        raise DataError(f"{where}: Properties={properties[:80]} is not made of name:kind:columns")
    widths = [int(width) for width in parts[2::3]]
    starts = np.cumsum([0, *widths])
    return dict(zip(parts[::3], starts.tolist(), strict=False))


def _numbers(atoms: list[str], columns: dict[str, int], where: str) -> np.ndarray:
    from ase.data import atomic_numbers

    place = columns.get("species", columns.get("Z"))
    if place is None:
        raise DataError(f"{where}: Properties name neither species nor Z")
    symbols = [line.split()[place] if len(line.split()) > place else "" for line in atoms]
    numbers = [int(s) if s.isdigit() else atomic_numbers.get(s, 0) for s in symbols]
    if 0 in numbers:
        atom = numbers.index(0)
        raise DataError(f"{where}: atom {atom}: {symbols[atom]!r} is no element")
    return np.array(numbers, np.int64)


def _with_token(line: str, place: int, change: Callable[[str], str]) -> str:
    """A line with its word at `place` changed, and the blanks between the words as they were."""
    parts = re.split(r"(\S+)", line)  # blanks and words in turn
    parts[2 * place + 1] = change(parts[2 * place + 1])
    return "".join(parts)
