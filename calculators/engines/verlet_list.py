"""A cache of what an engine prepares from candidate edges at each neighbour search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ase_biasgrad.neighbours import Edges, Structure, VerletList

T = TypeVar("T")


class VerletCache(Generic[T]):
    """`prepare(candidates, structure)` under a `VerletList`; candidates are not kept."""

    def __init__(
        self, cutoff: float, skin: float, prepare: Callable[[Edges, Structure], T]
    ) -> None:
        self.list, self.prepare = VerletList(cutoff, skin), prepare
        self.reset()

    def reset(self) -> None:
        """Forget the neighbour list; the next call searches anew."""
        self.list.reset()
        self._prepared: T | None = None

    def fresh(self) -> VerletCache[T]:
        """Another one without a list."""
        return VerletCache(self.list.cutoff, self.list.skin, self.prepare)

    def find(self, structure: Structure) -> T | None:
        """The last result, if its candidates still hold every pair within the cutoff, or None."""
        kept = self._prepared
        return kept if kept is not None and self.list.is_complete(structure) else None

    def search(self, structure: Structure) -> T:
        """Search candidates anew, and prepare them."""
        self._prepared = None  # the old one need not wait in memory
        self._prepared = self.prepare(self.list.search(structure), structure)
        return self._prepared

    def of(self, structure: Structure) -> T:
        """The result for a structure; the same object until candidates are searched anew."""
        found = self.find(structure)
        return self.search(structure) if found is None else found
