"""`BiasedCalculator`: any ASE calculator, its energy with a bias of the composition."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator, CalculatorSetupError, InputError
from ase.outputs import Properties, all_outputs

from ase_biasgrad.bias_arrays import BiasArrays
from ase_biasgrad.bias_file import read_bias
from ase_biasgrad.calculators.calculator import EnergyZeroWarning, unknown_zero
from ase_biasgrad.named_calculators import class_name
from ase_biasgrad.neighbours import is_isolated
from ase_biasgrad.units import N_ELEMENTS

if TYPE_CHECKING:
    from ase_biasgrad.bias import Bias

CORRECTED = ("energy", "free_energy", "energies")
# all other public names are those of the calculator underneath
OWN = frozenset(
    {
        *("calc", "zero", "strict", "copy", "name", "results", "todict", "evaluate_many"),
        *("get_property", "get_potential_energy", "get_potential_energies"),
        *("calculate_properties", "export_properties"),
    }
)


class BiasedCalculator(Calculator):
    """A calculator whose energy gets the bias b of its composition; nothing else of it changes.

    Energy, free energy and energies of the atoms are E + b in float64. Forces, stress, Hessian and
    every other result are passed on as `calc` gives them, bit for bit. So are its other attributes
    and methods (`parameters`, `set`, `reset`, `check_state`, `device`, …): it keeps the state, and
    there is no second one. `calc.results["energy_reference_std"]` is the standard error of b in eV,
    NaN where the data of its fit does not show one.

    Parameters
    ----------
    calc
        Any calculator of ASE's interface (`get_property`).
    zero
        A file of `biasgrad fit-bias --calculator`, or a `Bias` fitted to the energies of `calc`.
    strict
        Raise an error for energies whose zero is not known, instead of a warning once.

    Raises
    ------
    ase.calculators.calculator.CalculatorSetupError
        If `calc` is no calculator, or `strict` and the bias was fitted to another class of them.
    ase_biasgrad.bias_file.BiasFileError
        On a file that is no bias.
    """

    def __init__(
        self, calc: BaseCalculator, zero: str | Path | Bias | BiasArrays, strict: bool = False
    ) -> None:
        if not callable(getattr(calc, "get_property", None)):
            raise CalculatorSetupError(f"{calc!r} is no calculator of ASE: it has no get_property")
        self.calc = calc
        self.zero = _arrays(zero)
        self.strict = strict
        self._warned = False
        self._bias_of: tuple[tuple[bytes, bool], _Correction] | None = None
        fitted = self.zero.fit_report.get("calculator", {}).get("class")
        if fitted not in (None, *(class_name(each) for each in type(calc).__mro__)):
            message = (
                f"the bias was fitted to energies of {fitted}, and this calculator is "
                f"{class_name(type(calc))}: its energies have another zero"
            )
            if strict:
                raise CalculatorSetupError(message)
            warnings.warn(message, EnergyZeroWarning, stacklevel=2)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in OWN:
            return super().__getattribute__(name)
        return getattr(super().__getattribute__("calc"), name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "calc" not in self.__dict__:  # half made, as when unpickled
            raise AttributeError(name)
        return getattr(self.calc, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.calc, name, value)

    def _get_name(self) -> str:  # ASE's hook; the name in ASE's tables, files and databases
        return f"biased-{getattr(self.calc, 'name', type(self.calc).__name__.lower())}"

    def copy(self) -> BiasedCalculator:
        """Another calculator, of `calc.copy()`."""
        return type(self)(self.calc.copy(), self.zero, self.strict)

    def todict(self) -> dict[str, Any]:
        """Description of the calculator underneath, and of the bias, in JSON values."""
        fit = self.zero.fit_report
        kept = {key: fit[key] for key in ("method", "frames", "data", "calculator") if key in fit}
        return {**self.calc.todict(), "energy_zero": {"zero": self.zero.zero, **kept}}

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return a property of `atoms`, calculated where they changed."""
        if name in CORRECTED and self.strict and atoms is not None:
            self._correction(atoms)  # an error comes before the work
        value = self.calc.get_property(name, atoms, allow_calculation)
        if value is None or name not in CORRECTED:
            return value
        return self._correction(self.calc.atoms if atoms is None else atoms).added(value, name)

    @property
    def results(self) -> dict[str, Any]:
        """Results of the last calculation, those of `calc` with the bias added.

        Without energies where their zero is not known and `strict`.
        """
        return self._with_bias(self.calc.results, self.calc.atoms)

    def export_properties(self) -> Properties:
        """Results under ASE's standard names."""
        return Properties({k: v for k, v in self.results.items() if k in all_outputs})

    def evaluate_many(self, structures: Sequence[Atoms], *args: Any, **kw: Any) -> list[Any]:
        """Results of many structures, where `calc` has this method."""
        many = self.calc.evaluate_many(structures, *args, **kw)
        return [self._with_bias(each, atoms) for each, atoms in zip(many, structures, strict=True)]

    def _with_bias(self, results: dict[str, Any], atoms: Atoms | None) -> dict[str, Any]:
        energies = [name for name in CORRECTED if name in results]
        found = {name: value for name, value in results.items() if name not in CORRECTED}
        if not energies or atoms is None:
            return found
        try:
            correction = self._correction(atoms)
        except InputError:
            return found
        found |= {name: correction.added(results[name], name) for name in energies}
        return {**found, "energy_reference_std": correction.error}

    def _correction(self, atoms: Atoms) -> _Correction:
        """Bias of these atoms, which depends on their numbers alone.

        Raises
        ------
        ase.calculators.calculator.InputError
            If it is not known, and `strict`.
        """
        isolated = is_isolated(atoms.positions, atoms.cell.array, atoms.pbc)
        key = (atoms.numbers.tobytes(), isolated)
        kept = self._bias_of  # other threads may replace it
        if kept is None or kept[0] != key:
            kept = self._bias_of = (key, _Correction(self.zero, atoms.numbers, isolated))
        if not kept[1].known and (self.strict or not self._warned):
            message = unknown_zero({self.zero.zero}, atoms.numbers)
            if self.strict:
                raise InputError(message)
            warnings.warn(message, EnergyZeroWarning, stacklevel=4)
            self._warned = True
        return kept[1]


class _Correction:
    """Bias of a composition by atom, its standard error, and the state of both."""

    def __init__(self, zero: BiasArrays, numbers: np.ndarray, isolated: bool) -> None:
        counts = np.bincount(numbers, minlength=N_ELEMENTS)
        self.by_atom = zero.per_atom(numbers)
        self.error = float(zero.standard_error(counts[None])[0])
        self.known = not len(numbers) or zero.knows(counts, isolated)

    def added(self, value: Any, name: str) -> Any:
        """Energy, or energies of the atoms `(n,)`, with the bias."""
        energy = np.asarray(value, np.float64)
        if name == "energies" and energy.shape == self.by_atom.shape:
            return energy + self.by_atom
        if energy.size != 1:  # of the members of a committee
            return energy + self.by_atom.sum()
        return energy.item() + float(self.by_atom.sum())


def _arrays(zero: str | Path | Bias | BiasArrays) -> BiasArrays:
    if isinstance(zero, (str, Path)):
        return read_bias(zero)
    if isinstance(zero, BiasArrays):
        return zero
    from ase_biasgrad.bias import Bias

    if not isinstance(zero, Bias):
        raise CalculatorSetupError(f"{zero!r} is neither the path of a bias nor a Bias")
    return copy.deepcopy(zero.arrays())
