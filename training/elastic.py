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

H⁻¹ δF comes from conjugate gradients over the pairs (Hestenes and Stiefel, J. Res. Natl. Bur.
Stand. 49, 409, 1952), without a matrix. The stiffest motion is some thousand times as stiff as the
softest, whatever the number of atoms, so that some dozens of iterations do. Where the inverse
matrices of all frames are small they are made once, and a product takes the place of iterations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor
from torch.autograd.function import once_differentiable

from ase_biasgrad.graph import AtomGraph, pair_vectors
from ase_biasgrad.numerics.conjugate_gradients import multiply_kept, relax_springs

# stiffness that every motion has at least, in units of a bond's: bends out of a plane stretch no
# spring, and fragments far apart hold on to nothing
FLOOR = 0.01


@dataclass(frozen=True)
class Springs(ABC):
    """The elastic networks of `b` structures with `n` atoms altogether."""

    first_atom: np.ndarray  # (b + 1,) int64, where the atoms of each structure begin, and n

    def lengths(self, errors: Tensor) -> Tensor:
        """√(δFᵀ K⁻¹ δF / 3N) of each structure, `(b,)`, in the unit of `errors` `(n, 3)`.

        K is the stiffness in units of `FLOOR`. The root mean square of errors in which the softest
        directions count fully, and the stretch of a bond by less than a tenth. The mean error of a
        structure is taken out of δF first: no energy that is invariant under translations can make
        it smaller.
        """
        lengths: Tensor = _Lengths.apply(errors, self)
        return lengths

    def displacements(self, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """K⁻¹ δF `(n, 3)`, and the lengths `(b,)`, for errors in float64 in one piece."""
        moved, lengths = np.empty_like(errors), np.empty(len(self.first_atom) - 1)
        self._displace(errors, moved, lengths)
        return moved, lengths

    @abstractmethod
    def _displace(self, errors: np.ndarray, moved: np.ndarray, lengths: np.ndarray) -> None: ...


@dataclass(frozen=True)
class PairSprings(Springs):
    """Networks by their `p` pairs: K is the unit matrix, and a spring s sᵀ along each pair."""

    first_pair: np.ndarray  # (b + 1,) int64, where the pairs of each structure begin, and p
    pairs: np.ndarray  # (2, p) int64
    along: np.ndarray  # (p, 3) float64, s: along the pair, with the root of its stiffness

    def _displace(self, errors: np.ndarray, moved: np.ndarray, lengths: np.ndarray) -> None:
        i, j = self.pairs
        relax_springs(self.first_atom, self.first_pair, i, j, self.along, errors, moved, lengths)

    def inverse(self) -> np.ndarray:
        """K⁻¹ of one structure, `(3n, 3n)`."""
        n = self.first_atom[-1]
        matrix = np.eye(3 * n).reshape(n, 3, n, 3)
        i, j = self.pairs
        blocks = self.along[:, :, None] * self.along[:, None, :]  # (p, 3, 3)
        for rows, columns, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            np.add.at(matrix, (rows, slice(None), columns), sign * blocks)  # type: ignore[arg-type]
        inverse: np.ndarray = np.linalg.inv(matrix.reshape(3 * n, 3 * n))
        return inverse


@dataclass(frozen=True)
class KeptSprings(Springs):
    """Networks by their inverse matrices K⁻¹, which lie row by row in `inverses`."""

    begin: np.ndarray  # (b,) int64, where the matrix of each structure begins
    inverses: np.ndarray  # (…,) float64, of these structures and of others

    def _displace(self, errors: np.ndarray, moved: np.ndarray, lengths: np.ndarray) -> None:
        multiply_kept(self.first_atom, self.begin, self.inverses, errors, moved, lengths)


class _Lengths(torch.autograd.Function):
    """ℓ = √(δFᵀ K⁻¹ δF / 3N), whose derivative K⁻¹ δF / 3Nℓ is the solution that gave it."""

    @staticmethod
    def forward(ctx: Any, errors: Tensor, springs: Springs) -> Tensor:
        given = errors.detach().to("cpu", torch.float64).contiguous().numpy()
        moved, lengths = springs.displacements(given)
        atoms = np.diff(springs.first_atom)
        with np.errstate(divide="ignore"):
            scale = np.where(lengths > 0, 1 / (3 * atoms * lengths), 0.0)
        gradient = moved * np.repeat(scale, atoms)[:, None]
        ctx.save_for_backward(torch.from_numpy(gradient).to(errors))
        ctx.owner = torch.from_numpy(np.repeat(np.arange(len(atoms)), atoms)).to(errors.device)
        return torch.from_numpy(lengths).to(errors)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad[ctx.owner][:, None] * gradient, None


def springs_of(graph: AtomGraph, counts: Tensor) -> PairSprings:
    """The elastic network of each structure: a spring along each pair of the graph.

    Its stiffness at distance r is ((R_i + R_j)/r)⁴, R the covalent radii: 1 for a bond. To that
    comes `FLOOR` for every motion. It takes 40 bytes a pair. The graph has the atoms of each
    structure one after another, `counts` `(b,)` of them, and every edge with its reverse.
    """
    i, j, vectors = (each.detach().cpu().numpy() for each in pair_vectors(graph))
    radii = covalent_radii[graph.numbers.cpu().numpy()]
    distance = np.linalg.norm(vectors, axis=1)  # (p,)
    root = (radii[i] + radii[j]) ** 2 / (distance**3 * FLOOR**0.5)
    along = vectors * root[:, None]
    owner = graph.batch.cpu().numpy()[i]
    order = np.argsort(owner, kind="stable")
    first_pair = np.searchsorted(owner[order], np.arange(len(counts) + 1))
    pairs = np.stack([i[order], j[order]])
    return PairSprings(_ends(counts.cpu().numpy()), first_pair, pairs, along[order])


def kept_springs(inverses: np.ndarray, begin: np.ndarray, counts: np.ndarray) -> KeptSprings:
    """Networks of structures of `counts` `(b,)` atoms by matrices at hand, as in `KeptSprings`."""
    return KeptSprings(_ends(counts), begin, inverses)


def _ends(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
