"""Edge weights from Voronoi cells: solid angles of shared faces, differentiable.

Which faces a cell has follows from the positions on the CPU (`voronoi_topology.py`), at every
evaluation; the rest is torch. With p = 2b/b² for the bond b from an atom to a neighbour, and p = 0
for the open sky, the face of one neighbour is seen from the atom in the solid angle

    Ω = 2π − Σ_k ∠(p − p_k, p − p_(k+1))

where k runs over the edges of the face (`voronoi_cells.py` says why). A corner between three faces
lies at w = (p×p' + p'×p″ + p″×p) / (p·p'×p″) from the atom, at infinity if one of them is the sky.

Weights are continuous where faces appear and vanish. Their derivatives are, too, except where a
face appears as a strip with long sides (simple cubic and rocksalt crystals under shear, a flat
sheet that buckles): there the derivative is that of the cells without the strip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.differentiable_graph.adjacency import Adjacency, symmetrised
from ase_biasgrad.differentiable_graph.cutoff_weights import largest_of_group
from ase_biasgrad.differentiable_graph.voronoi_topology import SKY, Topology, voronoi_topology
from ase_biasgrad.graph import AtomGraph

# What a share of the full solid angle may be wrong by before it is an error.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class VoronoiFaces:
    """The faces of a batch's Voronoi cells, each seen from its atom `centre`.

    Edges of the face k are the rows c with `face[c] == k`, counter-clockwise as seen from outside;
    `following[c]` is the row behind c, and `across[c]` the face of the same cell behind the edge,
    −1 where the sky is open.
    """

    centre: Tensor  # (f,) int64
    neighbour: Tensor  # (f,) int64
    bonds: Tensor  # (f, 3) Å, vectors from centre to neighbour
    solid_angles: Tensor  # (f,) sr
    sky: Tensor  # (n,) sr, the solid angle of each atom's open sky, without derivative
    face: Tensor  # (c,) int64
    across: Tensor  # (c,) int64
    following: Tensor  # (c,) int64

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
        corners = self._corners()  # (c, 3), behind the edges
        middle = 0.5 * self.bonds[self.face]
        one, two = corners - middle, corners[self.following] - middle
        outward = (self.bonds / self.bonds.norm(dim=1, keepdim=True))[self.face]
        area = 0.5 * (torch.linalg.cross(one, two) * outward).sum(dim=1)  # (c,) of triangles
        moment = area[:, None] * (middle + (one + two) / 3)
        n = len(self.bonds)
        areas = area.new_zeros(n).index_add(0, self.face, area)
        moments = area.new_zeros(n, 3).index_add(0, self.face, moment)
        unbounded = torch.zeros(n, dtype=torch.bool, device=self.face.device)
        unbounded[self.face[self.across == SKY]] = True
        return (
            areas.masked_fill(unbounded, math.inf),
            moments.masked_fill(unbounded[:, None], math.nan),
        )

    def _corners(self) -> Tensor:
        """Corners `(c, 3)` in Å from the centre, each between an edge and the following one."""
        points = _inverted(self.bonds)
        a, b = points[self.face], points[self.across]
        c = b[self.following]
        bc = torch.linalg.cross(b, c)
        volumes = (a * bc).sum(dim=1, keepdim=True)
        open_ = (self.across == SKY)[:, None]
        volumes = torch.where(open_ | open_[self.following], 1.0, volumes)
        return (torch.linalg.cross(a, b) + bc + torch.linalg.cross(c, a)) / volumes


def voronoi_faces(graph: AtomGraph) -> VoronoiFaces:
    """Faces of the Voronoi cells of a batch, differentiable in `graph.positions` and `.cell`.

    The edges of the graph play no part. Non-periodic directions are open: what a ray from an atom
    meets there, if no face, is the sky.

    Raises
    ------
    ValueError
        Where two atoms are at the same place.
    RuntimeError
        Where the faces and the sky of an atom do not add up to 4π, or a face does not look the same
        from both sides, by more than 1e-6 of 4π.
    """
    t = _batch_topology(graph)
    centre, neighbour, face, across = (
        _tensor(part, graph) for part in (t.centre, t.neighbour, t.face, t.across)
    )
    bonds = graph.positions[neighbour] - graph.positions[centre]
    if t.shift.any():
        shift = _tensor(t.shift, graph).to(graph.cell.dtype)
        bonds = bonds + torch.einsum("ek,ekl->el", shift, graph.cell[graph.batch[centre]])
    following = _tensor(_following(t.face), graph)
    faces = VoronoiFaces(
        centre=centre,
        neighbour=neighbour,
        bonds=bonds,
        solid_angles=_solid_angles(bonds, face, across, following, _tensor(t.turns, graph)),
        sky=_tensor(t.sky, graph),
        face=face,
        across=across,
        following=following,
    )
    _check(faces)
    return faces


def voronoi_adjacency(graph: AtomGraph, largest_face: bool = False) -> Adjacency:
    """The weights of `weights_voronoi`, without the dense matrix."""
    faces = voronoi_faces(graph)
    whole: Tensor | float = 4 * math.pi
    if largest_face:
        whole = largest_of_group(faces.solid_angles, faces.centre)
    weights = faces.solid_angles / whole
    return symmetrised(faces.centre, faces.neighbour, weights, len(graph.numbers))


def weights_voronoi(graph: AtomGraph, largest_face: bool = False) -> Tensor:
    """Weights W `(n, n)`: the share of the full solid angle of i that faces (images of) j.

    Rows of atoms with bounded cells sum to one; what is missing in the others is open sky. A
    batch gives a matrix of blocks. Differentiable in `graph.positions` and `graph.cell`.

    Parameters
    ----------
    graph
        Structures; their edges play no part.
    largest_face
        Divide the solid angles of each atom's faces by the largest of them in the place of 4π, then
        take ½(W + Wᵀ), as AtomGraphs.jl has it (which then divides by the largest entry, of which
        the Laplacian knows nothing). Faces that tie for the largest share its derivative.

    Raises
    ------
    ValueError
        Where two atoms are at the same place.
    RuntimeError
        Where solid angles do not add up, see `voronoi_faces`.
    """
    return voronoi_adjacency(graph, largest_face).dense()


def _inverted(bonds: Tensor) -> Tensor:
    """2b/b² of each bond `(f, 3)`, and a last row of zeros: the sky, in the place −1."""
    points = 2 * bonds / bonds.square().sum(dim=1, keepdim=True)
    return torch.cat([points, points.new_zeros(1, 3)])


def _solid_angles(
    bonds: Tensor, face: Tensor, across: Tensor, following: Tensor, senses: Tensor
) -> Tensor:
    """Solid angle of each face `(f,)`: 2π less the angles between the normals of its edges."""
    points = _inverted(bonds)
    one = points[face] - points[across]  # (c, 3)
    two = one[following]
    square = torch.linalg.cross(one, two).square().sum(dim=1)
    turns = square > 0  # of a half-space, the one edge follows itself
    sine = torch.where(turns, torch.where(turns, square, 1.0).sqrt(), 0.0)
    angles = senses * torch.atan2(sine, (one * two).sum(dim=1))
    return 2 * math.pi - angles.new_zeros(len(bonds)).index_add(0, face, angles)


def _following(face: np.ndarray) -> np.ndarray:
    """The edge behind each edge `(c,)` around its face; those of a face follow each other."""
    following = np.arange(1, len(face) + 1)
    starts = np.flatnonzero(np.diff(face, prepend=-1))
    following[np.append(starts, len(face))[1:] - 1] = starts
    return following


def _check(faces: VoronoiFaces) -> None:
    """Raise unless solid angles are positive, add up to 4π, and are the same from both sides."""
    share, n = faces.solid_angles.detach() / (4 * math.pi), len(faces.sky)
    centre, neighbour = faces.centre, faces.neighbour
    sums = (faces.sky / (4 * math.pi)).to(share.dtype).index_add(0, centre, share)  # (n,)
    pairs, pair = torch.unique(
        centre.minimum(neighbour) * n + centre.maximum(neighbour), return_inverse=True
    )
    seen_from = torch.sign(neighbour - centre).to(share.dtype)
    one_sided = share.new_zeros(len(pairs)).index_add(0, pair, seen_from * share)
    wrong = (sums - 1).abs() > TOLERANCE
    wrong[centre[share < -TOLERANCE]] = True
    wrong[pairs[one_sided.abs() > TOLERANCE] // max(n, 1)] = True
    if wrong.any():
        atom = int(wrong.nonzero()[0])
        raise RuntimeError(
            f"the Voronoi cell of atom {atom} does not close: its faces and the open sky fill "
            f"{float(sums[atom]):.9f} of the full solid angle, or a face differs between its two "
            "sides; displace the atoms by some 1e-4 Å, and report these positions"
        )


def _batch_topology(graph: AtomGraph) -> Topology:
    """Topologies of all structures as one, atoms and faces counted through."""
    positions, cells = graph.positions.detach().cpu().numpy(), graph.cell.detach().cpu().numpy()
    pbc, owner = graph.pbc.cpu().numpy(), graph.batch.cpu().numpy()
    sky = np.zeros(len(owner))
    parts, n_faces = [], 0
    for k in range(graph.n_structures):
        mine = np.flatnonzero(owner == k)
        part = voronoi_topology(positions[mine], cells[k], pbc[k])
        sky[mine] = part.sky
        across = np.where(part.across == SKY, SKY, part.across + n_faces)
        atoms, edges = (mine[part.centre], mine[part.neighbour]), (part.face + n_faces, across)
        parts.append((*atoms, part.shift, *edges, part.turns))
        n_faces += len(part.centre)
    centre, neighbour, shift, face, across, turns = map(np.concatenate, zip(*parts, strict=True))
    return Topology(centre, neighbour, shift, face, across, turns, sky)


def _tensor(values: np.ndarray, graph: AtomGraph) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(graph.device)
