"""Verdicts on a calculator: passed, failed with measured and expected, or not applicable."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ase_biasgrad.testing.subject import Subject

Outcome = Literal["passed", "failed", "not applicable"]


class Failure(AssertionError):
    """A calculator does other than expected; says what was measured and what was expected."""

    def __init__(self, measured: str, expected: str) -> None:
        super().__init__(f"{measured}; expected {expected}")
        self.measured, self.expected = measured, expected


class NotApplicable(Exception):
    """A check that says nothing about this calculator, with the reason."""


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


def expect(fulfilled: Any, measured: str, expected: str) -> None:
    """Raise `Failure` unless `fulfilled`."""
    if not fulfilled:
        raise Failure(measured, expected)


def expect_small(value: float, limit: float, measured: str, unit: str) -> None:
    """Raise `Failure` unless a number is below a limit; NaN is not."""
    if not value <= limit:
        raise Failure(f"{measured} {value:.2g} {unit}", f"at most {limit:.2g} {unit}")


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


def described(error: BaseException) -> str:
    """Type, first line and place of an exception that a calculator raised."""
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    place = ""
    if foreign:
        place = f" ({without_folders(foreign[-1].filename)}:{foreign[-1].lineno})"
    return f"raised {short(error)}{place}; expected no exception"


def without_folders(text: str) -> str:
    """The same text, its file names without the folders of this machine."""
    return re.sub(r"/\S*/(?:site-packages|lib/python[\d.]+)/", "", text)


def short(error: BaseException) -> str:
    """Type and first line of an exception."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
