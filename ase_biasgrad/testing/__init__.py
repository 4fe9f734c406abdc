"""The conformance list of ASE calculators as named checks, for a calculator of anybody.

`pytest --ase-calculator module:function` runs it, and in Python `verdicts_on(Subject(function))`.
Importing this package is quick: pytest imports it in every run.
"""

from typing import TYPE_CHECKING

from ase_biasgrad.lazy import lazy_names

if TYPE_CHECKING:
    from ase_biasgrad.testing.checks import CHECKS, verdicts_on
    from ase_biasgrad.testing.failures import Failure, NotApplicable
    from ase_biasgrad.testing.subject import Subject
    from ase_biasgrad.testing.verdicts import Check, Verdict

__all__ = ["CHECKS", "Check", "Failure", "NotApplicable", "Subject", "Verdict", "verdicts_on"]

__getattr__ = lazy_names(
    __name__,
    {
        "CHECKS": "ase_biasgrad.testing.checks",
        "Check": "ase_biasgrad.testing.verdicts",
        "Failure": "ase_biasgrad.testing.failures",
        "NotApplicable": "ase_biasgrad.testing.failures",
        "Subject": "ase_biasgrad.testing.subject",
        "Verdict": "ase_biasgrad.testing.verdicts",
        "verdicts_on": "ase_biasgrad.testing.checks",
    },
)
