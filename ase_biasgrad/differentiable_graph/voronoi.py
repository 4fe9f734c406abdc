"""Edge weights from Voronoi cells: solid angles of shared faces, differentiable.

The topology comes from SciPy's Qhull on the CPU (`voronoi_topology.py`), at every evaluation; the
geometry is recomputed from positions and cell with torch. With a, b, c the vectors from atom i to
three neighbours, their cell corner lies at

    w = (a² b×c + b² c×a + c² a×b) / (2 a·(b×c))

from i. A face is a fan of triangles around the direction of the bond; each has the solid angle Ω
with tan(Ω/2) = a·(b×c) / (1 + a·b + b·c + c·a) of unit vectors (van Oosterom and Strackee 1983,
IEEE Trans. Biomed. Eng. 30, 125). Only directions enter, so a corner at infinity is one of them.

Weights are continuous where faces appear and vanish. Their derivatives are, too, except where a
face appears as a strip with long sides (simple cubic and rocksalt crystals under shear): there the
derivative is that of the crystal's cells as they are, without the strip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.differentiable_graph.adjacency import Adjacency, symmetrised
from ase_biasgrad.differentiable_graph.voronoi_topology import GHOST, Topology, voronoi_topology
from ase_biasgrad.graph import AtomGraph


@dataclass(frozen=True)
class VoronoiFaces:
    """The faces of a batch's Voronoi cells, each seen from its atom `centre`.

    Corners of the face k are the rows c with `face[c] == k`, ordered; `following[c]` is the row
    behind c. `towards` are vectors from the centre: along the unit vector where the corner lies at
    infinity (`distance[c] == inf`).
    """

    centre: Tensor  # (f,) int64
    neighbour: Tensor  # (f,) int64
    bonds: Tensor  # (f, 3) Å, vectors from centre to neighbour
    solid_angles: Tensor  # (f,) sr
    orientation: Tensor  # (f,) ±1, sense of the corners around the bond
    face: Tensor  # (c,) int64
    following: Tensor  # (c,) int64
    normals: Tensor  # (c, 3) numerator of w, in Å⁴ (Å² at infinity)
    volumes: Tensor  # (c,) 2 a·(b×c) in Å³, zero at infinity

    def areas(self) -> Tensor:
        """Area of each face `(f,)` Å², inf where it is unbounded."""
        return self._moments()[0]

    def centroids(self) -> Tensor:
        """Centroid of each face `(f, 3)` in Å from its centre atom; NaN where it is unbounded."""
        areas, moments = self._moments()
        return moments / areas[:, None]

    def cell_volumes(self, n_atoms: int) -> Tensor:
        """Volume of each atom's cell `(n,)` Å³, of pyramids over its faces; inf if unbounded."""
        pyramids = self.areas() * self.bonds.norm(dim=1) / 6  # height is half the bond
        return pyramids.new_zeros(n_atoms).index_add(0, self.centre, pyramids)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Area `(f,)` and area times centroid `(f, 3)`."""
        corners = self.normals / self.volumes[:, None]  # (c, 3)
        middle = 0.5 * self.bonds[self.face]
        one, two = corners - middle, corners[self.following] - middle
        unit = self.bonds / self.bonds.norm(dim=1, keepdim=True)
        outward = (unit * self.orientation[:, None])[self.face]
        area = 0.5 * (torch.linalg.cross(one, two) * outward).sum(dim=1)  # (c,) of triangles
        moment = area[:, None] * (middle + (one + two) / 3)
        n = len(self.bonds)
        return (
            area.new_zeros(n).index_add(0, self.face, area),
            area.new_zeros(n, 3).index_add(0, self.face, moment),
        )


def voronoi_faces(graph: AtomGraph) -> VoronoiFaces:
    """Faces of the Voronoi cells of a batch, differentiable in `graph.positions` and `.cell`.

    The edges of the graph play no part. Non-periodic directions are open: their outermost cells
    are bounded by ghosts at infinity, and faces with ghosts are not listed.

    Raises
    ------
    ValueError
        Where two atoms are at the same place.
    """
    t = _batch_topology(graph)
    positions, cell, batch = graph.positions, graph.cell, graph.batch
    centre, face = _tensor(t.centre, graph), _tensor(t.face, graph)

    def vectors(start: Tensor, end: Tensor, shift: np.ndarray) -> Tensor:
        moved = positions[end] - positions[start]
        if not shift.any():
            return moved
        by = _tensor(shift, graph).to(cell.dtype)
        return moved + torch.einsum("ek,ekl->el", by, cell[batch[start]])

    neighbour, following = _tensor(t.neighbour, graph), _tensor(t.following, graph)
    bonds = vectors(centre, neighbour, t.shift)  # (f, 3)
    one, two = (
        vectors(centre[face], _tensor(np.maximum(atom, 0), graph), shift)
        for atom, shift in zip(t.sites.T, t.site_shift.transpose(1, 0, 2), strict=True)
    )
    normals, volumes = _corners(t, bonds[face], one, two, graph)
    units = normals / normals.norm(dim=1, keepdim=True)
    sign = (units.detach() * _tensor(t.direction, graph)).sum(dim=1).sign()  # (c,)
    units = sign[:, None] * units
    orientation = _tensor(t.orientation, graph)
    solid_angles = orientation * _solid_angles(bonds, units, face, following)
    return VoronoiFaces(
        centre, neighbour, bonds, solid_angles, orientation, face, following, normals, volumes
    )


def voronoi_adjacency(graph: AtomGraph) -> Adjacency:
    """The weights of `weights_voronoi`, without the dense matrix."""
    faces = voronoi_faces(graph)
    share = faces.solid_angles / (4 * math.pi)
    return symmetrised(faces.centre, faces.neighbour, share, len(graph.numbers))


def weights_voronoi(graph: AtomGraph) -> Tensor:
    """Weights W `(n, n)`: the share of the full solid angle of i that faces (images of) j.

    Rows of atoms with bounded cells sum to one; what is missing in the others is open sky. A
    batch gives a matrix of blocks. Differentiable in `graph.positions` and `graph.cell`.

    Raises
    ------
    ValueError
        Where two atoms are at the same place.
    """
    return voronoi_adjacency(graph).dense()


def _corners(
    t: Topology, a: Tensor, b: Tensor, c: Tensor, graph: AtomGraph
) -> tuple[Tensor, Tensor]:
    """Numerator `(c, 3)` and denominator `(c,)` of each corner w; directions where ghosts are."""
    ghosts = t.sites == GHOST  # (c, 2)
    if not ghosts.any():
        return _circumcentres(a, b, c)
    normals, volumes = a.new_zeros(a.shape), a.new_zeros(len(a))
    middle = (t.sites[:, 0] == t.sites[:, 1]) & (t.site_shift[:, 0] == t.site_shift[:, 1]).all(1)
    inside = _tensor((~ghosts.any(axis=1) & ~middle).nonzero()[0], graph)
    near, denominators = _circumcentres(a[inside], b[inside], c[inside])
    normals, volumes = (
        normals.index_copy(0, inside, near),
        volumes.index_copy(0, inside, denominators),
    )
    rows = _tensor((middle & ~ghosts.any(axis=1)).nonzero()[0], graph)
    normals = normals.index_copy(0, rows, _middle_of_line(a[rows], b[rows]))
    for only, other in ((0, c), (1, b)):  # beside one ghost: normal to the three atoms
        rows = _tensor((ghosts[:, only] & ~ghosts[:, 1 - only]).nonzero()[0], graph)
        normals = normals.index_copy(0, rows, torch.linalg.cross(a[rows], other[rows]))
    # between two ghosts: somewhere on the circle normal to the bond, and where is no matter
    rows = _tensor(ghosts.all(axis=1).nonzero()[0], graph)
    along = a[rows] / a[rows].norm(dim=1, keepdim=True)
    guess = _tensor(t.direction, graph)[rows]
    on_circle = guess - (guess * along).sum(dim=1, keepdim=True) * along
    return normals.index_copy(0, rows, on_circle), volumes


def _circumcentres(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator `(c, 3)` and denominator `(c,)` of w for vectors `(c, 3)` to three sites."""
    bc = torch.linalg.cross(b, c)
    numerators = (
        a.square().sum(1, keepdim=True) * bc
        + b.square().sum(1, keepdim=True) * torch.linalg.cross(c, a)
        + c.square().sum(1, keepdim=True) * torch.linalg.cross(a, b)
    )
    return numerators, 2 * (a * bc).sum(dim=1)


def _middle_of_line(a: Tensor, b: Tensor) -> Tensor:
    """Direction `(c, 3)` to the circumcentre of the triangle of the centre, a and b."""
    squares = a.square().sum(1, keepdim=True), b.square().sum(1, keepdim=True)
    return torch.linalg.cross(squares[0] * b - squares[1] * a, torch.linalg.cross(a, b))


def _solid_angles(bonds: Tensor, units: Tensor, face: Tensor, following: Tensor) -> Tensor:
    """Signed solid angle of each face `(f,)`: triangles of the bond and each edge, added up."""
    a = (bonds / bonds.norm(dim=1, keepdim=True))[face]  # (c, 3)
    b, c = units, units[following]
    numerators = (a * torch.linalg.cross(b, c)).sum(dim=1)
    denominators = 1 + (a * b).sum(dim=1) + (b * c).sum(dim=1) + (c * a).sum(dim=1)
    triangles = 2 * torch.atan2(numerators, denominators)
    return triangles.new_zeros(len(bonds)).index_add(0, face, triangles)


def _batch_topology(graph: AtomGraph) -> Topology:
    """Topologies of all structures as one, atoms counted through."""
    positions, cells = graph.positions.detach().cpu().numpy(), graph.cell.detach().cpu().numpy()
    pbc, owner = graph.pbc.cpu().numpy(), graph.batch.cpu().numpy()
    parts: list[Topology] = []
    atoms, faces, corners = [], 0, 0
    first_faces, first_corners = [], []
    for k in range(graph.n_structures):
        mine = np.flatnonzero(owner == k)
        part = voronoi_topology(positions[mine], cells[k], pbc[k])
        parts.append(part)
        atoms.append(mine)
        first_faces.append(faces)
        first_corners.append(corners)
        faces, corners = faces + len(part.centre), corners + len(part.face)
    if len(parts) == 1:
        return parts[0]
    return Topology(
        centre=np.concatenate([m[p.centre] for p, m in zip(parts, atoms, strict=True)]),
        neighbour=np.concatenate([m[p.neighbour] for p, m in zip(parts, atoms, strict=True)]),
        shift=np.concatenate([p.shift for p in parts]),
        orientation=np.concatenate([p.orientation for p in parts]),
        face=np.concatenate([p.face + k for p, k in zip(parts, first_faces, strict=True)]),
        following=np.concatenate(
            [p.following + k for p, k in zip(parts, first_corners, strict=True)]
        ),
        sites=np.concatenate([_counted_through(p, m) for p, m in zip(parts, atoms, strict=True)]),
        site_shift=np.concatenate([p.site_shift for p in parts]),
        direction=np.concatenate([p.direction for p in parts]),
    )


def _counted_through(topology: Topology, atoms: np.ndarray) -> np.ndarray:
    if len(atoms) == 0:
        return topology.sites
    return np.where(topology.sites == GHOST, GHOST, atoms[topology.sites])


def _tensor(values: np.ndarray, graph: AtomGraph) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(graph.device)
