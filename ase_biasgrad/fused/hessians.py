"""Second derivatives of the energy of one structure: the tangents of its forces, exact.

A column of the Hessian is the change of the gradient along one coordinate, by one pass of the
tangents of a program (`tangents`); what the forward pass and the VJP have left serves all of them.

The structure moving as a whole changes no force, or turns all of them. With the rigid motions D
`(3n, 3 to 6)`, and K the change of the gradient along them,

    H D = K:  0 for shifts,  ω × g_i for the rotation ω × r_i,

so the columns of as many coordinates as there are rigid motions follow from the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_strain
from scipy.linalg import qr

from ase_biasgrad.fused.batches import evaluate
from ase_biasgrad.fused.execute_tangents import execute_tangents
from ase_biasgrad.fused.geometry import add_force_tangents, move_edges
from ase_biasgrad.fused.runtime import CompiledNetwork
from ase_biasgrad.fused.structures import Evaluated, SplineConstants, Structures, room_for
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.rigid_motions import shifts, turns

LEAST_MOTION = 0.1  # of a rigid motion beside the largest one; smaller ones would spread errors


def second_derivatives(
    network: CompiledNetwork, structure: Structures, strain: bool = False
) -> np.ndarray:
    """Second derivatives in all coordinates, `(3n, 3n)` or `(3n + 6, 3n + 6)`, float64.

    Coordinates are the positions in Å and, with `strain`, the strains xx yy zz yz xz xy, a shear
    being 2 ε; positions move with the strain, r' = r (1 + ε). eV over their units.

    Parameters
    ----------
    network
        Finished with the rules of `tangents.HESSIAN`.
    structure
        One.
    """
    n, p = len(structure.numbers), network.program
    splines, room = SplineConstants.of(network.knots), room_for(structure, p, p.weights.dtype, None)
    first = Evaluated(np.empty(n), np.empty((n, 3)), np.empty((1, 3, 3)))
    evaluate(
        0, 1, p.instructions, p.segments[: p.first_order], p.kept, p.local, p.weights, splines,
        structure, room, first,
    )  # fmt: skip
    whole = RigidMotions.of(structure, first.forces, rotations=not strain)
    size = 3 * n + (6 if strain else 0)
    along = np.setdiff1d(np.arange(size), whole.coordinates)
    moved = np.eye(size)[along, : 3 * n].reshape(len(along), n, 3)
    strains = np.zeros((len(along), 3, 3))
    if strain:
        # ASE has 1 + ε
        strains[-6:] = [voigt_6_to_full_3x3_strain(one) - np.eye(3) for one in np.eye(6)]
    forces, strain_gradients = np.zeros((len(along), n, 3)), np.zeros((len(along), 3, 3))
    _tangents_of_forces(
        p.instructions, p.segments[p.first_order :], p.kept, p.local, p.weights, splines, structure,
        room, moved, strains, forces, strain_gradients,
    )  # fmt: skip
    changes = [-forces.reshape(len(along), 3 * n)]
    if strain:  # positions are those before it: ∂E/∂r = −F (1 + ε) and ∂E/∂ε = Σ G r with that r
        changes[0] -= np.einsum("ik,skl->sil", first.forces, strains).reshape(changes[0].shape)
        strain_gradients -= np.einsum("kl,slm->skm", first.strain_gradient[0], strains)
        changes.append(full_3x3_to_voigt_6_stress(strain_gradients))
    found = np.empty((size, size))
    found[along] = np.concatenate(changes, axis=1)
    found[whole.coordinates] = whole.rows(along, found[along])
    return found


@dataclass(frozen=True)
class RigidMotions:
    """Motions of the structure as a whole, and as many coordinates that follow from the others."""

    motions: np.ndarray  # (3n, k)
    changes: np.ndarray  # (3n, k) of the gradient along them
    coordinates: np.ndarray  # (k,) of which the motions are independent

    @classmethod
    def of(cls, structure: Structures, forces: np.ndarray, rotations: bool) -> RigidMotions:
        """Shifts, and rotations if asked for and no edge crosses a periodic boundary.

        With strains they would turn the strain gradient, too. Those that hardly move the structure,
        as rotations of a linear molecule about its axis, are left out.
        """
        n = len(structure.positions)
        motions, changes = [shifts(n)], [np.zeros((3 * n, 3))]
        if rotations and not structure.edges.shift[: structure.edges.starts[n]].any():
            positions = structure.positions - structure.positions.mean(axis=0)
            radius = np.linalg.norm(positions) / n**0.5 or 1.0  # makes them as long as shifts
            motions.append(turns(positions / radius))
            changes.append(turns(-forces / radius))
        every, changed = np.hstack(motions), np.hstack(changes)
        q, r, order = qr(every.T, mode="economic", pivoting=True)
        lengths = np.abs(np.diag(r))
        k = int((lengths > LEAST_MOTION * lengths[0]).sum())
        return cls(every @ q[:, :k], changed @ q[:, :k], order[:k])

    def rows(self, others: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Second derivatives `(k, m)` along `coordinates`, from those along the others."""
        d, of_positions = self.motions, others < len(self.motions)
        changes = np.zeros((d.shape[1], found.shape[1]))
        changes[:, : len(d)] = self.changes.T
        rest = changes - d[others[of_positions]].T @ found[of_positions]
        return np.linalg.solve(d[self.coordinates].T, rest)


@compiled()
def _tangents_of_forces(  # type: ignore[no-untyped-def]
    instructions, segments, kept, local, weights, splines, structure, room, moved, strains, forces,
    strain_gradients,
):  # fmt: skip
    """Add the changes of forces `(m, n, 3)` and of strain gradients `(m, 3, 3)` along m directions.

    Edges are those of the last evaluation, which is not changed.
    """
    owner, chunk = np.zeros(len(structure.numbers), np.int64), structure.chunk[0]
    none = np.empty(0, weights.dtype)  # no weights learn
    for k in range(len(moved)):
        strain = strains[k : k + 1]
        move_edges(
            moved[k], strain, owner, splines.spacing, splines.bins, splines.slopes, splines.bends,
            room.vectors, room.edges, room.tangents,
        )  # fmt: skip
        execute_tangents(
            0, 1, instructions, segments, chunk, kept, local, room.memory, weights, room.edges,
            room.tangents, none,
        )  # fmt: skip
        add_force_tangents(
            moved[k], strain, room.vectors, room.edges, room.tangents, owner, splines.spacing,
            forces[k], strain_gradients[k : k + 1],
        )  # fmt: skip
