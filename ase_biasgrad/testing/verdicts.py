"""Checks of a calculator and their verdicts: passed, failed, or not applicable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ase_biasgrad.testing.failures import Failure, NotApplicable, described
from ase_biasgrad.testing.subject import Subject

Outcome = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Check:
    """One named check; `number` is its line of the conformance list."""

    number: int
    run: Callable[[Subject], None]
    starts_a_process: bool = False

    @property
    def name(self) -> str:
        return f"{self.number:02d}_{self.run.__name__}"

    @property
    def title(self) -> str:
        """First line of the description, without its full stop."""
        return (self.run.__doc__ or self.run.__name__).splitlines()[0].rstrip(".")


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check."""

    check: Check
    outcome: Outcome
    reason: str = ""


def judged(check: Check, subject: Subject) -> Verdict:
    """Run one check."""
    try:
        check.run(subject)
    except Exception as error:
        return verdict(check, error)
    return verdict(check, None)


def verdict(check: Check, error: BaseException | None) -> Verdict:
    """Verdict of a check that ended in this exception; one that it does not expect is a failure."""
    if error is None:
        return Verdict(check, "passed")
    if isinstance(error, NotApplicable):
        return Verdict(check, "not applicable", str(error))
    return Verdict(check, "failed", str(error) if isinstance(error, Failure) else described(error))
