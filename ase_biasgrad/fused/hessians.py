"""Second derivatives of the energy of one structure: the tangents of its forces, exact.

A column of the Hessian is the change of the gradient along one coordinate, by one pass of the
tangents of a program (`tangents`); what the forward pass and the VJP have left serves all of them.
"""

from __future__ import annotations

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_strain

from ase_biasgrad.fused.batches import evaluate
from ase_biasgrad.fused.execute_tangents import execute_tangents
from ase_biasgrad.fused.geometry import add_force_tangents, move_edges
from ase_biasgrad.fused.runtime import CompiledNetwork
from ase_biasgrad.fused.structures import Evaluated, SplineConstants, Structures, room_for
from ase_biasgrad.numerics.kernel_cache import compiled


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
    size = 3 * n + (6 if strain else 0)
    moved, strains = np.zeros((size, n, 3)), np.zeros((size, 3, 3))
    moved.reshape(size, -1)[: 3 * n] = np.eye(3 * n)
    if strain:
        # ASE has 1 + ε
        strains[3 * n :] = [voigt_6_to_full_3x3_strain(one) - np.eye(3) for one in np.eye(6)]
    forces, strain_gradients = np.zeros((size, n, 3)), np.zeros((size, 3, 3))
    _tangents_of_forces(
        p.instructions, p.segments[p.first_order :], p.kept, p.local, p.weights, splines, structure,
        room, moved, strains, forces, strain_gradients,
    )  # fmt: skip
    # positions are those before the strain: ∂E/∂r = −F (1 + ε) and ∂E/∂ε = Σ G r with that r
    forces += np.einsum("ik,skl->sil", first.forces, strains)
    strain_gradients -= np.einsum("kl,slm->skm", first.strain_gradient[0], strains)
    of_strains = [full_3x3_to_voigt_6_stress(strain_gradients)] if strain else []
    return np.concatenate([-forces.reshape(size, -1), *of_strains], axis=1)


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
