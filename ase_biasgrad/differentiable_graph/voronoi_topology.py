"""Which Voronoi cells share faces, and which sites make the corners: from SciPy's Qhull.

Nothing here is differentiated. The result says, for each face of each atom's cell, from which
sites its corners follow; `voronoi.py` computes the corners from the positions.

Corners. A corner of the face between i and j lies where two neighbouring faces of i's cell, with
k and l, meet it: it is the circumcentre of i, j, k and l. Where more than four sites are
co-spherical (most crystals), each face takes the two faces next to it, so that no corner is the
solution of a singular system. Faces without area (between diagonal neighbours in a simple cubic
crystal) are left out, and so is what would only touch a corner.

Sites. Periodic directions contribute images. Where a direction is not periodic, cells are bounded
by ghost sites so far away that only their directions count: a corner made with ghosts is a
direction, and the weights are those of ghosts at infinity. They depend on nothing but the atoms,
and turn with them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import QhullError, Voronoi, cKDTree

from ase_biasgrad.neighbours import check_finite, complete_cell

# Vertices closer than this are one (Å). If this leaves cells that do not close, it is widened.
MERGE_WITHIN = (1e-7, 1e-6, 1e-5, 1e-4)
# Distance of the ghosts in Å, and in units of the structure's size on top. Where outer atoms lie in
# a plane to within some 1e-4 Å, corners lie beyond any ghosts, and weights differ from those at
# infinity by up to 1e-5; further ghosts would cost as much by rounding in Qhull (the square of this
# distance times the precision of float64).
GHOST_DISTANCE, GHOST_DISTANCE_IN_SIZES = 1e5, 100.0
# Sites closer than this coincide (Å).
COINCIDENT = 1e-4
GHOST = -1

GOLDEN = (1 + 5**0.5) / 2
_ICOSAHEDRON = np.array(
    [np.roll([0.0, s, t * GOLDEN], k) for k in range(3) for s in (1, -1) for t in (1, -1)]
)


@dataclass(frozen=True)
class Topology:
    """Faces of the cells of one structure's atoms, seen from each atom, and their corners.

    Corners are ordered around their face. Each is made by the face's two atoms and two more
    sites, the faces before and behind it; an atom `GHOST` stands for a ghost. An edge that is a
    whole line, infinite both ways, has another corner in its middle.
    """

    centre: np.ndarray  # (f,)
    neighbour: np.ndarray  # (f,)
    shift: np.ndarray  # (f, 3) cell image of the neighbour
    orientation: np.ndarray  # (f,) ±1: sense of the order around centre → neighbour
    face: np.ndarray  # (c,) face of each corner
    following: np.ndarray  # (c,) next corner of the same face
    sites: np.ndarray  # (c, 2) atoms of the two other sites; twice the same: the middle of an edge
    site_shift: np.ndarray  # (c, 2, 3)
    direction: np.ndarray  # (c, 3) unit vector from the centre to the corner


@dataclass(frozen=True)
class _Sites:
    """Points of the tessellation: the atoms, their images, then ghosts."""

    points: np.ndarray  # (s, 3)
    atom: np.ndarray  # (s,), GHOST for a ghost
    shift: np.ndarray  # (s, 3)


def voronoi_topology(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Topology:
    """The Voronoi cells of the atoms.

    Parameters are `positions (n, 3)` and `cell (3, 3)` in Å and `pbc (3,)`; vectors of
    non-periodic directions may be zero.

    Raises
    ------
    ValueError
        If positions or cell are not finite, periodic cell vectors dependent, or two atoms at the
        same place (the message names them).
    RuntimeError
        If Qhull finds no consistent tessellation.
    """
    check_finite(positions, cell)
    if len(positions) == 0 or (len(positions) == 1 and not pbc.any()):
        return _no_faces()
    box = complete_cell(cell, pbc)
    home = np.where(pbc, np.floor(positions @ np.linalg.inv(box)), 0.0)  # (n, 3)
    wrapped = positions - home @ box
    bound = 2 * _covering_radius(box[pbc])
    margin = bound
    if pbc.all():  # bounded cells: images as far as the atoms' own spacing asks for
        margin = min(bound, 2.2 * np.cbrt(abs(np.linalg.det(box)) / len(positions)))
    while True:
        sites = _images(wrapped, box, pbc, margin)
        _check_distinct(sites, len(positions))
        if not pbc.all():
            sites = _with_ghosts(sites)
        diagram, reach = _tessellation(sites.points, len(positions))
        if margin >= bound or 2 * reach <= margin:
            break
        # the cells can only shrink when sites are added, so a finite reach settles it
        margin = min(bound, 2.001 * reach if np.isfinite(reach) else 1.6 * margin)
    for merge_within in MERGE_WITHIN:
        topology = _faces(diagram, sites, len(positions), merge_within)
        if topology is not None:
            return _unwrapped(topology, home.astype(np.int64))
    raise RuntimeError(
        f"Qhull's Voronoi cells of these {len(positions)} atoms do not close; displace the atoms "
        "by some 1e-4 Å"
    )


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


def _check_distinct(sites: _Sites, n: int) -> None:
    distance, nearest = cKDTree(sites.points).query(sites.points[:n], k=2)
    if len(sites.points) > 1 and distance[:, 1].min() < COINCIDENT:
        one = int(distance[:, 1].argmin())
        pair = {one, int(sites.atom[nearest[one][nearest[one] != one][0]])}
        raise ValueError(f"atoms {sorted(pair)} are at the same place: they have no Voronoi cells")


def _with_ghosts(sites: _Sites) -> _Sites:
    """Add ghosts around everything; turned so that no symmetry of a molecule meets theirs."""
    middle = sites.points.mean(axis=0)
    size = float(np.linalg.norm(sites.points - middle, axis=1).max())
    distance = GHOST_DISTANCE + GHOST_DISTANCE_IN_SIZES * size
    turn = np.linalg.qr(np.array([[1.0, 0.3, 0.7], [-0.2, 0.9, 0.4], [0.5, -0.6, 0.8]]))[0]
    directions = _ICOSAHEDRON @ turn / np.linalg.norm(_ICOSAHEDRON[0])  # (12, 3)
    return _Sites(
        points=np.concatenate([sites.points, middle + distance * directions]),
        atom=np.concatenate([sites.atom, np.full(len(directions), GHOST)]),
        shift=np.concatenate([sites.shift, np.zeros((len(directions), 3), sites.shift.dtype)]),
    )


def _tessellation(points: np.ndarray, n: int) -> tuple[Voronoi | None, float]:
    """Qhull's diagram, and how far the cells of the first `n` sites reach (Å; inf if open)."""
    try:
        diagram = Voronoi(points)
    except QhullError:  # too few sites for a cell in three dimensions
        return None, np.inf
    pairs = diagram.ridge_points
    at_home = (pairs < n).any(axis=1)
    counts = np.fromiter(map(len, diagram.ridge_vertices), np.int64, len(pairs))
    corners = np.fromiter(itertools.chain.from_iterable(diagram.ridge_vertices), np.int64)
    mine = np.repeat(at_home, counts)
    if (corners[mine] < 0).any():
        return diagram, np.inf
    owner = np.repeat(pairs.min(axis=1), counts)[mine]  # of two atoms at home either serves
    offsets = diagram.vertices[corners[mine]] - points[owner]
    return diagram, float(np.sqrt(np.einsum("ck,ck->c", offsets, offsets).max()))


def _faces(diagram: Voronoi | None, sites: _Sites, n: int, merge_within: float) -> Topology | None:
    """Faces and corners of the cells of the first `n` sites; None if they do not close."""
    if diagram is None:
        return None
    pairs, counts, corners = _ridges_at_home(diagram, n)
    if (corners < 0).any():
        return None
    label, places = _merged(diagram.vertices, corners, merge_within)
    face = np.repeat(np.arange(len(pairs)), counts)
    keep = label != label[_previous(face)]  # merged vertices count once
    face, label = face[keep], label[keep]
    thin = _without_area(face, places[label], len(pairs), merge_within)
    face, label = face[~thin[face]], label[~thin[face]]
    # every face is seen from both of its sites, if they are at home
    backwards = pairs[:, ::-1]
    pairs = np.concatenate([pairs, backwards])
    face = np.concatenate([face, face + len(backwards)])
    label = np.concatenate([label, label])
    mine = pairs[face, 0] < n
    face, label = face[mine], label[mine]
    across = _faces_across(pairs, face, label)
    if across is None:
        return None
    return _assembled(pairs, face, places[label], across, sites)


def _ridges_at_home(diagram: Voronoi, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Site pairs `(r, 2)`, numbers of corners `(r,)` and vertices of the corners `(c,)`."""
    at_home = np.flatnonzero((diagram.ridge_points < n).any(axis=1))
    ridges = [diagram.ridge_vertices[k] for k in at_home.tolist()]
    counts = np.fromiter(map(len, ridges), np.int64, len(ridges))
    return (
        diagram.ridge_points[at_home].astype(np.int64),
        counts,
        np.fromiter(itertools.chain.from_iterable(ridges), np.int64),
    )


def _merged(
    vertices: np.ndarray, corners: np.ndarray, merge_within: float
) -> tuple[np.ndarray, np.ndarray]:
    """A label for each corner, equal for vertices at one place, and the places of the labels."""
    used, corner = np.unique(corners, return_inverse=True)
    points = vertices[used]
    close = cKDTree(points).query_pairs(merge_within, output_type="ndarray")
    if len(close) == 0:
        return corner, points
    graph = coo_matrix((np.ones(len(close)), close.T), shape=(len(used), len(used)))
    label = connected_components(graph, directed=False)[1]
    places = np.empty((label.max() + 1, 3))
    places[label] = points
    return label[corner], places


def _previous(face: np.ndarray) -> np.ndarray:
    """The corner before each corner `(c,)` around its face; `face` is sorted."""
    return np.argsort(_following(face))


def _following(face: np.ndarray) -> np.ndarray:
    """The corner behind each corner `(c,)` around its face; `face` is sorted."""
    following = np.arange(1, len(face) + 1)
    starts = np.flatnonzero(np.diff(face, prepend=-1))
    ends = np.append(starts[1:], len(face)) - 1
    if len(face):
        following[ends] = starts
    return following


def _without_area(
    face: np.ndarray, places: np.ndarray, n_faces: int, merge_within: float
) -> np.ndarray:
    """Faces `(f,)` that merging has reduced to a line or a point."""
    following = _following(face)
    first = np.searchsorted(face, face)
    spokes, edges = places - places[first], places[following] - places
    area = np.stack([_sums(c, face, n_faces) for c in np.cross(spokes, edges).T], axis=1) / 2
    perimeter = _sums(np.linalg.norm(edges, axis=1), face, n_faces)
    return np.linalg.norm(area, axis=1) <= 1e-3 * merge_within * perimeter


def _sums(values: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(group, weights=values, minlength=n)


def _faces_across(pairs: np.ndarray, face: np.ndarray, label: np.ndarray) -> np.ndarray | None:
    """For the edge from each corner to the following one: the other face of the cell along it.

    Each edge of a closed cell belongs to two of its faces. None if some edge does not.
    """
    ends = np.sort(np.stack([label, label[_following(face)]]), axis=0)
    order = np.lexsort((ends[1], ends[0], pairs[face, 0]))
    key = np.stack([pairs[face, 0], ends[0], ends[1]])[:, order]
    if len(order) % 2 or (key[:, 0::2] != key[:, 1::2]).any():
        return None
    if (key[:, 1:-1:2] == key[:, 2::2]).all(axis=0).any():
        return None
    across = np.empty_like(face)
    across[order[0::2]], across[order[1::2]] = face[order[1::2]], face[order[0::2]]
    return across


def _assembled(
    pairs: np.ndarray, face: np.ndarray, places: np.ndarray, across: np.ndarray, sites: _Sites
) -> Topology:
    """Faces between atoms, numbered anew, and their corners with the sites that make them."""
    atomic = sites.atom[pairs[face, 1]] != GHOST
    face, places, across = face[atomic], places[atomic], across[atomic]
    # an edge between the same two faces as the one before only continues it
    turns = across != across[_previous(face)]
    face, places, across = face[turns], places[turns], across[turns]
    used, number = np.unique(face, return_inverse=True)
    centre, neighbour = pairs[used].T
    beside = np.stack([pairs[across[_previous(number)], 1], pairs[across, 1]], axis=1)  # (c, 2)
    number, places, beside = _with_middles(number, places, beside, sites, centre, neighbour)
    offsets = places - sites.points[centre][number]
    return Topology(
        centre=centre,
        neighbour=sites.atom[neighbour],
        shift=sites.shift[neighbour],
        orientation=_orientation(
            offsets, sites.points[neighbour] - sites.points[centre], number, _following(number)
        ),
        face=number,
        following=_following(number),
        sites=sites.atom[beside],
        site_shift=sites.shift[beside],
        direction=offsets / np.linalg.norm(offsets, axis=1)[:, None],
    )


def _with_middles(
    face: np.ndarray,
    places: np.ndarray,
    beside: np.ndarray,
    sites: _Sites,
    centre: np.ndarray,
    neighbour: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners with another one in each edge between atoms that ends at ghosts both ways.

    Its ends may be opposite directions, between which an edge could pass on either side.
    """
    next_beside = beside[_following(face)]
    ends_open = sites.atom[beside[:, 0]] == GHOST, sites.atom[next_beside[:, 1]] == GHOST
    lines = np.flatnonzero(ends_open[0] & ends_open[1] & (sites.atom[beside[:, 1]] != GHOST))
    if len(lines) == 0:
        return face, places, beside
    third = beside[lines, 1]
    corner = sites.points[centre[face[lines]]]
    a, b = sites.points[neighbour[face[lines]]] - corner, sites.points[third] - corner
    normal = np.cross(a, b)
    squares = [np.einsum("lk,lk->l", v, v)[:, None] for v in (a, b, normal)]
    middles = corner + np.cross(squares[0] * b - squares[1] * a, normal) / (2 * squares[2])
    return (
        np.insert(face, lines + 1, face[lines]),
        np.insert(places, lines + 1, middles, axis=0),
        np.insert(beside, lines + 1, np.stack([third, third], axis=1), axis=0),
    )


def _orientation(
    offsets: np.ndarray, bonds: np.ndarray, face: np.ndarray, following: np.ndarray
) -> np.ndarray:
    """+1 where corners `(c, 3)` run counter-clockwise around their bond `(f, 3)`, else −1."""
    first = np.searchsorted(face, face)
    spokes, edges = offsets - offsets[first], offsets[following] - offsets
    turn = np.einsum("ck,ck->c", np.cross(spokes, edges), bonds[face])
    return np.where(_sums(turn, face, len(bonds)) < 0, -1.0, 1.0)


def _unwrapped(topology: Topology, home: np.ndarray) -> Topology:
    """Shifts that hold for the atoms where they are, `home (n, 3)` cells from the first one."""
    t = topology
    shift = t.shift - home[t.neighbour] + home[t.centre]
    site_shift = t.site_shift - home[t.sites] + home[t.centre[t.face]][:, None]
    return Topology(
        t.centre,
        t.neighbour,
        shift,
        t.orientation,
        t.face,
        t.following,
        t.sites,
        site_shift,
        t.direction,
    )


def _no_faces() -> Topology:
    none, vectors = np.zeros(0, np.int64), np.zeros((0, 3))
    return Topology(
        centre=none,
        neighbour=none,
        shift=vectors.astype(np.int64),
        orientation=np.zeros(0),
        face=none,
        following=none,
        sites=np.zeros((0, 2), np.int64),
        site_shift=np.zeros((0, 2, 3), np.int64),
        direction=vectors,
    )
