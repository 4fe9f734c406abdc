"""`Potential`: a backbone and its bias, with forces and stress as derivatives of the energy.

This is the reference that every engine is checked against.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ase_biasgrad.backbones import BACKBONES, build_backbone
from ase_biasgrad.backbones.base import Backbone, ReadoutBackbone
from ase_biasgrad.bias import Bias
from ase_biasgrad.graph import AtomGraph, sum_per_structure
from ase_biasgrad.potential_arrays import NetworkArrays, PotentialArrays, checked_name, symmetric

PROPERTIES = ("energy", "energies", "forces", "stress")
# atoms and edges that are differentiated at once: more, and a chunk no longer fits into caches
AT_ONCE = 2000


class Potential(nn.Module):
    """E(R) = Σ_i ε_i(R) + b.

    Parameters
    ----------
    backbone
        Gives ε_i.
    bias
        Gives b from the composition; a new, unfitted one by default.
    elements
        Atomic numbers that the backbone was trained for.
    reference
        Name of the reference energies that `bias` is fitted to. Biases to others, with the same
        forces, are in `references` by name.
    """

    def __init__(
        self,
        backbone: Backbone,
        bias: Bias | None = None,
        elements: Sequence[int] = (),
        reference: str = "default",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.bias = Bias() if bias is None else bias
        self.elements = tuple(sorted({int(z) for z in elements}))
        self.reference = checked_name(reference)
        self.references = nn.ModuleDict()
        # record of the baseline to which the backbone learned the difference, if any
        self.baseline: dict[str, Any] | None = None

    @classmethod
    def from_arrays(cls, arrays: PotentialArrays) -> Potential:
        """The module of a potential on NumPy arrays, with which it shares no memory.

        It is on the CPU, in evaluation mode, and no parameter wants gradients.

        Raises
        ------
        ValueError
            If the name of a reference cannot be used.
        """
        with torch.inference_mode(False):  # what is made in it can never be differentiated
            backbone = backbone_of(arrays.network)
            own, *others = arrays.biases.items()
            potential = cls(backbone, Bias.from_arrays(own[1]), arrays.elements, own[0])
            for name, bias in others:
                potential.add_reference(name, Bias.from_arrays(bias))
            potential.baseline = arrays.baseline
            return potential.requires_grad_(False).eval()

    def arrays(self) -> PotentialArrays:
        """The same potential on NumPy arrays; what is on the CPU shares its memory."""
        biases = {name: bias.arrays() for name, bias in self.biases().items()}
        network = arrays_of(self.backbone)
        return PotentialArrays(network, self.elements, self.reference, biases, self.baseline)

    @property
    def cutoff(self) -> float:
        """Range of the edges in Å."""
        return self.backbone.cutoff

    def biases(self) -> dict[str, Bias]:
        """Biases by the names of their references, that of `bias` first."""
        return {self.reference: self.bias, **dict(self.references.items())}  # type: ignore[dict-item]

    def bias_of(self, reference: str | None = None) -> Bias:
        """Bias of a reference, by default `bias`.

        Raises
        ------
        ValueError
            If there is no reference of this name.
        """
        biases = self.biases()
        if (name := reference or self.reference) not in biases:
            raise ValueError(f"reference={name!r} is unknown; there are {', '.join(biases)}")
        return biases[name]

    def of_reference(self, reference: str | None = None) -> Potential:
        """Potential with the bias of a reference, by default `bias`; it shares the backbone.

        Errors are those of `bias_of`.
        """
        name = reference or self.reference
        other = Potential(self.backbone, self.bias_of(name), self.elements, name)
        other.baseline = self.baseline
        return other.train(self.training)

    def add_reference(self, name: str, bias: Bias) -> None:
        """Add a bias to other reference energies, in place of one of the same name.

        Raises
        ------
        ValueError
            If the name cannot be used, or is that of `bias`.
        """
        if checked_name(name) == self.reference:
            raise ValueError(f"reference={name!r} is that of the potential's own bias")
        self.references._modules[name] = bias  # not as an attribute, which might be a method

    def forward(self, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Energy of each structure `(b,)` and its parts by atom `(n,)`, float64 eV."""
        values = self._with_bias(self.backbone(graph).to(torch.float64), graph)
        return values["energy"], values["energies"]

    def evaluate(
        self,
        graph: AtomGraph,
        properties: Iterable[str] = ("energy", "forces"),
        create_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Properties of a batch by autograd.

        Parameters
        ----------
        graph
            The batch; its positions are taken as constants.
        properties
            Any of `energy (b,)` eV, `energies (n,)` eV, `forces (n, 3)` eV/Å and `stress (b, 6)`
            eV/Å³ in Voigt order xx yy zz yz xz xy, tension positive, NaN for a cell without
            volume. Without forces or stress nothing is differentiated.
        create_graph
            Keep everything differentiable in the parameters, to train on it.

        Raises
        ------
        ValueError
            On an unknown property.
        """
        wanted = set(properties)
        if unknown := wanted - set(PROPERTIES):
            raise ValueError(f"unknown properties {sorted(unknown)}; choose from {PROPERTIES}")
        with torch.set_grad_enabled(create_graph or bool(wanted & {"forces", "stress"})):
            values = self._differentiated(graph, wanted, create_graph)
            if wanted & {"energy", "energies"}:
                own = values.pop("own") if create_graph else values.pop("own").detach()
                values |= self._with_bias(own, graph)
        return {name: values[name] for name in PROPERTIES if name in wanted}

    def hessian(self, graph: AtomGraph) -> Tensor:
        """Second derivatives ∂²E/∂r∂r of a batch in its positions, `(3n, 3n)` float64 eV/Å².

        Rows and columns run over x, y, z of the first atom, of the second, and so on. They are
        exact, by autograd through the backbone in float64; the bias has none.

        Raises
        ------
        ArithmeticError
            If they are not symmetric: the backbone is not smooth at these positions.
        """
        return second_derivatives(self.backbone, graph)

    def _differentiated(
        self, graph: AtomGraph, wanted: set[str], create_graph: bool
    ) -> dict[str, Tensor]:
        """Backbone energies `own (n,)`, with forces and stress if wanted; no bias in sight."""
        if not wanted & {"forces", "stress"}:
            return {"own": self.backbone(graph).to(torch.float64)}
        strain = "stress" in wanted
        own, forces, *strain_gradient = derivatives(self.backbone, graph, strain, create_graph)
        values = {"own": own, "forces": forces}
        if strain:
            values["stress"] = voigt_stress(strain_gradient[0], graph.cell)
        return values

    def _with_bias(self, own: Tensor, graph: AtomGraph) -> dict[str, Tensor]:
        of_structures = (graph.numbers, graph.batch, graph.n_structures)
        energy = sum_per_structure(own, graph) + self.bias(*of_structures)
        return {"energy": energy, "energies": own + self.bias.per_atom(*of_structures)}


def arrays_of(backbone: Backbone) -> NetworkArrays:
    """A backbone on NumPy arrays; parameters on the CPU share their memory."""
    tensors = {key: t.detach().cpu().numpy() for key, t in backbone.state_dict().items()}
    arrays = NetworkArrays(backbone.name, backbone.arguments, tensors, float(backbone.cutoff))
    if type(backbone) in BACKBONES:
        return arrays
    return replace(arrays, module=copy.deepcopy(backbone))


def backbone_of(network: NetworkArrays) -> Backbone:
    """The module of a network on NumPy arrays, with which it shares no memory."""
    if network.module is not None:
        return copy.deepcopy(network.module).requires_grad_(False).eval()
    with torch.device("meta"):
        backbone = build_backbone(network.name, network.arguments)
    tensors = {key: torch.from_numpy(array.copy()) for key, array in network.tensors.items()}
    backbone.load_state_dict(tensors, assign=True)
    return backbone.requires_grad_(False).eval()


def derivatives(
    backbone: Backbone, graph: AtomGraph, strain: bool, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Energies by atom `(n,)`, forces `(n, 3)` and, with `strain`, ∂E/∂ε `(b, 3, 3)`, by autograd.

    `create_graph` keeps everything differentiable in the parameters.
    """
    positions = graph.positions.detach().requires_grad_()
    leaves, moved = [positions], graph.with_geometry(positions, graph.cell)
    if strain:
        leaves.append(graph.cell.new_zeros(graph.cell.shape).requires_grad_())
        moved = strained(graph, *leaves)
    own = backbone(moved).to(torch.float64)
    gradient, *of_strain = torch.autograd.grad(
        own.sum(), leaves, create_graph=create_graph, materialize_grads=True
    )
    return own, -gradient, *of_strain


def readout_derivatives(
    backbone: ReadoutBackbone, graph: AtomGraph, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies by atom `(k, n)` and forces `(k, n, 3)`, float64, with each of k other last layers.

    weights: `(k, width)` of these layers, k of at least 2.
    """
    positions = graph.positions.detach().requires_grad_()
    readouts = backbone.with_last_layer(weights)
    energies = readouts(graph.with_geometry(positions, graph.cell)).to(torch.float64).T
    forces = [
        -torch.autograd.grad(own.sum(), positions, retain_graph=True, materialize_grads=True)[0]
        for own in energies
    ]
    return energies.detach(), torch.stack(forces)


def second_derivatives(backbone: Backbone, graph: AtomGraph, strain: bool = False) -> Tensor:
    """Second derivatives of a backbone's energy in all coordinates, float64.

    Coordinates are the positions `(3n,)` in Å and, with `strain`, the strains `(6,)` of one
    structure, xx yy zz yz xz xy, a shear being 2 ε: `(3n, 3n)` or `(3n + 6, 3n + 6)` in eV over
    their units. Positions move with the strain, r' = r (1 + ε). Errors are those of
    `Potential.hessian`.
    """
    exact = copy.deepcopy(backbone).double().eval().requires_grad_(False)
    positions = graph.positions.detach()
    with torch.enable_grad():
        strains = positions.new_zeros(6 if strain else 0)
        x = torch.cat([positions.flatten(), strains]).requires_grad_()
        moved = graph.with_geometry(x[: positions.numel()].view_as(positions), graph.cell)
        if strain:
            moved = strained(moved, moved.positions, _matrix(x[-6:])[None])
        (gradient,) = torch.autograd.grad(
            exact(moved).sum(), x, create_graph=True, materialize_grads=True
        )
        rows = _vector_jacobian_products(
            gradient, x, max(1, AT_ONCE // (len(graph.numbers) + graph.edge_index.shape[1]))
        )
    return torch.from_numpy(symmetric(rows.cpu().numpy(), backbone.name)).to(rows.device)


def _vector_jacobian_products(gradient: Tensor, x: Tensor, at_once: int) -> Tensor:
    """∂gradient/∂x `(m, m)`, so many rows at a time."""
    if not gradient.requires_grad:  # of atoms without neighbours
        return torch.zeros_like(x).diag()
    directions = torch.eye(len(x), dtype=x.dtype, device=x.device).split(at_once)
    chunks = [
        torch.autograd.grad(
            gradient, x, v, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )[0]
        for v in directions
    ]
    return torch.cat(chunks)


def _matrix(voigt: Tensor) -> Tensor:
    """Strain `(3, 3)` of xx yy zz yz xz xy `(6,)`, a shear being 2 ε."""
    halves = voigt * voigt.new_tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
    return halves[torch.tensor([[0, 5, 4], [5, 1, 3], [4, 3, 2]], device=voigt.device)]


def strained(graph: AtomGraph, positions: Tensor, strain: Tensor) -> AtomGraph:
    """The batch under a symmetric strain `(b, 3, 3)`: r' = r (1 + ε), h' = h (1 + ε)."""
    symmetric = 0.5 * (strain + strain.transpose(1, 2))
    moved = positions + torch.einsum("nk,nkl->nl", positions, symmetric[graph.batch])
    return graph.with_geometry(moved, graph.cell + graph.cell @ symmetric)


def voigt_stress(strain_gradient: Tensor, cell: Tensor) -> Tensor:
    """σ = (1/V) ∂E/∂ε as `(b, 6)` in eV/Å³, order xx yy zz yz xz xy; NaN without a volume V."""
    a, b, c = cell.unbind(dim=1)
    volume = (a * torch.linalg.cross(b, c)).sum(dim=1).abs()  # (b,)
    known = volume[:, None] > 1e-12
    # a quotient with 0 or NaN would spoil the gradients of all other structures
    stress = strain_gradient / torch.where(known, volume[:, None], 1.0)[:, :, None]
    rows, columns = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]
    stress = 0.5 * (stress[:, rows, columns] + stress[:, columns, rows])
    return torch.where(known, stress, torch.nan)


def freeze_energy_shifts(potential: Potential) -> None:
    """Fold what only shifts the energy into the biases, and let it get no gradient.

    A bias then holds every constant, in float64; forces are unchanged bit for bit.
    """
    shift = potential.backbone.take_energy_shift()
    if shift:
        for bias in potential.biases().values():
            bias.per_element += shift
    for parameter in potential.backbone.energy_shifts():
        parameter.requires_grad_(False)
