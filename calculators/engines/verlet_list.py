"""What an engine makes of candidate edges, made once for each neighbour search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ase_biasgrad.calculators.engines.base import Structure
from ase_biasgrad.neighbours import Edges, SkinList

T = TypeVar("T")


class PerSearch(Generic[T]):
    """What `make(candidates, structure)` makes, under a `SkinList`; candidates are not kept."""

    def __init__(self, cutoff: float, skin: float, make: Callable[[Edges, Structure], T]) -> None:
        self.list, self.make = SkinList(cutoff, skin), make
        self.reset()

    def reset(self) -> None:
        """Forget the neighbour list; the next call searches anew."""
        self.list.reset()
        self._made: T | None = None

    def fresh(self) -> PerSearch[T]:
        """Another one without a list."""
        return PerSearch(self.list.cutoff, self.list.skin, self.make)

    def find(self, structure: Structure) -> T | None:
        """What was made last, if its candidates still hold every pair within the cutoff."""
        s = structure
        if self._made is None or not self.list.is_complete(s.numbers, s.positions, s.cell, s.pbc):
            return None
        return self._made

    def search(self, structure: Structure) -> T:
        """Of new candidates."""
        s, self._made = structure, None  # the old one need not wait in memory
        self._made = self.make(self.list.search(s.numbers, s.positions, s.cell, s.pbc), s)
        return self._made

    def of(self, structure: Structure) -> T:
        """Of the candidates of a structure; the same object until they are searched anew."""
        found = self.find(structure)
        return self.search(structure) if found is None else found
