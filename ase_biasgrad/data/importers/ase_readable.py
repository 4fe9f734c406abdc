"""Everything that ASE reads: extxyz, trajectories, outputs, databases (SchNetPack's included)."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.data.dataset import LABELS, DataError
from ase_biasgrad.data.importers.blocks import Block, Source
from ase_biasgrad.data.importers.extxyz_rows import check_rows
from ase_biasgrad.data.importers.labels import STRUCTURE, charge_state, chosen_keys, like
from ase_biasgrad.data.importers.options import ImportOptions, units_of

# keys of a frame that name a unit, and whose
UNIT_KEYS = {
    "energy": r"(energy|energies|e)_units?",
    "positions": r"(length|positions?|distance|r)_units?",
    "forces": r"forces?_units?",
    "stress": r"stress_units?",
}
UNIT_BY_NUMBER = {"energy": "eV", "positions": "Ang", "forces": "eV/Ang", "stress": "eV/Ang^3"}
DATABASES = (".db", ".json")


def read_ase(path: Path, options: ImportOptions) -> Source:
    """Read a file of a format of ASE, each frame a block.

    Raises `DataError` on a file that ASE cannot read, and on units that the file does not say or
    says twice.
    """
    frames = _frames(path, options)
    first = next(frames, None)
    if first is None:
        raise DataError(f"{path}: holds no frames")
    by, own = "as it says", _own_units(first[1])
    if path.suffix in DATABASES and (metadata := _database_units(path, options)):
        by, own = "as its metadata say", metadata
    units = units_of(path, options, own, by)

    def blocks() -> Iterator[Block]:
        for number, (atoms, values) in enumerate(chain([first], frames)):
            if by == "as it says" and _own_units(values) != own:
                raise DataError(
                    f"{path} (its frame {number}): names other units than the first frame"
                )
            believed = _unit_keys(values).values() if by == "as it says" else ()
            yield _block(number, atoms, values, {*believed, *STRUCTURE}, options)

    return Source(blocks(), units)


def _block(
    number: int, atoms: Any, values: Mapping[str, Any], known: set[str], options: ImportOptions
) -> Block:
    keys = chosen_keys(values, options)
    return Block(
        "",
        atoms.numbers,
        ("positions", atoms.positions[None]),
        {name: (key, np.asarray(values[key])[None]) for name, key in keys.items()},
        [key for key in values if key not in {*keys.values(), *known}],
        atoms.cell.array,
        atoms.pbc,
        charge_state(values),
        number,
    )


def _own_units(values: Mapping[str, Any]) -> dict[str, str]:
    """Units that a frame names, by our names."""
    return {name: values[key] for name, key in _unit_keys(values).items()}


def _unit_keys(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: key
        for name, pattern in UNIT_KEYS.items()
        for key, value in values.items()
        if re.fullmatch(pattern, key.lower()) and isinstance(value, str)
    }


def _database_units(path: Path, options: ImportOptions) -> dict[str, str]:
    """Units in the metadata of a SchNetPack database, by our names; empty for others."""
    from ase.db import connect

    try:
        metadata = connect(str(path)).metadata
    except Exception as error:
        # whatever the database library makes of a foreign file
        raise DataError(f"{path}: no ASE database, or a damaged one: {error}") from error
    properties = metadata.get("_property_unit_dict", {})
    if not properties:
        return {}
    keys = {**{name: name for name in LABELS}, **(options.keys or {})}
    wanted = [name for name in LABELS if name not in options.without]
    if "energy" in wanted and keys["energy"] not in properties:
        raise DataError(
            f"{path}: a SchNetPack database without the property {keys['energy']!r}; name its "
            f"energy with --key energy=…, or do without it (--without energy): it has "
            f"{sorted(properties)}"
        )
    said = {name: properties[keys[name]] for name in wanted if keys[name] in properties}
    said["positions"] = metadata.get("_distance_unit") or ""
    both = ("--energy-unit", options.energy_unit), ("--length-unit", options.length_unit)
    for kind, name, given in (
        ("energy", "energy", both[:1]),
        ("length", "positions", both[1:]),
        ("forces", "forces", both),
        ("stress", "stress", both),
    ):
        if said.get(name) == "" and not all(option for _, option in given):
            raise DataError(
                f"{path}: a SchNetPack database whose metadata leave the {kind} unit empty; say "
                f"it with {' and '.join(flag for flag, _ in given)}"
            )
    return {name: _unit_name(name, unit) for name, unit in said.items() if unit}


def _unit_name(name: str, unit: str | float) -> str:
    """SchNetPack's units are names, or numbers of ASE's units."""
    if isinstance(unit, str):
        return unit
    return UNIT_BY_NUMBER[name] if unit == 1 else f"{float(unit)!r} {UNIT_BY_NUMBER[name]}"


def _frames(path: Path, options: ImportOptions) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Frames of a file, and all values that it keeps of each: rows, headers, columns, results."""
    from ase.db import connect
    from ase.io import iread

    try:
        if path.suffix in DATABASES and options.format is None:
            if path.suffix == ".json":
                _check_rows(path)
            for row in connect(str(path)).select():
                atoms = row.toatoms()
                yield atoms, _values(atoms, {**row.key_value_pairs, **dict(row.data)})
            return
        source, name = _text(path, options.format)
        try:
            # ASE would take what follows an @ for an index
            read_as = {} if isinstance(source, str) else {"properties_parser": _header}
            for atoms in iread(source, ":", name, do_not_split_by_at_sign=True, **read_as):
                yield atoms, _values(atoms, {})
        finally:
            if not isinstance(source, str):
                source.close()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        # readers of ASE raise whatever their format makes them
        raise DataError(
            f"{path}: ASE cannot read it: {type(error).__name__}: {error}"
            + ("" if options.format else " (--format names the format where the name does not)")
        ) from error


def _check_rows(path: Path) -> None:
    """Require that the list of rows of a JSON database names them all: ASE reads those alone.

    Raises `DataError` if it does not.
    """
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        return  # no database, as ASE will say
    rows = {key for key in content if key.isdecimal()}
    listed = content.get("ids", [1])
    if not isinstance(listed, list) or {str(row) for row in listed} != rows:
        raise DataError(
            f'the file has {len(rows)} rows, but its list "ids" does not name them: it is damaged'
        )


def _header(line: str) -> dict[str, Any]:
    """The header of an extxyz frame, in which a stress or virial may be six numbers."""
    from ase.io.extxyz import key_val_str_to_dict

    bare = re.sub(r"\"[^\"]*\"|'[^']*'|{[^{}]*}", "", line)
    keys = Counter(re.findall(r"(?<![^\s=])([^\s=]+)\s*=", bare))
    for key in keys:
        if keys[key] > 1 and (like(key) or key in ("Lattice", "Properties", "pbc")):
            raise DataError(f"{key} stands twice in {line!r}")
    try:
        found = key_val_str_to_dict(line)
    except ValueError:  # ASE wants nine
        marked = key_val_str_to_dict(re.sub(r"(?<!\S)(stress|virial)(?=\s*=)", r"\1_", line))
        found = {{"stress_": "stress", "virial_": "virial"}.get(k, k): v for k, v in marked.items()}
    for key in keys:
        if like(key) and key not in found:
            raise DataError(f"{key} cannot be told from the rest of {line!r}; are quotes missing?")
    return found


def _values(atoms: Any, rows: Mapping[str, Any]) -> dict[str, Any]:
    results = {} if atoms.calc is None else atoms.calc.results
    own = {key: value for key, value in atoms.arrays.items() if key not in STRUCTURE}
    merged = {**results, **own, **atoms.info, **rows}
    return {str(key): value for key, value in merged.items() if value is not None}


def _text(path: Path, format: str | None) -> tuple[Any, str | None]:
    """An extxyz file opened as text, whatever its name, byte-order mark, line ends and encoding,
    and its format; the path itself for all other formats."""
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        head = file.read(4096)
    marks = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = marks.get(head[:2], "utf-8-sig")
    lines = head.decode(encoding, "ignore").split("\n", 2)
    counted = len(lines) > 1 and lines[0].strip().isdigit()
    known = counted and (path.suffix in (".xyz", ".extxyz") or "Properties=" in lines[1])
    if not (format in ("extxyz", "xyz") or (format is None and known)):
        return str(path), format
    try:
        check_rows(text := _opened_text(path, encoding))
    except UnicodeDecodeError:
        check_rows(text := _opened_text(path, "latin-1"))
    text.seek(0)
    return text, "extxyz"


def _opened_text(path: Path, encoding: str) -> io.TextIOWrapper:
    from ase.io.formats import open_with_compression

    return io.TextIOWrapper(open_with_compression(str(path), "rb"), encoding=encoding)
