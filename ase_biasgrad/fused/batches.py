"""Kernels of batches: structures one after another, their forces, and gradients of losses of them.

Threads share the structures out, and each has gradients of its own. Memory is that of `structures`.
"""

from __future__ import annotations

from ase_biasgrad.fused.candidates import arrange
from ase_biasgrad.fused.execute import execute
from ase_biasgrad.fused.execute_tangents import execute_tangents
from ase_biasgrad.fused.geometry import add_forces, edges_within, move_edges
from ase_biasgrad.fused.runtime import Candidates, Edges, EdgeTangents
from ase_biasgrad.numerics.kernel_cache import compiled


@compiled()
def arrange_all(structures, i, j, shift):  # type: ignore[no-untyped-def]
    """Fill the candidates of all structures with edges `(e,)` from i to j."""
    for s in range(len(structures.chunk)):
        a, c, d = structures.first_atom[s], structures.first_edge[s], structures.first_edge[s + 1]
        arrange(i[c:d] - a, j[c:d] - a, shift[c:d], structures.chunk[s], _candidates(s, structures))


@compiled()
def _candidates(s, structures):  # type: ignore[no-untyped-def]
    """Candidates of structure s."""
    a, b = structures.first_atom[s], structures.first_atom[s + 1]
    c, d = structures.first_edge[s], structures.first_edge[s + 1]
    e = structures.edges
    return Candidates(
        e.starts[a + s : b + s + 1], e.inners[a:b], e.middles[a:b], e.neighbour[c:d], e.shift[c:d]
    )


@compiled()
def _edges(s, structures, room):  # type: ignore[no-untyped-def]
    """Edges of structure s."""
    a, b = structures.first_atom[s], structures.first_atom[s + 1]
    c, d = structures.first_edge[s], structures.first_edge[s + 1]
    e = room.edges
    return Edges(
        structures.numbers[a:b], structures.edges.starts[a + s : b + s + 1], e.inners[a:b],
        e.middles[a:b], e.ends[a:b], e.neighbour[c:d], e.bin[c:d], e.weights[c:d], e.unit[c:d],
        e.adjoints[c:d], e.energies[a:b], e.cotangents[a:b],
    )  # fmt: skip


@compiled()
def evaluate(  # type: ignore[no-untyped-def]
    first, last, instructions, segments, kept, local, weights, splines, structures, room, out
):
    """Write energies, forces and strain gradients of structures `first` to `last` − 1."""
    for s in range(first, last):
        a, b = structures.first_atom[s], structures.first_atom[s + 1]
        vectors = room.vectors[structures.first_edge[s] : structures.first_edge[s + 1]]
        memory, owner = room.memory[room.first[s] :], room.owner[: b - a]
        edges, cell = _edges(s, structures, room), structures.cells[s : s + 1]
        edges_within(
            0, 1, structures.positions[a:b], cell, owner, _candidates(s, structures),
            splines.cutoff, splines.spacing, splines.bins, splines.values, splines.slopes, vectors,
            edges,
        )  # fmt: skip
        execute(
            0, 1, instructions, segments, structures.chunk[s], kept, local, memory, weights, edges
        )
        for i in range(b - a):  # assigned at once, shapes would be compared, with messages
            out.energies[a + i] = edges.energies[i]
        out.forces[a:b] = 0
        out.strain_gradient[s] = 0
        add_forces(
            vectors, edges, owner, splines.spacing, out.forces[a:b],
            out.strain_gradient[s : s + 1],
        )  # fmt: skip


@compiled()
def add_gradients(  # type: ignore[no-untyped-def]
    first, last, instructions, segments, kept, local, weights, splines, structures, room, moved,
    strain, gradients,
):  # fmt: skip
    """Add to `gradients (w,)` those of structures `first` to `last` − 1, which are evaluated.

    Positions move along `moved (n, 3)`, cells along `strain (b, 3, 3)`, and the adjoints of the
    energies along `room.tangents.cotangents`.
    """
    for s in range(first, last):
        a, b = structures.first_atom[s], structures.first_atom[s + 1]
        c, d = structures.first_edge[s], structures.first_edge[s + 1]
        memory, owner = room.memory[room.first[s] :], room.owner[: b - a]
        edges, t = _edges(s, structures, room), room.tangents
        tangents = EdgeTangents(
            t.still[c:d], t.weights[c:d], t.unit[c:d], t.adjoints[c:d], t.cotangents[a:b]
        )
        move_edges(
            moved[a:b], strain[s : s + 1], owner, splines.spacing, splines.bins, splines.slopes,
            splines.bends, room.vectors[c:d], edges, tangents,
        )  # fmt: skip
        execute_tangents(
            0, 1, instructions, segments, structures.chunk[s], kept, local, memory, weights, edges,
            tangents, gradients,
        )  # fmt: skip


@compiled()
def take(numbers, places, out):  # type: ignore[no-untyped-def]
    """Write the numbers at `places (m,)`, indices of half the usual size."""
    for k in range(len(places)):
        out[k] = numbers[places[k]]


@compiled()
def add_taken(numbers, places, to, out):  # type: ignore[no-untyped-def]
    """Add the numbers at `places (m,)` to those at `to (m,)`."""
    for k in range(len(places)):
        out[to[k]] += numbers[places[k]]
