"""`PotentialCalculator`: state, checks and locks that our calculators have in common."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorSetupError, InputError, all_changes
from ase.outputs import Properties, all_outputs

from ase_biasgrad.calculators.checks import (
    changes_between,
    check_finite,
    check_neutral,
    check_numbers_and_positions,
    info_values,
    kept_copy,
)


class PotentialCalculator(Calculator):
    """ASE's calculator, made exact, strict, and safe to share between threads.

    Threads that share one calculator wait for each other; `copy()` gives each its own.
    A subclass sets `elements` and evaluates.
    """

    nolabel = True
    elements: Collection[int]
    advice = ""  # ends the message about results that are not finite
    _info: tuple[Any, ...] = ()
    _kept: Atoms | None = None

    def __init__(self) -> None:
        self._lock = threading.RLock()
        super().__init__()

    @abstractmethod
    def evaluated(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """Return the results for checked atoms."""

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Changes since the last calculation, exactly; `tol` is there for ASE's sake."""
        return changes_between(self.atoms, self._info, atoms)

    def reset(self) -> None:
        """Forget the last structure and its results."""
        with self._lock:
            super().reset()

    def set(self, **arguments: Any) -> dict[str, Any]:
        """Raise `CalculatorSetupError` if any argument is given: make a new calculator instead."""
        if arguments:
            raise CalculatorSetupError(
                f"{sorted(arguments)} cannot be set; make a new {type(self).__name__}"
            )
        return {}

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return a property of `atoms`, calculated where they changed; one thread at a time."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def export_properties(self) -> Properties:
        """Results under ASE's standard names."""
        return Properties({k: v for k, v in self.results.items() if k in all_outputs})

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; see ASE's documentation of this method."""
        with self._lock:
            self.results = {}  # of other atoms, should anything below fail
            if atoms is not None:
                # ASE forgets `atoms` before it asks for a calculation
                self.atoms = self._kept = kept_copy(self._kept, atoms)
            if self.atoms is None:
                raise InputError("there are no atoms to calculate")
            self._info = info_values(self.atoms)
            self.check(self.atoms)
            results = self.evaluated(self.atoms, properties)
            check_finite(results, len(self.atoms), self.advice)
            self.results = results

    def take(self, atoms: Atoms, results: dict[str, Any]) -> None:
        """Hold `results` of `atoms`, found elsewhere by the same potential, as calculated here."""
        with self._lock:
            self.atoms = self._kept = kept_copy(self._kept, atoms)
            self._info = info_values(self.atoms)
            self.results = results

    def check(self, atoms: Atoms) -> None:
        """Raise `InputError` on a structure that the potential cannot describe."""
        check_numbers_and_positions(atoms, self.elements)
        check_neutral(atoms)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = threading.RLock()
