"""Names that labels have in files of others, and an account of what became of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.data.dataset import LABELS, DataError, real_array
from ase_biasgrad.data.importers.options import ImportOptions, Units

# taken without being asked, in the order of preference, whatever their case
TAKEN: dict[str, tuple[str, ...]] = {
    "energy": ("ref_energy", "energy"),
    "forces": ("ref_forces", "ref_force", "forces", "force"),
    # virials are converted
    "stress": ("ref_stress", "stress", "ref_virials", "ref_virial", "virials", "virial"),
}
PLURAL = {"energy": "energies"}
NAME_IT = "take it with --key {kind}={key}"
NO_CHARGES = "potentials here know no charges and no spins"
# (pattern, what it is, what to do about it) of keys that are not taken, the first that fits
LIKE: tuple[tuple[str, str, str], ...] = (
    (r"units?$", "unit", "not understood, so not used: --energy-unit and --length-unit say units"),
    (r"weight", "weight", "weights of frames and labels are not used"),
    (r"grad(ient)?s?$", "forces", NAME_IT + ", which changes the sign"),
    (r"^energies$|^stresses$", "values of each atom", "they are not used"),
    (r"virial", "stress", NAME_IT + ", which divides by the volume"),
    (r"energ(y|ies)|toten|etot|enthalpy|^u0$|^e$", "energy", NAME_IT),
    (r"force|^f$", "forces", NAME_IT),
    (r"stress|pressure", "stress", NAME_IT),
    (r"charge|multiplicity|spin|mag_?mom|magnetic", "charge or spin", NO_CHARGES),
    (r"^(cell|lattice|box|pbc|volume)", "cell", "the structure's own cell is used"),
    (
        r"(di|quadru|octu)pole|polari|hessian|gap$|homo|lumo|dielectric|born",
        "property",
        "bring it in as it is with --key {key}={key}",
    ),
)
STRUCTURE = frozenset({"numbers", "positions", "momenta", "masses", "tags", "move_mask"})


def like(key: str) -> tuple[str, str] | None:
    """Kind of label that a key looks like, and what to do about it; None if like nothing."""
    for pattern, kind, advice in LIKE:
        if re.search(pattern, key.lower()):
            return kind, advice.format(kind=kind, key=key)
    return None


@dataclass
class Account:
    """Frames by label and by the key that it came from, and keys that were not taken."""

    frames: int = 0
    skipped: int = 0
    # by label and key; 0 where a key never held a number that can be used
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    nan: Counter[str] = field(default_factory=Counter)
    unperiodic: int = 0  # frames whose stress means nothing
    left: Counter[str] = field(default_factory=Counter)

    def said(self, heading: str, options: ImportOptions) -> str:
        """Lines for each label and for each key left out, under `heading`."""
        said = [heading]
        said += [f"{name}: left out, as you say" for name in options.without]
        for name in wanted_labels(options):
            keys = {key: count for (label, key), count in self.taken.items() if label == name}
            total = sum(keys.values())
            if name == "stress" and not keys:
                continue
            origin = " and ".join(
                f"{key}{_changed(name, key)}" + (f" ({n})" if len(keys) > 1 else "")
                for key, n in keys.items()
            )
            missing = f", {self.nan[name]} times NaN" if self.nan[name] else ""
            taken = f", from {origin}" if origin else f"; no {PLURAL.get(name, name)}"
            said.append(f"{name}: in {total} of {self.frames} frames{missing}{taken}")
        if self.unperiodic:
            said.append(
                f"stress: left out in {self.unperiodic} frames that are not periodic, where it "
                "means nothing"
            )
        for key, count in self.left.items():
            if (found := like(key)) is not None:
                said.append(f"left out: {key} ({found[0]}) in {count} frames; {found[1]}")
        if rest := [key for key in self.left if like(key) is None]:
            said.append(f"not used: {', '.join(rest)}")
        return "\n  ".join(said)


def _changed(name: str, key: str) -> str:
    if name == "stress":
        six = " (six numbers are xx yy zz yz xz xy)"
        return (" by −virial/volume" if _is_virial(key) else "") + six
    return " with its sign changed" if name == "forces" and _is_gradient(key) else ""


def _is_virial(key: str) -> bool:
    return "virial" in key.lower()


def _is_gradient(key: str) -> bool:
    return re.search(r"grad(ient)?s?$", key.lower()) is not None


def wanted_labels(options: ImportOptions) -> list[str]:
    """Energy, forces, stress and what the user names besides, less what is left out."""
    names = [*LABELS, *(name for name in options.keys or {} if name not in LABELS)]
    return [name for name in names if name not in options.without]


def chosen_keys(present: Iterable[str], options: ImportOptions) -> dict[str, str]:
    """Key among `present` of each label that is wanted and there."""
    keys = {name: choose(name, present, options) for name in wanted_labels(options)}
    return {name: key for name, key in keys.items() if key is not None}


def choose(name: str, present: Iterable[str], options: ImportOptions) -> str | None:
    """Key among `present` that `name` is taken from."""
    if options.keys and name in options.keys:
        return options.keys[name] if options.keys[name] in present else None
    names = TAKEN.get(name, ())
    found = [key for key in present if key.lower() in names]
    return min(found, key=lambda key: names.index(key.lower()), default=None)


def require_named(path: Path, account: Account, options: ImportOptions) -> None:
    """Refuse a source that has nothing of what the user named.

    Raises
    ------
    DataError
        The message lists the keys that the source has.
    """
    for name, key in (options.keys or {}).items():
        if name not in options.without and not account.taken[name, key] and not account.nan[name]:
            there = sorted({*account.left, *(key for _, key in account.taken)})
            raise DataError(
                f"{path}: has no {key} (for {name}); its keys are {', '.join(there) or 'none'}"
            )


def unlabelled(where: str, keys: Iterable[str]) -> str:
    """Message about a frame without any label, whose keys are `keys`."""
    found = [key for key in keys if (kind := like(key)) and kind[0] in LABELS]
    looked = "REF_energy, energy, REF_forces, forces, REF_stress, stress, virial"
    name_them = "name them with --key energy=…, --key forces=…"
    return (
        f"{where}: has no labels under {looked} or what you named; "
        + (f"it has {', '.join(found)}: {name_them}" if found else name_them)
        + ", or leave such frames out with --skip-unlabelled"
    )


def converted(
    name: str, key: str, values: Any, units: Units, volume: np.ndarray, where: str
) -> np.ndarray:
    """A label of frames with volumes `(m,)` in eV and Å; others than LABELS may be texts.

    Raises `DataError` on values that are no real numbers, or no stress.
    """
    if name not in LABELS and np.asarray(values).dtype.kind == "U":
        return np.asarray(values)
    array = real_array(values, f"{where}: {key}")
    if np.asarray(values).dtype.kind == "b":
        raise DataError(f"{where}: {key}: holds true or false, expected numbers")
    if name == "energy":
        fits = array.size == volume.size  # (1,) in SchNetPack, (m, 1) in MD17
        return (array.reshape(volume.shape) if fits else array) * units.factors[name]
    if name == "forces":
        return array * (-units.factors[name] if _is_gradient(key) else units.factors[name])
    if name != "stress":
        return array
    stress = _voigt(array, volume.shape, f"{where}: {key}")
    if _is_virial(key):
        with np.errstate(divide="ignore", invalid="ignore"):
            stress = -stress * units.factors["energy"] / volume[:, None]
        return stress
    return stress * units.factors[name]


def _voigt(stress: np.ndarray, leading: tuple[int, ...], where: str) -> np.ndarray:
    """`(…, 6)` in ASE's order, of that or of `(3, 3)` matrices."""
    if stress.shape == (*leading, 6):
        return stress
    if stress.size == 9 * int(np.prod(leading)):
        full = stress.reshape(*leading, 3, 3)
        if not np.allclose(full, full.swapaxes(-1, -2), atol=1e-6, equal_nan=True):
            raise DataError(f"{where}: is not symmetric")
        return full[..., [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    raise DataError(
        f"{where}: has shape {told(stress.shape)}, expected {told((*leading, 6))} or "
        f"{told((*leading, 3, 3))}"
    )


def told(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape for messages, without the axis of a single frame."""
    return shape[1:] if shape[:1] == (1,) else shape


def charge_state(values: Mapping[str, Any]) -> tuple[int, str]:
    """Total charge, and a spin state that differs from a closed shell, of what a frame says.

    A multiplicity or spin of 0 or 1 is a singlet; moments count from 0.5 μ_B.
    """
    lower = {key.lower(): value for key, value in values.items()}

    def number(*names: str) -> float:
        for name in names:
            try:
                value = float(np.sum(np.asarray(lower[name], float)))
            except (KeyError, TypeError, ValueError):
                continue
            if np.isfinite(value):
                return value
        return 0.0

    charge = number("charge", "total_charge", "tot_charge", "net_charge", "initial_charges")
    spin = number("multiplicity", "spin_multiplicity", "spin")
    moment = abs(number("magmom", "total_magmom", "magmoms"))
    if spin > 1:
        return round(charge), f"spin or multiplicity {spin:g}"
    return round(charge), "spin-polarised" if moment > 0.5 else ""
