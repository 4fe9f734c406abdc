"""Relaxation of many structures at once: each converges on its own, all are evaluated together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.abc import GetPropertiesMixin
from ase.calculators.calculator import CalculatorError, PropertyNotImplementedError

from ase_biasgrad.calculators.calculator import BiasGradCalculator
from ase_biasgrad.numerics.lbfgs import ManyLBFGS

if TYPE_CHECKING:
    from ase.filters import Filter

# those of ASE's LBFGS
CURVATURE, MEMORY, MAXSTEP = 70.0, 100, 0.2  # eV/Å², steps, Å
ATOMS_AT_ONCE = 2000


@dataclass
class Relaxation:
    """Outcome of one of many relaxations."""

    converged: bool
    steps: int
    fmax: float  # largest force left, eV/Å; NaN before the first evaluation
    error: Exception | None = None  # what ended it early


def relax_many(
    targets: Sequence[Atoms | Filter],
    calculator: BiasGradCalculator,
    fmax: float = 0.05,
    steps: int = 1000,
    observer: Callable[[int, Atoms], Any] | None = None,
) -> list[Relaxation]:
    """Relax many structures at once, in place, by L-BFGS steps as ASE's `LBFGS` takes them.

    Every step evaluates all structures that have not converged in one call of
    `calculator.evaluate_many`, some 2000 atoms at a time. The minima and the paths to them are
    those of ASE's `LBFGS` for each structure alone, up to rounding. Afterwards each structure has a
    copy of the calculator that knows its results.

    Parameters
    ----------
    targets
        Structures of any sizes, periodic or not, or filters of ASE around them:
        `FrechetCellFilter(atoms)` relaxes the cell as well. ASE's constraints hold.
    calculator
        Takes all structures; its own state does not change.
    fmax
        A structure has converged when no force exceeds this, in eV/Å, as in ASE.
    steps
        Largest number of steps of each structure.
    observer
        Called as `observer(index, atoms)` after every evaluation of a structure, its results known.

    Returns
    -------
    list of Relaxation
        One for each structure, in order. A structure that cannot be evaluated (an element that the
        potential does not know, forces that are not finite) has an `error`, and does not stop the
        others.

    Raises
    ------
    TypeError
        If the calculator is no `BiasGradCalculator`.
    ValueError
        If `fmax` is not positive, or a structure is there twice.
    """
    if not isinstance(calculator, BiasGradCalculator):
        raise TypeError(f"relax_many needs a BiasGradCalculator, not {type(calculator).__name__}")
    if not fmax > 0:
        raise ValueError(f"fmax={fmax} eV/Å must be positive")
    searches = [_Search(k, target, calculator) for k, target in enumerate(targets)]
    first: dict[int, int] = {}
    for k, search in enumerate(searches):
        if first.setdefault(id(search.atoms), k) != k:
            raise ValueError(f"structures {first[id(search.atoms)]} and {k} are the same object")
    try:
        for batch in _batches(searches):
            _relax(batch, calculator, fmax, steps, observer)
    finally:
        for search in searches:
            search.leave(calculator)
    return [search.outcome for search in searches]


class _Known(GetPropertiesMixin):
    """Calculator of a structure on its way, which knows what its batch found."""

    def __init__(self, calculator: BiasGradCalculator) -> None:
        self.name, self.todict = calculator.name, calculator.todict  # for trajectories
        self.results: dict[str, Any] = {}

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        if name not in self.results and allow_calculation:
            raise PropertyNotImplementedError(f"there is no {name} of a structure without volume")
        value = self.results.get(name)
        return value.copy() if isinstance(value, np.ndarray) else value


class _Search:
    """One structure on its way to a minimum."""

    def __init__(self, index: int, target: Atoms | Filter, calculator: BiasGradCalculator) -> None:
        self.index = index
        self.atoms: Atoms = getattr(target, "atoms", target)
        self.optimizable = target.__ase_optimizable__()
        self.atoms.calc = self.known = _Known(calculator)
        self.outcome = Relaxation(False, 0, math.nan)
        self.gradient = np.empty(0)
        if not len(self.atoms):
            self.outcome.error = ValueError("there are no atoms")

    def look(self) -> None:
        """Take the gradient of what has just been found, constraints applied."""
        self.gradient = self.optimizable.get_gradient()

    def move(self, x: np.ndarray) -> None:
        """Take other coordinates, constraints applied."""
        self.optimizable.set_x(x)
        self.outcome.steps += 1

    def leave(self, calculator: BiasGradCalculator) -> None:
        """Leave the structure with a calculator of its own."""
        own = calculator.copy()
        if self.known.results and self.outcome.error is None:
            own.take(self.atoms, self.known.results)
        self.atoms.calc = own


def _batches(searches: Sequence[_Search]) -> Iterator[list[_Search]]:
    numbers = np.cumsum([len(s.atoms) for s in searches]) // ATOMS_AT_ONCE
    for number in np.unique(numbers):
        yield [s for s, own in zip(searches, numbers, strict=True) if own == number]


def _relax(
    running: list[_Search],
    calculator: BiasGradCalculator,
    fmax: float,
    steps: int,
    observer: Callable[[int, Atoms], Any] | None,
) -> None:
    lbfgs = ManyLBFGS([s.optimizable.ndofs() for s in running], CURVATURE, MEMORY)
    for step in range(steps + 1):
        _evaluate(running, calculator)
        for search in _sound(running):
            _attempt(search, search.look)
        running = _kept(running, lbfgs, [s.outcome.error is None for s in running])
        for search, largest in zip(running, _largest(_gradient(running), lbfgs), strict=True):
            search.outcome.fmax = float(largest)
            search.outcome.converged = search.outcome.fmax < fmax
            if observer is not None:
                observer(search.index, search.atoms)
        running = _kept(running, lbfgs, [not s.outcome.converged for s in running])
        if not running or step == steps:
            return
        x = [s.optimizable.get_x() for s in running]
        moves = lbfgs.step(np.concatenate(x), _gradient(running))
        scales = MAXSTEP / np.maximum(_largest(moves, lbfgs), MAXSTEP)
        for k, search in enumerate(running):
            move = scales[k] * moves[lbfgs.starts[k] : lbfgs.starts[k + 1]]
            _attempt(search, search.move, x[k] + move)


def _kept(running: list[_Search], lbfgs: ManyLBFGS, mask: list[bool]) -> list[_Search]:
    """Searches of `mask`, whose histories alone are kept.

    The last ones take the places of those that leave, and all others keep theirs: the calculator
    has a neighbour list for each place.
    """
    places = [k for k, keep in enumerate(mask) if keep]
    if len(places) == len(mask):
        return running
    for k in range(len(places)):
        if not mask[k]:
            places.insert(k, places.pop())
    lbfgs.keep(places)
    return [running[k] for k in places]


def _gradient(searches: list[_Search]) -> np.ndarray:
    return np.concatenate([search.gradient for search in searches] or [np.empty(0)])


def _largest(vectors: np.ndarray, lbfgs: ManyLBFGS) -> np.ndarray:
    """Length of the longest of each structure's vectors `(3 n,)`."""
    lengths = np.linalg.norm(vectors.reshape(-1, 3), axis=1)
    return np.maximum.reduceat(lengths, lbfgs.starts[:-1] // 3) if len(lengths) else lengths


def _evaluate(searches: list[_Search], calculator: BiasGradCalculator) -> None:
    """Find the results of all that can be evaluated, and the errors of the others."""
    searches = _sound(searches)
    try:
        found = calculator.evaluate_many([s.atoms for s in searches])
    except CalculatorError as error:
        if len(searches) == 1:
            searches[0].outcome.error = error
        else:
            for search in searches:
                _evaluate([search], calculator)
        return
    for search, results in zip(searches, found, strict=True):
        search.known.results = results


def _sound(searches: list[_Search]) -> list[_Search]:
    return [search for search in searches if search.outcome.error is None]


def _attempt(search: _Search, action: Callable[..., None], *arguments: Any) -> None:
    """Do something that a constraint or a filter may fail in, with whatever error."""
    try:
        action(*arguments)
    except Exception as error:
        search.outcome.error = error
