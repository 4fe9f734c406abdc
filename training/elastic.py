"""Force errors along soft directions, where they cost energy: an elastic network for the loss.

Equal errors of forces are not equal errors of energy. A bond is stretched by hundredths of an Å,
and a wrong force along it adds up to little; a torsion or a bend out of a plane goes far, and a
wrong force along it adds up to a lot. A mean over atoms counts both the same. The inequality of
Brascamp and Lieb (J. Funct. Anal. 22, 366, 1976) says how much each is worth: where frames are a
Boltzmann sample of a strictly convex energy with Hessians H(R), an error δE of the energy and its
error δF of the forces obey

    Var(δE) ≤ kT ⟨δFᵀ H⁻¹ δF⟩,

and Var(δE) is what no bias can remove. H is not known; in its place stands an elastic network
(after the anisotropic network model, Atilgan et al., Biophys. J. 80, 505, 2001) of springs along
the pairs of the graph that weaken with distance. Only its orders of magnitude matter. Molecules
are convex within one basin at most, so that the inequality is the motive here and no bound.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from ase.data import covalent_radii
from torch import Tensor

from ase_biasgrad.graph import AtomGraph

# stiffness that every motion has at least, in units of a bond's: bends out of a plane stretch no
# spring, and fragments far apart hold on to nothing
FLOOR = 0.01


@dataclass(frozen=True)
class Springs:
    """The elastic networks of `b` structures, none of which has more than `m` atoms.

    `factor` is the Cholesky factor of K/`FLOOR`, K the stiffness; rows of atoms that a structure
    does not have are those of the unit matrix.
    """

    factor: Tensor  # (b, 3m, 3m) float64
    row: Tensor  # (n,) int64, place of each atom among b · m
    counts: Tensor  # (b,) int64, atoms of each structure

    @property
    def size(self) -> int:
        """m, the number of atoms that no structure exceeds."""
        return self.factor.shape[1] // 3

    def lengths(self, errors: Tensor) -> Tensor:
        """√(δFᵀ (K/FLOOR)⁻¹ δF / 3N) of each structure, `(b,)`, in the unit of `errors` `(n, 3)`.

        The root mean square of errors in which the softest directions count fully, and the
        stretch of a bond by less than a tenth. The mean error of a structure is taken out of δF
        first: no energy that is invariant under translations can make it smaller.
        """
        b, size, _ = self.factor.shape
        padded = errors.new_zeros((b * size // 3, 3)).index_add(0, self.row, errors)
        of_structures = padded.reshape(b, size // 3, 3)
        place = torch.arange(size // 3, device=errors.device)
        exists = (place < self.counts.unsqueeze(1)).unsqueeze(2)  # (b, m, 1)
        count = self.counts.to(errors).reshape(b, 1, 1)
        mean = of_structures.sum(dim=1, keepdim=True) / count
        inner = torch.where(exists, of_structures - mean, 0.0).reshape(b, size, 1)
        softened = torch.linalg.solve_triangular(self.factor, inner, upper=False)
        return torch.linalg.vector_norm(softened, dim=(1, 2)) / (3 * count.flatten()).sqrt()


def springs_of(graph: AtomGraph, counts: Tensor, largest: int) -> Springs:
    """The elastic network of each structure: a spring along each pair of the graph.

    Its stiffness at distance r is ((R_i + R_j)/r)⁴, R the covalent radii: 1 for a bond. To that
    comes `FLOOR` for every motion. Matrices of (3 `largest`)² numbers are made for it.

    Parameters
    ----------
    graph
        `b` structures, the atoms of each one after another, every edge with its reverse.
    counts
        Atoms of each structure, `(b,)` int64.
    largest
        Number of atoms that no structure exceeds.
    """
    place = _places(graph.batch, counts)
    centre, neighbour = graph.edge_index
    block = (_stiffness(graph) / FLOOR).flatten()  # (9e,)
    matrix = block.new_zeros((graph.n_structures, 3 * largest, 3 * largest))
    matrix.diagonal(dim1=1, dim2=2).fill_(1.0)
    axis = torch.arange(3, device=graph.device)
    rows = (3 * (graph.batch * largest + place)[centre, None] + axis) * matrix.shape[2]  # (e, 3)
    # one number at a time: `index_add_` of blocks is far slower
    for places, sign in ((place[neighbour], -1.0), (place[centre], 1.0)):
        columns = 3 * places[:, None] + axis  # (e, 3)
        entries = (rows[:, :, None] + columns[:, None, :]).flatten()
        matrix.view(-1).index_add_(0, entries, block, alpha=sign)
    # no check of the result, which would wait for the device: 1 plus squares always has a factor,
    # in floating point too for atoms as far apart as a dataset wants them
    factor, _ = torch.linalg.cholesky_ex(matrix)
    return springs_from(factor, graph.batch, counts)


def springs_from(factor: Tensor, batch: Tensor, counts: Tensor) -> Springs:
    """With factors `(b, 3m, 3m)` at hand; `batch` `(n,)` is the structure of each atom."""
    row = batch * (factor.shape[1] // 3) + _places(batch, counts)
    return Springs(factor, row, counts)


def _places(batch: Tensor, counts: Tensor) -> Tensor:
    """Place of each atom in its structure, `(n,)`."""
    first = torch.cumsum(counts, 0) - counts
    return torch.arange(len(batch), device=batch.device) - first[batch]


def memory_of_springs(structures: int, largest: int) -> int:
    """Bytes of the matrices and factors of a batch."""
    return 2 * structures * (3 * largest) ** 2 * 8


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
    """Covalent radii of all elements in Å, on the device once: copies would wait for it."""
    return torch.as_tensor(covalent_radii, device=device)
