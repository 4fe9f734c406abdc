"""HDF5 files of ANI-1x, SPICE and MACE.

ANI-1x (Smith et al., Sci. Data 7, 134, 2020): a group per composition with `atomic_numbers (n,)`,
`coordinates (m, n, 3)` in Å and, for each level of theory, `<level>.energy (m,)` in Hartree and
`<level>.forces (m, n, 3)` in Hartree/Å, NaN where a level was not computed.

SPICE (Eastman et al., Sci. Data 10, 11, 2023): a group per molecule with `atomic_numbers (n,)`,
`smiles`, `conformations (m, n, 3)`, `dft_total_energy (m,)` and `dft_total_gradient (m, n, 3)`,
each with an attribute `units` (bohr, hartree, hartree/bohr).

MACE (`mace_prepare_data`, Batatia et al. 2022): groups `config_batch_k/config_k` of one frame, with
`atomic_numbers`, `positions`, `cell`, `pbc` and `weight` in ASE's units, labels in `properties` and
their weights in `property_weights`; earlier versions keep `energy`, `energy_weight` and so on
beside the positions. A missing label is the text `None`, or anything of weight 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ase_biasgrad.data.dataset import LABELS, DataError, atomic_numbers
from ase_biasgrad.data.hdf5 import check_heaps, check_kind, values_of
from ase_biasgrad.data.importers.blocks import Block, Source
from ase_biasgrad.data.importers.labels import charge_state, chosen_keys
from ase_biasgrad.data.importers.options import ImportOptions, units_of

DEFAULT_LEVEL = "wb97x_dz"  # of ANI-1x; the one that all of its frames have
SPICE_LABELS = {"energy": "dft_total_energy", "forces": "dft_total_gradient"}
KNOWN = "ANI-1x, SPICE and MACE"


@dataclass(frozen=True)
class _Layout:
    """Layout of one of the sets: its blocks, and the units that it names."""

    name: str
    blocks: Callable[[Path, h5py.File, ImportOptions], Iterator[Block]]
    own_units: Callable[[h5py.File], dict[str, str]]
    remark: str = ""


def read_hdf5(path: Path, options: ImportOptions) -> Source:
    """Read a file of one of the layouts.

    Raises `DataError` on a file of none of the known layouts, a damaged one, or values that cannot
    be used.
    """
    with _named(path):
        check_heaps(path)
        with h5py.File(path, "r") as file:
            layout = _layout(path, file)
            own = layout.own_units(file)
    units = units_of(path, options, own, f"{layout.name}'s own")
    remark = f"; the layout is that of {layout.name}{layout.remark}"
    return Source(_blocks(path, layout, options), units, remark)


def _blocks(path: Path, layout: _Layout, options: ImportOptions) -> Iterator[Block]:
    with _named(path), h5py.File(path, "r") as file:
        yield from layout.blocks(path, file, options)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in whatever h5py makes of a foreign or damaged one."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: no HDF5 file of {KNOWN}, or a damaged one: {said}") from error


def _layout(path: Path, file: h5py.File) -> _Layout:
    name = next(iter(file), "")
    first = file[name] if name else None
    keys = sorted(key for key, _ in _items(first)) if isinstance(first, h5py.Group) else []
    inner = first[keys[0]] if first is not None and keys else None
    if {"atomic_numbers", "coordinates"} <= {*keys}:
        return _ANI
    if {"atomic_numbers", "conformations"} <= {*keys}:
        return _SPICE
    if isinstance(inner, h5py.Group) and {"atomic_numbers", "positions"} <= set(inner):
        return _MACE
    found = ", ".join([*list(file)[:3], *(f"{name}/{key}" for key in keys[:5])])
    raise DataError(
        f"{path}: an HDF5 file whose layout is not that of {KNOWN}, nor a dataset of ase-biasgrad; "
        f"it has {found or 'nothing'}"
    )


def _items(group: Mapping[str | bytes, Any]) -> Iterator[tuple[str, Any]]:
    """Names and contents of a group; h5py has bytes where a name is no text."""
    for key, item in group.items():
        if isinstance(key, bytes):
            raise ValueError(f"the name {key!r} is no text")
        yield key, item


def _ani_blocks(path: Path, file: h5py.File, options: ImportOptions) -> Iterator[Block]:
    named = [key for name, key in (options.keys or {}).items() if name in LABELS and "." in key]
    level = named[0].rpartition(".")[0] if named else DEFAULT_LEVEL
    # energies and forces of one level alone belong together
    own = {"energy": f"{level}.energy", "forces": f"{level}.forces"}
    for group in file.values():
        yield _molecules(path, group, "coordinates", own, options)


def _spice_blocks(path: Path, file: h5py.File, options: ImportOptions) -> Iterator[Block]:
    for group in file.values():
        smiles = values_of(group["smiles"]) if "smiles" in group else b""
        text = np.ravel(smiles)[0] if np.size(smiles) else b""
        text = text.decode() if isinstance(text, bytes) else str(text)
        yield _molecules(path, group, "conformations", SPICE_LABELS, options, (_charge(text), ""))


def _molecules(
    path: Path,
    group: h5py.Group,
    positions: str,
    own: Mapping[str, str],
    options: ImportOptions,
    state: tuple[int, str] = (0, ""),
) -> Block:
    name = group.name.strip("/")
    numbers = atomic_numbers(values_of(group["atomic_numbers"]), str(path), f"of {name}")
    present = [key for key, _ in _items(group) if key not in ("atomic_numbers", positions)]
    keys = _keys(present, own, options)
    labels = {label: (key, values_of(group[key])) for label, key in keys.items()}
    left = [key for key in present if key not in keys.values()]
    return Block(name, numbers, (positions, values_of(group[positions])), labels, left, state=state)


def _keys(
    present: Collection[str], own: Mapping[str, str], options: ImportOptions
) -> dict[str, str]:
    """Key of each label that is wanted: the one that the user names, the layout's own, or any."""
    unwanted = {*options.without, *(options.keys or {})}
    mine = {name: key for name, key in own.items() if name not in unwanted and key in present}
    return chosen_keys(present, options) | mine


def _charge(smiles: str) -> int:
    """Sum of the formal charges in a SMILES."""
    total = 0
    for sign in re.findall(r"\[[^\]:]*?([+-]+\d*)(?::\d+)?\]", smiles):
        signs = sign.rstrip("0123456789")
        size = int(sign[len(signs) :]) if len(signs) < len(sign) else len(signs)
        total += size if signs[0] == "+" else -size
    return total


def _spice_units(file: h5py.File) -> dict[str, str]:
    """Units that the first molecule's values name, by our names."""
    first = next(iter(file.values()))
    said = {"energy": "hartree", "positions": "bohr", "forces": "hartree/bohr"}
    for name, key in (("positions", "conformations"), *SPICE_LABELS.items()):
        unit = said[name]
        if key in first and "units" in (attributes := first[key].attrs):
            check_kind("units", attributes.get_id("units").dtype)
            unit = attributes["units"]
        said[name] = unit.decode() if isinstance(unit, bytes) else str(unit)
    return said


def _mace_blocks(path: Path, file: h5py.File, options: ImportOptions) -> Iterator[Block]:
    for batch in sorted(file, key=_place):
        for name in sorted(file[batch], key=_place):
            yield _configuration(path, file[batch][name], options)


def _place(name: str) -> tuple[int, str]:
    """Order of `config_2` before `config_10`."""
    digits = re.search(r"\d+$", name)
    return (int(digits.group()) if digits else 0, name)


def _configuration(path: Path, group: h5py.Group, options: ImportOptions) -> Block:
    name = group.name.strip("/")
    inner = {key: _value(item) for key, item in _items(group) if isinstance(item, h5py.Dataset)}
    structure = {
        key: inner.pop(key, None) for key in ("atomic_numbers", "positions", "cell", "pbc")
    }
    weights = {key: _value(item) for key, item in _items(group.get("property_weights", {}))}
    for key in [key for key in inner if key.endswith("_weight")]:
        weights[key.removesuffix("_weight")] = inner.pop(key)
    values = inner | {key: _value(item) for key, item in _items(group.get("properties", {}))}
    present = {key: v for key, v in values.items() if v is not None and weights.get(key) != 0}
    keys = chosen_keys(present, options)
    cell = structure["cell"]
    pbc = np.zeros(3, bool) if structure["pbc"] is None else np.asarray(structure["pbc"], bool)
    return Block(
        name,
        atomic_numbers(structure["atomic_numbers"], str(path), f"of {name}"),
        ("positions", np.asarray(structure["positions"])[None]),
        {label: (key, np.asarray(present[key])[None]) for label, key in keys.items()},
        [
            *(key for key in present if key not in (*keys.values(), "weight")),
            *(["weight"] if present.get("weight", 1) != 1 else []),
            *(["property_weights"] if set(weights.values()) - {0, 1} else []),
        ],
        None if cell is None else np.asarray(cell, np.float64),
        pbc,
        charge_state(present),
    )


def _value(item: h5py.Dataset) -> Any:
    """A value, with MACE's text for a missing one as None."""
    value = values_of(item)
    value = value.decode() if isinstance(value, bytes) else value
    return None if isinstance(value, str) and value == "None" else value


_ANI = _Layout("ANI-1x", _ani_blocks, lambda _: {"energy": "Hartree", "positions": "Angstrom"})
_SPICE = _Layout("SPICE", _spice_blocks, _spice_units)
_MACE = _Layout("MACE", _mace_blocks, lambda _: {}, ", where a label of weight 0 is a missing one")
