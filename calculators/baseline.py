"""The baseline of a potential that learned the difference to one: added back to its results."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed, CalculatorSetupError

from ase_biasgrad.baseline import Baseline, baseline_results


class AddedBaseline:
    """A baseline as checkpoints record it, and the calculator that gives it.

    Raises `CalculatorSetupError` if there is none, or it is another than the record names.

    Parameters
    ----------
    record
        Of the checkpoint.
    given
        The calculator; None makes the one that the record names.
    """

    def __init__(self, record: dict[str, Any], given: BaseCalculator | None) -> None:
        self.record, self._given = record, given
        try:
            baseline = Baseline.from_record(record)
            if given is not None:
                baseline.check(given)
            self.calculator = baseline.made() if given is None else given
            self.told = baseline.told
        except (ValueError, ImportError) as error:
            raise CalculatorSetupError(str(error)) from error

    def fresh(self) -> AddedBaseline:
        """Another one, for another thread."""
        return AddedBaseline(self.record, copy.deepcopy(self._given))

    def __reduce__(self) -> tuple[Any, ...]:  # calculators of other languages cannot be pickled
        return AddedBaseline, (self.record, self._given)

    def added(self, results: dict[str, Any], atoms: Atoms) -> dict[str, Any]:
        """Results with the baseline's; without properties that it does not give."""
        bare = atoms.copy()
        bare.constraints = []
        names = tuple(
            name for name in ("energy", "energies", "forces", "stress") if name in results
        )
        try:
            found = baseline_results(self.calculator, bare, names)
        except ValueError as error:
            raise CalculationFailed(str(error)) from error
        sums = {name: results[name] + found[name] for name in found}
        sums["energy"] = sums["free_energy"] = float(sums["energy"])
        others = {k: v for k, v in results.items() if k not in (*names, "free_energy")}
        return {**others, **sums}


def added_baseline(
    records: Sequence[dict[str, Any] | None], given: BaseCalculator | None
) -> AddedBaseline | None:
    """The baseline of a committee, None if its members have none; errors as in `AddedBaseline`.

    All members must have the same.
    """
    for k, record in enumerate(records):
        if record != records[0]:
            raise CalculatorSetupError(
                f"committee members 0 and {k} were trained on differences to other baselines: "
                f"{_told(records[0])} and {_told(record)}"
            )
    if records[0] is not None:
        return AddedBaseline(records[0], given)
    if given is not None:
        raise CalculatorSetupError("baseline: the potential was trained without one")
    return None


def _told(record: dict[str, Any] | None) -> str:
    return "none" if record is None else Baseline.from_record(record).told
