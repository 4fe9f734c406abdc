"""Force errors along soft directions, where they cost energy: an elastic network for the loss.

Equal errors of forces are not equal errors of energy. A bond is stretched by hundredths of an Å,
and a wrong force along it adds up to little; a torsion or a bend out of a plane goes far, and its
forces are so small that a mean over atoms hardly sees them. The inequality of Brascamp and Lieb
(J. Funct. Anal. 22, 366, 1976) says how much each counts: where frames are a Boltzmann sample of a
convex energy with Hessian H, an error δE of the energy and its error δF of the forces obey

    Var(δE) ≤ kT ⟨δFᵀ H⁻¹ δF⟩,

and Var(δE) is what no bias can remove. H is not known; in its place stands an elastic network
(anisotropic network model, Atilgan et al., Biophys. J. 80, 505, 2001) of springs between all
pairs of the graph that weaken with distance. Only its orders of magnitude matter.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from ase.data import covalent_radii
from torch import Tensor

from ase_biasgrad.graph import AtomGraph

# stiffness that every motion has at least, in units of a bond's: bends out of a plane stretch no
# spring, and fragments apart hold on to nothing
FLOOR = 0.01


@dataclass(frozen=True)
class Springs:
    """The elastic networks of `b` structures, of which the largest has up to `m` atoms.

    `factor` is the Cholesky factor of K/`FLOOR`, K the stiffness; rows of atoms that a structure
    does not have are those of the unit matrix.
    """

    factor: Tensor  # (b, 3m, 3m) float64
    row: Tensor  # (n,) int64, place of each atom among b · m
    atoms: Tensor  # (b,) int64, atoms of each structure

    def lengths(self, errors: Tensor) -> Tensor:
        """√(δFᵀ (K/FLOOR)⁻¹ δF / 3N) of each structure, `(b,)`, in the unit of `errors` `(n, 3)`.

        The root mean square of errors in which the softest directions count fully, and the
        stretch of a bond by a tenth.
        """
        b, size, _ = self.factor.shape
        padded = errors.new_zeros((b * size // 3, 3)).index_add(0, self.row, errors)
        softened = torch.linalg.solve_triangular(
            self.factor, padded.reshape(b, size, 1), upper=False
        )
        return torch.linalg.vector_norm(softened, dim=(1, 2)) / (3 * self.atoms).to(errors).sqrt()


def springs_of(graph: AtomGraph, atoms: Tensor, largest: int) -> Springs:
    """The elastic network of each structure: a spring along each pair of the graph.

    Its stiffness at distance r is ((R_i + R_j)/r)⁴, R the covalent radii: 1 for a bond. To that
    comes `FLOOR` for every motion.

    Parameters
    ----------
    graph
        `b` structures.
    atoms
        Atoms of each structure, `(b,)` int64.
    largest
        Number of atoms that no structure exceeds.
    """
    first = torch.cumsum(atoms, 0) - atoms
    place = torch.arange(len(graph.batch), device=graph.device) - first[graph.batch]
    row = graph.batch * largest + place  # (n,)
    centre, neighbour = graph.edge_index
    block = (_stiffness(graph) / FLOOR).flatten()  # (9e,)
    matrix = block.new_zeros((graph.n_structures, 3 * largest, 3 * largest))
    matrix.diagonal(dim1=1, dim2=2).fill_(1.0)
    axis = torch.arange(3, device=graph.device)
    rows = (3 * row[centre, None] + axis) * matrix.shape[2]  # (e, 3)
    # one number at a time: `index_add_` of blocks is far slower
    for atoms_of_columns, sign in ((place[neighbour], -1.0), (place[centre], 1.0)):
        columns = 3 * atoms_of_columns[:, None] + axis  # (e, 3)
        entries = (rows[:, :, None] + columns[:, None, :]).flatten()
        matrix.view(-1).index_add_(0, entries, block, alpha=sign)
    # no check of the result, which would wait for the device: 1 plus squares always has a factor
    factor, _ = torch.linalg.cholesky_ex(matrix)
    return Springs(factor, row, atoms)


def _stiffness(graph: AtomGraph) -> Tensor:
    """Second derivative of each edge's spring by one end, `(e, 3, 3)`."""
    centre, neighbour = graph.edge_index
    vectors = graph.edge_vectors().detach()  # (e, 3)
    square = vectors.square().sum(dim=1)  # (e,)
    radii = _covalent_radii(graph.device)[graph.numbers]
    stiffness = ((radii[centre] + radii[neighbour]).square() / square).square()
    return (stiffness / square)[:, None, None] * vectors[:, :, None] * vectors[:, None, :]


@functools.cache
def _covalent_radii(device: torch.device) -> Tensor:
    """Of each element, in Å, on the device once: a copy in every step would wait for it."""
    return torch.as_tensor(covalent_radii, device=device)
