"""Which Voronoi cells share faces, and which faces of a cell share edges.

Nothing here is differentiated; `voronoi.py` computes the solid angles from the positions. Periodic
directions contribute images; where a direction is not periodic, outer cells are open.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from ase_biasgrad.differentiable_graph.voronoi_cells import cells
from ase_biasgrad.neighbours import check_finite, complete_cell

# Sites closer than this coincide (Å).
COINCIDENT = 1e-4
# Number of nearest sites from which cells are built; more are searched where these do not suffice.
NEAREST = 48
# Pairs of an atom and a site that are looked at together; bounds memory.
AT_ONCE = 4_000_000
# In the place of a face: the open sky.
SKY = -1


@dataclass(frozen=True)
class Topology:
    """Faces of the cells of some atoms, each seen from its atom `centre`, and their edges.

    Edges are ordered around their face, counter-clockwise as seen from outside.
    """

    centre: np.ndarray  # (f,)
    neighbour: np.ndarray  # (f,)
    shift: np.ndarray  # (f, 3) cell image of the neighbour
    face: np.ndarray  # (c,) face of each edge
    across: np.ndarray  # (c,) the other face of the same cell at this edge, or SKY
    turns: np.ndarray  # (c,) ±1, sense in which the edge turns into the next; −1 by rounding alone
    sky: np.ndarray  # (n,) solid angle of the open sky from each atom


@dataclass(frozen=True)
class _Sites:
    """Points of the tessellation: the atoms, then their images."""

    points: np.ndarray  # (s, 3)
    atom: np.ndarray  # (s,)
    shift: np.ndarray  # (s, 3)


def voronoi_topology(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Topology:
    """The Voronoi cells of the atoms.

    Parameters are `positions (n, 3)` and `cell (3, 3)` in Å and `pbc (3,)`; vectors of
    non-periodic directions may be zero.

    Raises `ValueError` if positions or cell are not finite, periodic cell vectors dependent, or two
    atoms at the same place (the message names them).
    """
    check_finite(positions, cell)
    n = len(positions)
    if n == 0 or (n == 1 and not pbc.any()):
        none = np.zeros(0, np.int64)
        sky = np.full(n, 4 * np.pi)
        return Topology(none, none, np.zeros((0, 3), np.int64), none, none, none, sky)
    box = complete_cell(cell, pbc)
    home = np.where(pbc, np.floor(positions @ np.linalg.inv(box)), 0.0)  # (n, 3)
    wrapped = positions - home @ box
    bound = 2 * _covering_radius(box[pbc])
    margin = bound
    if pbc.all():  # bounded cells: images as far as the atoms' own spacing asks for
        margin = min(bound, 2.2 * np.cbrt(abs(np.linalg.det(box)) / n))
    while True:
        sites = _images(wrapped, box, pbc, margin)
        topology, reach = _cells(sites, n)
        if margin >= bound or 2 * reach <= margin:
            break
        # the cells can only shrink when sites are added
        margin = min(bound, 2.001 * reach, 2 * margin)
    home = home.astype(np.int64)
    shift = topology.shift - home[topology.neighbour] + home[topology.centre]
    return replace(topology, shift=shift)


def _covering_radius(periodic: np.ndarray) -> float:
    """Bound on the distance of any place from the nearest lattice point, `periodic (p, 3)`.

    Half the diagonal of the box of orthogonalised vectors. An atom's cell lies within that of
    its own images, so sites beyond twice this bound (along the lattice) cannot touch it.
    """
    if len(periodic) == 0:
        return 0.0
    orthogonalised = np.abs(np.diag(np.linalg.qr(periodic.T)[1]))
    return 0.5 * float(np.linalg.norm(orthogonalised))


def _images(wrapped: np.ndarray, box: np.ndarray, pbc: np.ndarray, margin: float) -> _Sites:
    """The atoms `(n, 3)` in their cell, then all images within `margin` (Å) around the cell."""
    heights = 1 / np.linalg.norm(np.linalg.inv(box), axis=0)  # (3,) between opposite faces
    around = np.where(pbc, margin / heights, 0.0)  # (3,) in fractions of the cell
    ranges = [range(-int(np.ceil(a)), int(np.ceil(a)) + 1) for a in around]
    shifts = np.array(sorted(itertools.product(*ranges), key=lambda s: s != (0, 0, 0)))
    fractional = wrapped @ np.linalg.inv(box) + shifts[:, None]  # (shifts, n, 3)
    near = ((fractional >= -around) & (fractional <= 1 + around)) | ~pbc
    near = near.all(axis=2)
    near[0] = True
    image, atom = near.nonzero()
    return _Sites(wrapped[atom] + shifts[image] @ box, atom, shifts[image])


def _check_distinct(distances: np.ndarray, sites: _Sites, tree: cKDTree) -> None:
    """Raise where the nearest site to an atom, at `distances (n,)`, is at the same place."""
    one = int(distances.argmin())
    if distances[one] < COINCIDENT:
        same = tree.query_ball_point(sites.points[one], COINCIDENT)
        atoms = sorted({int(sites.atom[k]) for k in same})
        raise ValueError(f"atoms {atoms} are at the same place: they have no Voronoi cells")


def _cells(sites: _Sites, n: int) -> tuple[Topology, float]:
    """Cells of the first `n` sites, and how far they reach (Å; huge where open)."""
    points, tree = sites.points, cKDTree(sites.points)
    nearest = min(NEAREST, len(points) - 1)
    distances, closest = tree.query(points[:n], k=nearest + 1)  # each atom itself is the first
    _check_distinct(distances[:, 1], sites, tree)
    starts = nearest * np.arange(n + 1)
    faces, *edges, sky, reach = cells(points, np.arange(n), starts, closest[:, 1:].ravel())
    # what is further away than twice the farthest corner does not touch a cell
    unsettled = np.flatnonzero((2 * reach > distances[:, -1]) & (nearest < len(points) - 1))
    settled = ~np.isin(faces[:, 0], unsettled)
    kept = np.repeat(settled, faces[:, 2])
    parts = [(faces[settled], *(of_edges[kept] for of_edges in edges))]
    at_once = max(1, AT_ONCE // len(points))
    for k in range(0, len(unsettled), at_once):
        atoms = unsettled[k : k + at_once]
        lists = [_within(2.001 * reach[i], points[i], closest[i], tree) for i in atoms]
        starts = np.cumsum([0, *map(len, lists)])
        faces, *edges, sky[atoms], reach[atoms] = cells(
            points, atoms, starts, np.concatenate(lists)
        )
        faces[:, 0] = atoms[faces[:, 0]]
        parts.append((faces, *edges))
    faces, across, turns = map(np.concatenate, zip(*parts, strict=True))
    centre, site, n_edges = faces.T
    face = np.repeat(np.arange(len(faces)), n_edges)
    first = np.zeros(n, np.int64)  # face of each atom; those of an atom follow each other
    begins = np.flatnonzero(np.diff(centre, prepend=-1))
    first[centre[begins]] = begins
    across = np.where(across < 0, SKY, across + first[centre[face]])
    topology = Topology(centre, sites.atom[site], sites.shift[site], face, across, turns, sky)
    return topology, float(reach.max())


def _within(radius: float, point: np.ndarray, closest: np.ndarray, tree: cKDTree) -> np.ndarray:
    """Sites around an atom, of which the `closest` are known, without the atom itself."""
    other = np.ones(tree.n, bool)
    other[closest] = False
    if radius < np.linalg.norm(tree.maxes - tree.mins):
        inside = np.zeros(tree.n, bool)
        inside[tree.query_ball_point(point, radius)] = True
        other &= inside
    return np.concatenate([closest[1:], np.flatnonzero(other)])
