"""SchNetPack's models as potentials of ours and back, energies and forces unchanged."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ase_biasgrad.backbones import PaiNN, SchNet
from ase_biasgrad.backbones.schnetpack import SchNetPackBackbone
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.units import energy_unit, length_unit


class ConversionError(ValueError):
    """A model that cannot be brought in exactly; the message says which part of it."""


def convert_schnetpack(
    model: str | Path | nn.Module, energy: str, length: str = "Angstrom"
) -> Potential:
    """A SchNetPack model (SchNet or PaiNN with an atomwise energy) as a `Potential`.

    Atomic references and mean energies that the model adds after training become the bias.
    Reading a file runs code that it contains: read only files that you trust.

    Parameters
    ----------
    model
        Model file as SchNetPack saves it, or the model itself.
    energy, length
        Units that the model works in.

    Raises
    ------
    ConversionError
        If the model has parts that have no exact counterpart here.
    """
    if length_unit(length) != 1.0:
        raise ConversionError(
            f"the model works in {length}; only models in Angstrom can be brought in"
        )
    if not isinstance(model, nn.Module):
        import_schnetpack()
        try:
            model = torch.load(model, map_location="cpu", weights_only=False)
        except Exception as error:
            raise ConversionError(
                f"{model}: cannot be read as a SchNetPack model: {error}"
            ) from error
    assert isinstance(model, nn.Module)
    factor = energy_unit(energy)
    backbone = _backbone(model, factor)
    elements = _elements(model)
    potential = Potential(backbone.eval().requires_grad_(False), elements=elements)
    freeze_energy_shifts(potential)
    _add_offsets(model, potential, factor)
    return potential


def _backbone(model: Any, factor: float) -> SchNetPackBackbone:
    import schnetpack.atomistic as atomistic
    import schnetpack.nn as spk
    import schnetpack.representation as representations

    representation = model.representation
    kinds = {representations.SchNet: SchNet, representations.PaiNN: PaiNN}
    if type(representation) not in kinds:
        raise ConversionError(
            f"its representation is {type(representation).__name__}; SchNet and PaiNN come in"
        )
    if len(getattr(representation, "electronic_embeddings", [])):
        raise ConversionError("it has electronic embeddings (charge or spin), which have no place")
    heads = [m for m in model.output_modules if isinstance(m, atomistic.Atomwise)]
    others = [
        type(m).__name__
        for m in model.output_modules
        if not isinstance(m, (atomistic.Atomwise, atomistic.Forces))
    ]
    if len(heads) != 1 or others or heads[0].aggregation_mode != "sum":
        raise ConversionError(
            f"its outputs are {[type(m).__name__ for m in model.output_modules]}; one Atomwise "
            "energy that is summed, and Forces, come in"
        )
    radial, envelope = representation.radial_basis, representation.cutoff_fn
    bases = {spk.GaussianRBF: "gaussian", spk.BesselRBF: "bessel"}
    envelopes = {spk.CosineCutoff: "cosine", spk.MollifierCutoff: "mollifier"}
    if type(radial) not in bases or type(envelope) not in envelopes:
        raise ConversionError(
            f"its radial basis and cutoff are {type(radial).__name__} and {type(envelope).__name__}"
        )
    readout = heads[0].outnet
    backbone = kinds[type(representation)](
        features=representation.n_atom_basis,
        interactions=len(representation.interactions),
        cutoff=float(envelope.cutoff),
        radial_functions=radial.n_rbf,
        radial_basis=bases[type(radial)],
        cutoff_function=envelopes[type(envelope)],
        readout_layers=len(readout),
        scale=factor,
    )
    try:
        backbone.representation.load_state_dict(representation.state_dict())
        backbone.readout.load_state_dict(readout.state_dict())
    except RuntimeError as error:
        raise ConversionError(
            f"its layers differ from those of {backbone.name}: {error}"
        ) from error
    return backbone


def _elements(model: Any) -> list[int]:
    """Elements that the model can be asked about: SchNetPack does not record its training set."""
    embedding = model.representation.embedding
    count = getattr(embedding, "num_embeddings", None)
    if count is None:
        raise ConversionError(f"its embedding is {type(embedding).__name__}, expected a table")
    return list(range(1, count))


def _add_offsets(model: Any, potential: Potential, factor: float) -> None:
    """Energies per atom that SchNetPack's AddOffsets adds after the network."""
    for transform in model.postprocessors:
        name = type(transform).__name__
        if name in ("CastTo64", "CastTo32"):
            continue
        if name != "AddOffsets" or not transform.is_extensive:
            raise ConversionError(f"its postprocessor {name} has no counterpart here")
        mean = float(transform.mean) if transform.add_mean else 0.0
        reference = transform.atomref if transform.add_atomrefs else torch.zeros(1)
        energies = {
            z: factor * (mean + (float(reference[z]) if z < len(reference) else 0.0))
            for z in potential.elements
        }
        potential.bias.add_per_element(energies)


def schnetpack_model(backbone: SchNetPackBackbone) -> nn.Module:
    """The same network as a SchNetPack model with forces, on weights of its own; energies in eV."""
    import_schnetpack()
    import schnetpack as spk
    import schnetpack.nn as layers

    options = backbone.arguments
    radial = {"gaussian": layers.GaussianRBF, "bessel": layers.BesselRBF}[options["radial_basis"]]
    envelope = {"cosine": layers.CosineCutoff, "mollifier": layers.MollifierCutoff}
    kind = {"schnet": spk.representation.SchNet, "painn": spk.representation.PaiNN}[backbone.name]
    representation = kind(
        n_atom_basis=options["features"],
        n_interactions=options["interactions"],
        radial_basis=radial(options["radial_functions"], cutoff=backbone.cutoff),
        cutoff_fn=envelope[options["cutoff_function"]](backbone.cutoff),
    )
    dtype = backbone.readout[-1].weight.dtype
    representation.to(dtype).load_state_dict(backbone.representation.state_dict())
    readout = spk.atomistic.Atomwise(
        n_in=options["features"], output_key="energy", n_layers=options["readout_layers"]
    )
    readout.to(dtype).outnet.load_state_dict(backbone.readout.state_dict())
    with torch.no_grad():  # its readout has no energy unit of its own
        readout.outnet[-1].weight *= backbone.scale
        readout.outnet[-1].bias *= backbone.scale
    return spk.model.NeuralNetworkPotential(
        representation=representation,
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[readout, spk.atomistic.Forces()],
    )


def import_schnetpack() -> None:
    """Import SchNetPack, and undo what its import does to the process.

    SchNetPack 2.1 sets up the root logger, and Lightning, which it loads, an environment variable.
    """
    if "schnetpack" in sys.modules:
        return
    root, environment = logging.getLogger(), dict(os.environ)
    handlers, level = list(root.handlers), root.level
    try:
        import schnetpack  # noqa: F401 (for its side effects, here and not later)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
