"""What an engine makes of candidate edges, made once for each neighbour search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from ase_biasgrad.calculators.engine import Structure
from ase_biasgrad.neighbours import Edges, SkinList

T = TypeVar("T")


class PerSearch(Generic[T]):
    """A `SkinList` and what `make(edges, numbers)` makes of its candidates."""

    def __init__(self, cutoff: float, skin: float, make: Callable[[Edges, np.ndarray], T]) -> None:
        self.list, self.make = SkinList(cutoff, skin), make
        self.reset()

    def reset(self) -> None:
        """Forget the neighbour list; the next call searches anew."""
        self.list.reset()
        self._made: T | None = None
        self._searches = -1

    def fresh(self) -> PerSearch[T]:
        """Another one without a list."""
        return PerSearch(self.list.cutoff, self.list.skin, self.make)

    def of(self, structure: Structure) -> T:
        """Of the candidates of a structure; the same object until they are searched anew."""
        s = structure
        edges = self.list.candidates(s.numbers, s.positions, s.cell, s.pbc)
        if self._made is None or self._searches != self.list.searches:
            self._made, self._searches = self.make(edges, s.numbers), self.list.searches
        return self._made
