"""Failures of checks, with measured and expected, and the word of those that do not apply."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any


class Failure(AssertionError):
    """A calculator does other than expected; says what was measured and what was expected."""

    def __init__(self, measured: str, expected: str) -> None:
        super().__init__(f"{measured}; expected {expected}")
        self.measured, self.expected = measured, expected


class NotApplicable(Exception):
    """A check that says nothing about this calculator, with the reason."""


def expect(fulfilled: Any, measured: str, expected: str) -> None:
    """Raise `Failure` unless `fulfilled`."""
    if not fulfilled:
        raise Failure(measured, expected)


def expect_small(value: float, limit: float, measured: str, unit: str) -> None:
    """Raise `Failure` unless a number is below a limit; NaN is not."""
    if not value <= limit:
        raise Failure(f"{measured} {value:.2g} {unit}", f"at most {limit:.2g} {unit}")


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
