"""Numbers that a dataset can hold by mistake only: wrong units, doubled frames, outliers."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from ase.units import GPa, Hartree

from ase_biasgrad.data.dataset import formula
from ase_biasgrad.data.writer import closest_pair
from ase_biasgrad.units import ENERGY, N_ELEMENTS

CLOSEST = 0.3  # Å
LARGEST_STRESS = 1000 * GPa
TYPICAL_STRESS = 400 * GPa  # no set's median is above
TYPICAL_FORCE = 10.0  # eV/Å; no set's median is above
OUTLIER = 1000.0  # times the median force
LARGEST_ENERGY = 30.0  # eV per atom; nothing is as unbound
BOUND = 1.3  # times the energy of the isolated atoms with all their electrons
SAME = 0.04  # relative; molecules are bound by less than that of their atoms' energies
UNITS = ("kcal/mol", "kJ/mol", "Hartree")  # that energies are often in


@cache
def all_electron_energy(number: int) -> float:
    """Energy of an isolated atom with all its electrons in eV, to about 2 %.

    E(Z) = −0.768745 Z^(7/3) + Z²/2 − 0.2699 Z^(5/3) Hartree (Thomas-Fermi, Scott and Schwinger:
    J. Schwinger, Phys. Rev. A 24, 2353 (1981)); hydrogen and helium as they are.
    """
    light = {1: -0.5, 2: -2.9037}
    z = float(number)
    series = -0.768745 * z ** (7 / 3) + z**2 / 2 - 0.2699 * z ** (5 / 3)
    return light.get(number, series) * Hartree


@dataclass
class _Source:
    """Numbers kept of each frame of a file."""

    ratios: list[float] = field(default_factory=list)  # energy / that of the isolated atoms
    forces: list[float] = field(default_factory=list)  # median length in each frame
    largest: list[tuple[float, int, str]] = field(default_factory=list)
    stresses: list[float] = field(default_factory=list)


class Questions:
    """Frames of an import looked at one by one, and what is to be asked about them."""

    def __init__(self) -> None:
        self._sources: defaultdict[Path, _Source] = defaultdict(_Source)
        self._first: dict[bytes, str] = {}
        # kind of question: how often it came up, and the first case
        self._found: dict[str, tuple[int, str]] = {}
        self._states: defaultdict[bytes, dict[tuple[int, str], str]] = defaultdict(dict)

    def add(
        self,
        path: Path,
        where: str,
        numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        energy: np.ndarray | None = None,
        forces: np.ndarray | None = None,
        stress: np.ndarray | None = None,
        state: tuple[int, str] = (0, ""),
    ) -> None:
        """Look at one frame in eV and Å; `state` is its charge and spin."""
        source, numbers = self._sources[path], np.asarray(numbers, np.int64)
        self._states[np.sort(numbers).tobytes()].setdefault(state, where)
        if (pair := closest_pair(positions, cell, pbc, CLOSEST)) is not None:
            said = (
                f"atoms {pair[0]} and {pair[1]} are closer than {CLOSEST} Å: a wrong length unit?"
            )
            self._ask("close", f"{where}: {said}")
        if len(numbers) > 1:
            same = hashlib.blake2b(numbers.tobytes(), digest_size=16)
            same.update((np.round(positions, 6) + 0.0).tobytes())
            same.update((np.round(cell, 6) + 0.0).tobytes())
            before = self._first.setdefault(same.digest(), where)
            if before is not where:
                self._ask("twice", f"{where}: the same structure as {before}")
        if energy is not None and np.isfinite(energy):
            self._look_at_energy(source, where, numbers, float(energy))
        if forces is not None and np.isfinite(forces).all():
            lengths = np.linalg.norm(forces, axis=1)
            atom = int(np.argmax(lengths))
            source.forces.append(float(np.median(lengths)))
            source.largest.append((float(lengths[atom]), atom, where))
        if stress is not None and np.isfinite(stress).all():
            largest = float(np.abs(stress).max())
            source.stresses.append(largest)
            if largest > LARGEST_STRESS:
                self._ask("stress", f"{where}: {_stress(largest)}")

    def _look_at_energy(
        self, source: _Source, where: str, numbers: np.ndarray, energy: float
    ) -> None:
        atoms = sum(all_electron_energy(int(z)) for z in numbers)
        source.ratios.append(energy / atoms)
        per_atom = energy / len(numbers)
        if energy / atoms > BOUND or per_atom > LARGEST_ENERGY:
            self._ask(
                "energy",
                f"{where}: an energy of {energy:.6g} eV, {per_atom:.6g} eV per atom, and the "
                f"isolated atoms with all their electrons have {atoms:.6g} eV"
                + _likely(energy / atoms, 0.3),
            )

    def _ask(self, kind: str, said: str) -> None:
        count, first = self._found.get(kind, (0, said))
        self._found[kind] = (count + 1, first)

    def found(self) -> list[str]:
        """A line for each kind of question; none where all is plausible."""
        lines = [
            said + (f" (and {count - 1} more frames like this)" if count > 1 else "")
            for count, said in self._found.values()
        ]
        for path, source in self._sources.items():
            lines += self._about(path, source)
        for key, states in self._states.items():
            if len(states) > 1:
                made = formula(np.bincount(np.frombuffer(key, np.int64), minlength=N_ELEMENTS))
                named = [f"{_state(*state)} ({where})" for state, where in states.items()]
                lines.append(
                    f"{made}: {' beside '.join(named[:3])}; a potential cannot tell them apart, "
                    "so keep one charge and spin for each composition"
                )
        return lines

    def _about(self, path: Path, source: _Source) -> list[str]:
        lines = []
        ratio = float(np.median(source.ratios)) if source.ratios else 0.0
        if 0 < ratio <= BOUND and (likely := _likely(ratio, SAME)):
            lines.append(
                f"{path}: energies are {ratio:.4g} times those of the isolated atoms with all "
                f"their electrons{likely}"
            )
        typical = float(np.median([f for f in source.forces if f > 0] or [0.0]))
        if typical > TYPICAL_FORCE:
            lines.append(
                f"{path}: half of the forces are above {typical:.4g} eV/Å (in "
                f"{max(source.largest)[2]} {max(source.largest)[0]:.4g}); in kcal/mol/Å that would "
                f"be {typical * ENERGY['kcal/mol']:.3g} eV/Å, in kJ/mol/Å "
                f"{typical * ENERGY['kJ/mol']:.3g} eV/Å: a wrong --energy-unit?"
            )
        odd = [case for case in source.largest if case[0] > max(1.0, OUTLIER * typical)]
        if typical and odd:
            length, atom, where = odd[0]
            lines.append(
                f"{where}: a force of {length:.4g} eV/Å on atom {atom}, {length / typical:.3g} "
                f"times the median {typical:.3g} eV/Å"
                + (f" (and {len(odd) - 1} more frames like this)" if len(odd) > 1 else "")
            )
        pressure = float(np.median(source.stresses)) if source.stresses else 0.0
        if TYPICAL_STRESS < pressure <= LARGEST_STRESS:
            lines.append(f"{path}: half of the frames have {_stress(pressure)} or more")
        return lines


def _likely(ratio: float, tolerance: float) -> str:
    """Unit in which energies that are `ratio` times those of the atoms would be theirs."""
    for unit in UNITS if ratio > 0 else ():
        if abs(np.log(ratio * ENERGY[unit])) < np.log1p(tolerance):
            return f": {unit} taken for eV? (say --energy-unit)"
    return ""


def _stress(value: float) -> str:
    return (
        f"a stress of {value:.4g} eV/Å³ = {value / GPa:.4g} GPa; is it in kbar (then "
        f"{value * GPa / 10:.3g} eV/Å³) or GPa ({value * GPa:.3g} eV/Å³), or a virial (converted "
        "where the key says virial)?"
    )


def _state(charge: int, spin: str) -> str:
    return ", ".join(part for part in (f"charge {charge:+d}" if charge else "", spin) if part) or (
        "neutral, closed shell"
    )
