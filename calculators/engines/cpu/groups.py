"""Groups of small structures, whose edges are one list, kept while no atom could have come in."""

from __future__ import annotations

from collections.abc import Sequence

from ase_biasgrad.calculators.engines.cpu.arrangement import by_centre
from ase_biasgrad.fused.runtime import Candidates
from ase_biasgrad.neighbours import Edges, Structure, VerletList

# atoms that one thread evaluates at once: the rows of many more leave its cache
TOGETHER = 36


def groups_of(sizes: Sequence[int]) -> list[list[int]]:
    """Indices of structures with `sizes` atoms, in order, by groups of `TOGETHER` atoms at most.

    A larger structure is a group of its own. Groups do not depend on the number of threads, so
    neither do results.
    """
    groups: list[list[int]] = []
    room = 0
    for k, size in enumerate(sizes):
        if size > room:
            groups.append([])
            room = TOGETHER
        groups[-1].append(k)
        room -= size
    return groups


class GroupEdges:
    """Edges of several structures under a skin, as those of one."""

    def __init__(self, cutoff: float, skin: float) -> None:
        self.cutoff, self.skin = cutoff, skin
        self._lists: list[VerletList] = []  # of the structures, by their places
        self._edges: list[Edges] = []
        self._joined: Candidates | None = None

    def find(self, structures: Sequence[Structure]) -> Candidates:
        """Candidates of all; the same object until one of them is searched anew."""
        while len(self._lists) < len(structures):
            self._lists.append(VerletList(self.cutoff, self.skin))
        edges = [each.candidates(s) for each, s in zip(self._lists, structures, strict=False)]
        if self._joined is None or list(map(id, edges)) != list(map(id, self._edges)):
            self._edges = edges
            self._joined = by_centre(edges, [len(s.numbers) for s in structures])
        return self._joined
