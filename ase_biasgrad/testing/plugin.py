"""pytest plugin: `pytest --ase-calculator module:function` runs the conformance list.

Loaded by every pytest of an environment, so it imports nothing until it is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ase_biasgrad.testing.subject import Subject
    from ase_biasgrad.testing.verdicts import Check, Verdict

OPTION = "--ase-calculator"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the conformance list."""
    group = parser.getgroup("ase-calculator", "conformance of an ASE calculator")
    group.addoption(
        OPTION,
        metavar="MODULE:FUNCTION",
        help="factory of the calculator that is tested: a function without arguments, or a class",
    )
    group.addoption(
        "--ase-elements",
        metavar="H,C,O",
        help="elements that it supports; without them the usual structures are tried, or those in "
        "the attribute `structures` of the factory",
    )
    group.addoption(
        "--ase-tolerance",
        type=float,
        metavar="EV_PER_ANGSTROM",
        help="difference of forces that counts as rounding (default 2e-4, for float32)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Without paths, the list alone is run: not the tests of the working folder."""
    if config.getoption(OPTION) is None:
        for option in ("--ase-elements", "--ase-tolerance"):
            if config.getoption(option) is not None:
                raise pytest.UsageError(f"{option} goes with {OPTION} MODULE:FUNCTION")
    elif config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the list before anything is deselected."""
    if session.config.getoption(OPTION) is not None:
        subject = _subject(session.config)
        session.config.stash[FOUND] = []
        node = Conformance.from_parent(session, name="conformance", subject=subject)
        items.extend(session.genitems(node))


class Conformance(pytest.Collector):
    """All checks of the list, on one calculator."""

    def __init__(self, *, subject: Subject, **keywords: Any) -> None:
        super().__init__(nodeid="conformance", **keywords)
        self.subject = subject

    def collect(self) -> Iterator[pytest.Item]:
        """One item for each check."""
        from ase_biasgrad.testing.checks import CHECKS

        for check in CHECKS:
            yield ConformanceItem.from_parent(
                self, name=check.name, check=check, subject=self.subject
            )


class ConformanceItem(pytest.Item):
    """One check."""

    def __init__(self, *, check: Check, subject: Subject, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.check, self.subject = check, subject

    def runtest(self) -> None:
        """Run the check; what does not apply is skipped with its reason."""
        from ase_biasgrad.testing.failures import NotApplicable

        try:
            self.check.run(self.subject)
        except NotApplicable as error:
            raise pytest.skip.Exception(str(error)) from error

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Measured and expected, or the traceback of an exception that was not expected."""
        from ase_biasgrad.testing.failures import Failure

        if isinstance(excinfo.value, Failure):
            return (
                f"{self.check.title}.\n\nmeasured: {excinfo.value.measured}\n"
                f"expected: {excinfo.value.expected}"
            )
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Place and name for reports."""
        return "conformance", None, self.name


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Keep the verdict for the summary."""
    if isinstance(item, ConformanceItem) and call.when == "call":
        from ase_biasgrad.testing.verdicts import verdict

        error = None if call.excinfo is None else call.excinfo.value
        if isinstance(error, pytest.skip.Exception):
            error = error.__cause__
        item.config.stash[FOUND].append(verdict(item.check, error))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line for each check."""
    found = config.stash.get(FOUND, None)
    if not found:
        return
    terminalreporter.section(f"conformance of {config.getoption(OPTION)}")
    colours = {"passed": {"green": True}, "failed": {"red": True}, "not applicable": {"bold": True}}
    for verdict in found:
        terminalreporter.write(f"{verdict.outcome:14s} ", **colours[verdict.outcome])
        reason = f": {verdict.reason}" if verdict.reason else ""
        terminalreporter.write_line(f"{verdict.check.name}{reason}")
    count = {kind: sum(v.outcome == kind for v in found) for kind in colours}
    terminalreporter.write_line(", ".join(f"{number} {kind}" for kind, number in count.items()))


FOUND = pytest.StashKey[list["Verdict"]]()


def _subject(config: pytest.Config) -> Subject:
    from ase_biasgrad.testing.structures import numbers_of
    from ase_biasgrad.testing.subject import TOLERANCE, Subject, factory

    if os.getcwd() not in sys.path:  # the factory may be a file in the working folder
        sys.path.insert(0, os.getcwd())
    name, names = config.getoption(OPTION), config.getoption("--ase-elements")
    try:
        make = factory(name)
        elements = None if names is None else numbers_of([n.strip() for n in names.split(",")])
        make()
    except Exception as error:
        raise pytest.UsageError(f"{OPTION} {name}: {error}") from error
    tolerance = config.getoption("--ase-tolerance")
    structures = getattr(make, "structures", None)
    return Subject(make, elements, structures, TOLERANCE if tolerance is None else tolerance, name)
