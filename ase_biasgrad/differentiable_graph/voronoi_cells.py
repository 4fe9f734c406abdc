"""Faces of Voronoi cells as seen from their atoms: normal cones of a convex hull, compiled.

A ray along u from an atom meets the bisector with the neighbour at b at the distance 1/(u·p), with
p = 2b/b². So it leaves the cell by the face with the largest u·p, and to open sky where none is
positive: the face of a neighbour is seen in the normal cone of p, a vertex of the convex hull of
all p and of the origin, which stands for the sky. No corner is at infinity, no system singular.

The cone of p is a spherical polygon. It begins as the half-space of p and one other vertex and is
cut by those with all others. Edges never span more than a right angle (long ones get a corner in
their middle), so that the ends of an edge are never opposite. The solid angle follows from the
edges alone, by Gauss and Bonnet: 2π less the angles between the normals p − p' of successive edges.
Where many atoms lie on one sphere, many edges meet in one corner, and rounding may leave some whose
neighbours have cut them off. Their angles count as turns to the right, and nothing is lost.
"""

# Numba finds the types of compiled functions itself.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled

# A half-space that cuts off less than this angle does not cut; a neighbour that does not reach into
# a cell by more than the other is not looked at.
ROUNDING, NEGLIGIBLE = 1e-14, 1e-12
# Faces of a smaller solid angle (sr) are left out: the derivative of so narrow a strip would be
# that of rounding.
SMALLEST = 1e-11
# Number of neighbours with which a cell begins; others join where they cut it.
FIRST = 24

_loop = compiled(error_model="numpy")


@_loop
def cells(sites, atoms, starts, candidates):
    """Cells of the sites `atoms (n,)` among `sites (s, 3)`, Å.

    Neighbours of the atom k are sought among `candidates[starts[k]:starts[k + 1]]`, of which the
    first should be the nearest.

    Returns
    -------
    faces
        `(f, 3)` int64: place of the atom in `atoms`, site of the neighbour, number of edges.
    across
        `(c,)` int64: for each edge of each face, counter-clockwise as seen from outside, the face
        of the same atom behind it, counted from the atom's first one; −1 where the sky is.
    turns
        `(c,)`: ±1, the sense in which each edge turns into the following one; −1 by rounding alone.
    sky
        `(n,)` solid angle of the open sky, sr.
    reach
        `(n,)` distance of the farthest corner, Å; huge or inf where the cell is open.
    """
    n = len(atoms)
    faces, across = np.empty((16 * n, 3), np.int64), np.empty((96 * n, 2), np.int64)
    sky, reach = np.zeros(n), np.zeros(n)
    n_faces, n_edges = 0, 0
    for atom in range(n):
        own = candidates[starts[atom] : starts[atom + 1]]
        points = np.zeros((1 + len(own), 3))
        for k in range(len(own)):
            x, y, z = _minus(_row(sites, own[k]), _row(sites, atoms[atom]))
            scale = 2 / (x * x + y * y + z * z)
            points[1 + k] = scale * x, scale * y, scale * z
        members, counts, labels, turns, angles, reach[atom] = _hull(points)
        while len(faces) < n_faces + len(members):
            faces = np.concatenate((faces, np.empty_like(faces)))
        while len(across) < n_edges + len(labels):
            across = np.concatenate((across, np.empty_like(across)))
        number, found = np.full(len(points), -1), 0
        for member in members:
            if member > 0:
                number[member], found = found, found + 1
        start = 0
        for k in range(len(members)):
            if members[k] == 0:
                sky[atom] = angles[k]
            else:
                faces[n_faces] = atom, own[members[k] - 1], counts[k]
                n_faces += 1
                for edge in range(start, start + counts[k]):
                    across[n_edges] = number[labels[edge]], turns[edge]
                    n_edges += 1
            start += counts[k]
    return faces[:n_faces], across[:n_edges, 0], across[:n_edges, 1], sky, reach


@_loop
def _hull(points):
    """The hull of `points (p, 3)`, the origin first, by its vertices and their cones.

    Vertices `(v,)`, number of edges of each cone `(v,)`, vertices across the edges `(c,)`, senses
    of the turns behind them `(c,)`, solid angles `(v,)`, and how far the cell's corners are.
    """
    members = np.arange(min(len(points), FIRST + 1))
    outside, grows, reach = np.arange(len(members), len(points)), True, 0.0
    while True:
        n = len(members)
        members, counts, labels, corners, turns, angles = _cones(points, members)
        if grows:
            outside, joining, reach = _cutting(points, members, counts, labels, corners, outside)
            if len(joining) > 0:
                members = np.concatenate((members, joining))
                continue
            grows = False
        if len(members) == n and (angles >= SMALLEST).all():
            counts, labels, turns = _without_middles(counts, labels, turns)
            return members, counts, labels, turns, angles, reach
        members = members[angles >= SMALLEST]


@_loop
def _without_middles(counts, labels, turns):
    """Each edge once: numbers of edges `(v,)`, labels and turns."""
    edges, each, start, n = np.zeros_like(counts), np.empty_like(labels), 0, 0
    senses = np.empty_like(labels)
    for k in range(len(counts)):
        for c in range(start, start + counts[k]):
            last = c + 1 == start + counts[k]
            if labels[c] != labels[_following(c, start, counts[k])] or (last and edges[k] == 0):
                each[n], senses[n] = labels[c], -1 if turns[c] < 0 else 1
                n, edges[k] = n + 1, edges[k] + 1
        start += counts[k]
    return edges, each[:n], senses[:n]


@_loop
def _cones(points, members):
    """The normal cones of the points `members` in the hull of these, as far as these are vertices.

    Vertices, number of corners `(m,)`, labels `(c,)`, corners `(c, 3)`, turns there `(c,)`, solid
    angles `(m,)`.
    """
    most = 2 * len(members) + 8  # each edge may have a corner in its middle
    labels, corners = np.empty(most * len(members), np.int64), np.empty((most * len(members), 3))
    turns, angles = np.zeros(most * len(members)), np.empty(len(members))
    spare = np.empty(most, np.int64), np.empty((most, 3)), np.empty(most)
    kept, counts, n_kept, start = members.copy(), np.empty_like(members), 0, 0
    for member in members:
        count = _cone(points, member, members, labels[start:], corners[start:], spare)
        own, total = _row(points, member), 0.0
        for k in range(start, start + count):
            one, two = labels[k], labels[_following(k, start, count)]
            if one != two:
                one, two = _minus(own, _row(points, one)), _minus(own, _row(points, two))
                turns[k] = _turn(one, two, _row(corners, k))
                total += turns[k]
        if count > 0:
            kept[n_kept], counts[n_kept], angles[n_kept] = member, count, 2 * math.pi - total
            n_kept += 1
            start += count
    kept, counts, angles = kept[:n_kept], counts[:n_kept], angles[:n_kept]
    return kept, counts, labels[:start], corners[:start], turns[:start], angles


@_loop
def _cone(points, member, members, labels, corners, spare):
    """Number of corners of one cone, counter-clockwise; `labels[k]` is the edge that ends at k."""
    if len(members) < 2:
        return 0
    first = members[0] if members[0] != member else members[1]
    own = _row(points, member)
    pole = _unit(_minus(own, _row(points, first)))
    east = _unit(_cross(pole, _axis_away_from(pole)))
    north = _cross(pole, east)
    labels[:4] = first
    corners[0], corners[1] = east, north
    corners[2], corners[3] = -corners[0], -corners[1]
    count = 4
    for other in members:
        if other != member and other != first and count > 0:
            normal = _unit(_minus(own, _row(points, other)))
            count = _cut(labels, corners, count, other, normal, pole, spare)
    return count


@_loop
def _cut(labels, corners, count, label, normal, pole, spare):
    """Cut a polygon by the half-space normal·u ≥ 0; number of corners left."""
    new_labels, new_corners, height = spare
    lowest, highest = 0, 0
    for k in range(count):
        height[k] = _dot(normal, _row(corners, k))
        lowest = k if height[k] < height[lowest] else lowest
        highest = k if height[k] > height[highest] else highest
    if height[highest] <= ROUNDING:  # a whole half-space may be this one
        return count if height[lowest] >= -ROUNDING and _dot(normal, pole) > 0 else 0
    if height[lowest] >= -ROUNDING:
        return count
    # a convex polygon is cut off in one piece, the one around its lowest corner
    begin, end = lowest, lowest
    while height[begin] <= ROUNDING:
        before, begin = begin, _following(begin, 0, count)
    while height[end] <= ROUNDING:
        behind, end = end, end - 1 if end > 0 else count - 1
    n, k = 1, begin
    new_labels[0], new_corners[0] = labels[k], _row(corners, k)
    while k != end:
        k = _following(k, 0, count)
        new_labels[n], new_corners[n] = labels[k], _row(corners, k)
        n += 1
    one = _crossing(_row(corners, end), height[end], _row(corners, behind), height[behind])
    two = _crossing(_row(corners, begin), height[begin], _row(corners, before), height[before])
    new_labels[n], new_corners[n] = labels[behind], one
    n += 1
    if _dot(one, two) < 0:  # where the great circle is nearest to the pole
        new_labels[n], new_corners[n] = label, _unit(_cross(normal, _cross(pole, normal)))
        n += 1
    new_labels[n], new_corners[n] = label, two
    n += 1
    labels[:n], corners[:n] = new_labels[:n], new_corners[:n]
    return n


@_loop
def _cutting(points, members, counts, labels, corners, outside):
    """Which points of `outside` still are: those left over, and for each corner the outermost.

    Also the distance of the cell's farthest corner.
    """
    most = len(labels) + len(members)
    is_vertex = np.zeros(len(points), np.bool_)
    is_vertex[members] = True
    supports, owners, heights = np.empty((most, 3)), np.empty(most, np.int64), np.empty(most)
    n, start = 0, 0
    for k in range(len(members)):
        own, whole = _row(points, members[k]), True
        for c in range(start, start + counts[k]):
            following = labels[_following(c, start, counts[k])]
            whole = whole and labels[c] == following
            # The same corner comes once for each of its faces, whose least takes it. What lies on
            # an edge of the hull has no face: the origin between an atom's own two images.
            one, two = labels[c], following
            if (members[k] < one or not is_vertex[one]) and (
                members[k] < two or not is_vertex[two]
            ):
                supports[n], owners[n] = corners[c], members[k]
                n += 1
        if whole:  # no corner looks along the pole of a half-space
            supports[n], owners[n] = _unit(_minus(own, _row(points, labels[start]))), members[k]
            n += 1
        start += counts[k]
    lowest = np.inf
    for k in range(n):
        heights[k] = _dot(_row(supports, k), _row(points, owners[k]))
        lowest = min(lowest, heights[k])
    outermost, farthest, n_left = np.full(n, -1), np.zeros(n), 0
    left = np.empty_like(outside)
    for point in outside:
        place = _row(points, point)
        for k in range(n):
            support = _row(supports, k)
            if _dot(support, place) > heights[k]:
                away = _minus(place, _row(points, owners[k]))
                ahead = _dot(support, away)
                if ahead > 0 and ahead**2 > NEGLIGIBLE**2 * _dot(away, away):
                    if ahead > farthest[k]:
                        outermost[k], farthest[k] = point, ahead
                    left[n_left], n_left = point, n_left + 1
                    break
    joining = outermost[outermost >= 0]
    left = np.array([point for point in left[:n_left] if point not in joining])
    return left, joining, 1 / max(lowest, 1e-300)


@_loop
def _following(k, start, count):
    return k + 1 if k + 1 < start + count else start


@_loop
def _row(vectors, k):
    return vectors[k, 0], vectors[k, 1], vectors[k, 2]


@_loop
def _minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@_loop
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@_loop
def _cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@_loop
def _unit(a):
    scale = 1 / math.sqrt(_dot(a, a))
    return scale * a[0], scale * a[1], scale * a[2]


@_loop
def _turn(a, b, around):
    """Angle from a to b, counter-clockwise as seen from where `around` points."""
    normal = _cross(a, b)
    angle = math.atan2(math.sqrt(_dot(normal, normal)), _dot(a, b))
    return angle if _dot(normal, around) >= 0 else -angle


@_loop
def _axis_away_from(a):
    x, y, z = abs(a[0]), abs(a[1]), abs(a[2])
    if x <= y and x <= z:
        return 1.0, 0.0, 0.0
    return (0.0, 1.0, 0.0) if y <= z else (0.0, 0.0, 1.0)


@_loop
def _crossing(above, height, below, depth):
    """Intersection of a plane with the edge from a corner above it to one below."""
    a, b = -min(depth, 0.0), height
    x, y, z = a * above[0] + b * below[0], a * above[1] + b * below[1], a * above[2] + b * below[2]
    return _unit((x, y, z))
