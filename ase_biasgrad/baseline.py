"""Baselines: calculators of ASE to which a network learned the difference.

A potential with a baseline is E = E_baseline + E_network + b. Its checkpoint records the baseline
by name, arguments, class and version; the network alone is no potential.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.named_calculators import TBLITE_METHODS, class_name, labelling_calculator

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

# a checkpoint may make these by itself; any other name in it could run code of its author
TRUSTED = (
    *TBLITE_METHODS,
    *("emt", "lj", "morse"),
    *("tblite.ase:TBLite", "dftd3.ase:DFTD3", "dftd4.ase:DFTD4"),
)
# arguments of ASE's calculators by which files are read or programs run
UNTRUSTED_ARGUMENTS = {"command", "profile", "restart", "label", "directory", "atoms"}


@dataclass(frozen=True)
class Baseline:
    """A baseline as a checkpoint records it."""

    calculator: str  # its name, as `biasgrad data sample --calculator` takes it
    arguments: dict[str, Any]  # its keyword arguments, JSON values
    kind: str  # module and name of its class
    # package, version: the distribution that the class is from, None where it is from none
    package: str | None = None
    version: str | None = None

    @classmethod
    def of(cls, name: str, arguments: dict[str, Any], calculator: BaseCalculator) -> Baseline:
        """For a calculator that was made by name."""
        package, release = _release(type(calculator))
        return cls(name, arguments, class_name(type(calculator)), package, release)

    @classmethod
    def from_record(cls, record: Any) -> Baseline:
        """Baseline with the JSON values of `record`.

        Raises `ValueError` if they are damaged; the message names the key.
        """
        kinds = {"calculator": str, "arguments": dict, "kind": str}
        kinds |= {"package": (str, type(None)), "version": (str, type(None))}  # type: ignore[dict-item]
        if not isinstance(record, dict) or set(record) != set(kinds):
            raise ValueError(f"baseline: {str(record)[:80]}, must have the keys {', '.join(kinds)}")
        for key, kind in kinds.items():
            if not isinstance(record[key], kind):
                raise ValueError(f"baseline.{key}: {str(record[key])[:80]!r} cannot be one")
        return cls(**record)

    def record(self) -> dict[str, Any]:
        """The baseline as JSON values."""
        return asdict(self)

    @property
    def told(self) -> str:
        """Name and arguments, for messages."""
        arguments = json.dumps(self.arguments, ensure_ascii=False) if self.arguments else ""
        release = f", {self.package} {self.version}" if self.version else ""
        return f"{self.calculator}{arguments} ({self.kind}{release})"

    def made(self, trust: bool = False) -> BaseCalculator:
        """The calculator, made anew; `trust` makes one that could run anything.

        Raises `ImportError` if its package is missing (the message says what to install), and
        `ValueError` if it is none that a checkpoint may name, or cannot be made.
        """
        own = self.calculator if ":" in self.calculator else self.calculator.lower()
        if not trust and (own not in TRUSTED or UNTRUSTED_ARGUMENTS & set(self.arguments)):
            raise ValueError(
                f"the potential was trained on the difference to {self.told}, which is not made "
                "from a file, since that could run anything; make it yourself and hand it over "
                "(baseline=…); `biasgrad evaluate --trust-baseline` makes it"
            )
        calculator = labelling_calculator(self.calculator, self.arguments)
        self.check(calculator)
        return calculator

    def check(self, calculator: BaseCalculator) -> None:
        """Refuse a calculator of another class; warn of another version.

        Raises `ValueError` naming both classes.
        """
        kinds = [class_name(kind) for kind in type(calculator).__mro__]
        if self.kind not in kinds:
            raise ValueError(
                f"the potential was trained on the difference to {self.told}, and this baseline "
                f"is {kinds[0]}"
            )
        package, release = _release(type(calculator))
        if (package, release) != (self.package, self.version):
            warnings.warn(
                f"the potential was trained on the difference to {self.told}, and {package} "
                f"{release} is installed; its results may be others",
                stacklevel=2,
            )


def baseline_results(
    calculator: BaseCalculator, atoms: Atoms, names: tuple[str, ...]
) -> dict[str, Any]:
    """Properties of a baseline that it has: those of `names` that it implements.

    Raises `ValueError` if one is not finite, or has another shape.
    """
    implemented = getattr(calculator, "implemented_properties", names)
    n = len(atoms)
    shapes = {"energy": (), "energies": (n,), "forces": (n, 3), "stress": (6,)}
    found: dict[str, Any] = {}
    for name in names:
        if name not in implemented or (name == "stress" and not atoms.pbc.all()):
            continue
        value = np.array(calculator.get_property(name, atoms), np.float64)
        if value.shape != shapes[name] or not np.isfinite(value).all():
            raise ValueError(
                f"the baseline {class_name(type(calculator))} gives {name} of shape "
                f"{value.shape}{'' if np.isfinite(value).all() else ', some not finite'}"
            )
        found[name] = value
    return found


def _release(kind: type) -> tuple[str | None, str | None]:
    package = kind.__module__.partition(".")[0]
    try:
        return package, version(package)
    except PackageNotFoundError:  # a file of the user's
        return None, None
