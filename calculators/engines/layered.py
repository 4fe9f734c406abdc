"""The layered engine: TensorNet in float32 or float64 on a CPU, pairs counted once, no autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ase_biasgrad.backbones import Backbone, TensorNet
from ase_biasgrad.calculators.engines.base import Evaluation, Structure, split
from ase_biasgrad.calculators.engines.cpu.geometry import directed_forces, within_cutoff
from ase_biasgrad.calculators.engines.verlet_list import VerletCache
from ase_biasgrad.fused.sampled_tensornet import Neighbours, SampledTensorNet
from ase_biasgrad.neighbours import HalfPairs, half, joined, neighbour_list
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.splines import DEGREE, N_WEIGHTS, polynomials, slope_polynomials


def fits(backbones: list[Backbone]) -> bool:
    """True if this engine can evaluate these backbones."""
    return all(isinstance(backbone, TensorNet) for backbone in backbones)


class LayeredEngine:
    """Evaluates one or several `TensorNet` on the CPU.

    Radial filters are sampled when the engine is made. Networks run in `dtype`; positions,
    distances, energy sums and forces of pairs are float64.
    """

    name = "layered"

    def __init__(self, backbones: Sequence[Any], dtype: torch.dtype, skin: float) -> None:
        self.backbones: list[Backbone] = [b.requires_grad_(False) for b in backbones]
        self.torch_dtype = dtype
        self.dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self.cutoff = max(float(backbone.cutoff) for backbone in backbones)
        self.models = [SampledTensorNet(backbone, dtype) for backbone in backbones]
        self.list = VerletCache(self.cutoff, skin, lambda edges, _: half(edges))

    def __getstate__(self) -> dict[str, Any]:
        return {"backbones": self.backbones, "dtype": self.torch_dtype, "skin": self.list.list.skin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def reset(self) -> None:
        """Forget the neighbour list."""
        self.list.reset()

    def fresh(self) -> LayeredEngine:
        """Another engine without neighbour list that shares the weights."""
        other = object.__new__(LayeredEngine)
        other.__dict__ |= self.__dict__
        other.list = self.list.fresh()
        return other

    def evaluate(self, structure: Structure, derivatives: bool) -> Evaluation:
        """Per-atom energies; with `derivatives` also forces and the strain gradient."""
        pairs = self.list.of(structure)
        energies, forces, strain = self._evaluate([structure], pairs, derivatives)
        if not derivatives:
            return Evaluation(energies)
        return Evaluation(energies, forces, strain[:, 0])

    def evaluate_many(self, structures: Sequence[Structure]) -> list[Evaluation]:
        """Evaluate several structures, with derivatives, in one pass."""
        sizes = [len(s.numbers) for s in structures]
        lists = [neighbour_list(s.positions, s.cell, s.pbc, self.cutoff) for s in structures]
        pairs = joined([half(edges) for edges in lists], sizes)
        return split(*self._evaluate(structures, pairs, derivatives=True), sizes)

    def _evaluate(
        self, structures: Sequence[Structure], candidates: HalfPairs, derivatives: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies `(members, n)`, forces, and ∂E/∂ε `(members, structures, 3, 3)`."""
        numbers = np.concatenate([s.numbers for s in structures])
        n, members = len(numbers), len(self.models)
        energies, forces = np.empty((members, n)), np.zeros((members, n, 3))
        strain = np.zeros((members, len(structures), 3, 3))
        for m, model in enumerate(self.models):
            found = PairGeometry(structures, candidates, model, self.dtype)
            energies[m], adj_weights, adj_tensors = model.evaluate(numbers, found.near, derivatives)
            if derivatives:
                directed_forces(
                    found.atoms, found.vectors, len(found.atoms),
                    found.distance_adjoints(adj_weights), model.table.knots.spacing,
                    unit_vector_adjoints(found.vectors, adj_tensors),
                    found.structure, forces[m], strain[m],
                )  # fmt: skip
        return energies, forces, strain


class PairGeometry:
    """The pairs within a model's cutoff, with bins and spline weights on its grid."""

    def __init__(
        self,
        structures: Sequence[Structure],
        candidates: HalfPairs,
        model: SampledTensorNet,
        dtype: np.dtype,
    ) -> None:
        knots, count = model.table.knots, len(candidates.i)
        self.structure = np.repeat(np.arange(len(structures)), [len(s.numbers) for s in structures])
        atoms, bin = np.empty((count, 2), np.int64), np.empty(count, np.int64)
        vectors, t = np.empty((count, 4)), np.empty(count)
        found = within_cutoff(
            np.concatenate([s.positions for s in structures]),
            np.stack([s.cell for s in structures]),
            self.structure, candidates.i, candidates.j, candidates.shift,
            knots.cutoff, knots.spacing, model.table.n_bins, atoms, vectors, bin, t,
        )  # fmt: skip
        self.atoms, self.vectors = atoms[:found], vectors[:found]  # (p, 2), (p, 4)
        self._powers = t[:found, None] ** np.arange(N_WEIGHTS)  # (p, 6)
        self.near = Neighbours(
            np.ascontiguousarray(self.atoms[:, 0]),
            np.ascontiguousarray(self.atoms[:, 1]),
            bin[:found],
            (self._powers @ polynomials()).astype(dtype),
            pair_tensors(self.vectors).astype(dtype),
        )

    def distance_adjoints(self, adj_weights: np.ndarray) -> np.ndarray:
        """∂E by the distances `(p,)`, per spacing of the knots, from that by weights `(p, 6)`."""
        adj_t = self._powers[:, :DEGREE] @ slope_polynomials()  # (p, 6)
        return np.einsum("pt,pt->p", adj_t, adj_weights)


_loop = compiled(error_model="numpy")
_DIAGONAL, _OTHER, _LAST = 3**0.5, 2**0.5, 6**-0.5  # of the components of `matrix_basis`


@_loop
def pair_tensors(vectors):  # type: ignore[no-untyped-def]
    """`tensornet.pair_tensors` `(p, 9)` of vectors and their lengths `(p, 4)`."""
    out = np.empty((len(vectors), 9))
    for p in range(len(vectors)):
        d = vectors[p, 3]
        x, y, z = vectors[p, 0] / d, vectors[p, 1] / d, vectors[p, 2] / d
        out[p, 0] = _DIAGONAL
        out[p, 1], out[p, 2], out[p, 3] = _OTHER * x, _OTHER * y, _OTHER * z
        out[p, 4], out[p, 5], out[p, 6] = _OTHER * x * y, _OTHER * y * z, _OTHER * x * z
        out[p, 7] = (x * x - y * y) / _OTHER
        out[p, 8] = _LAST * (2 * z * z - x * x - y * y)
    return out


@_loop
def unit_vector_adjoints(vectors, of):  # type: ignore[no-untyped-def]
    """∂E/∂u `(p, 3)` of the unit vectors from ∂E/∂T `(p, 9)`."""
    out = np.empty((len(vectors), 3))
    for p in range(len(vectors)):
        d, g = vectors[p, 3], of[p]
        x, y, z = vectors[p, 0] / d, vectors[p, 1] / d, vectors[p, 2] / d
        out[p, 0] = _OTHER * (g[1] + g[4] * y + g[6] * z + g[7] * x) - 2 * _LAST * g[8] * x
        out[p, 1] = _OTHER * (g[2] + g[4] * x + g[5] * z - g[7] * y) - 2 * _LAST * g[8] * y
        out[p, 2] = _OTHER * (g[3] + g[5] * y + g[6] * x) + 4 * _LAST * g[8] * z
    return out
