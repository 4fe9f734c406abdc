"""Bias stage: fit b on energy residuals, in float64, with the forces left alone."""

from __future__ import annotations

from typing import cast, get_args

import numpy as np

from ase_biasgrad.bias import Bias, BiasMethod
from ase_biasgrad.bias_fits import row_space
from ase_biasgrad.composition_fit import Anchors, formula_units
from ase_biasgrad.data.dataset import formula
from ase_biasgrad.metrics import forces_within
from ase_biasgrad.potential import Potential, freeze_energy_shifts
from ase_biasgrad.training.evaluation.predict import largest_per_frame, predict
from ase_biasgrad.training.frames.device_frames import DeviceFrames


def fit_bias(
    potential: Potential,
    frames: DeviceFrames,
    method: BiasMethod | str = "auto",
    anchors: Anchors | None = None,
) -> np.ndarray:
    """Fit the bias of `potential` in place; return the energy residuals left, `(k,)` eV.

    Frames without an energy are left out, here and in what is returned. Atoms without neighbours
    are no data of the fit: they fix the energies of elements that the other frames leave open.

    Parameters
    ----------
    method
        One of `BiasMethod`, or `auto`: `mean` for one composition, `least-squares` over elements
        for several, `ridge` with a prior. The fit's report says `why`.
    anchors
        Energies b known from elsewhere, exactly or as a prior.

    Raises
    ------
    ValueError
        If no frame has an energy, or the method is unknown.
    """
    _check_method(method)
    energies = np.array([]) if frames.energy is None else frames.energy.cpu().numpy()
    labelled = np.isfinite(energies)
    if not labelled.any():
        raise ValueError("the bias stage needs reference energies, and the data has none")
    freeze_energy_shifts(potential)
    predictions = predict(potential, frames)
    counts, isolated = frames.compositions(), isolated_atoms(frames)
    residuals = energies - (predictions.energy - potential.bias.arrays()(counts))
    within = None
    if method == "efwt" and frames.forces is not None:
        errors = predictions.forces - frames.forces.cpu().numpy()
        within = forces_within(largest_per_frame(errors, frames.atom_counts))[labelled]
    fit_residuals(
        potential.bias,
        energies[labelled],
        residuals[labelled],
        counts[labelled],
        isolated[labelled],
        method,
        within,
        anchors,
    )
    return (residuals - potential.bias.arrays()(counts))[labelled]


def fit_residuals(
    bias: Bias,
    energies: np.ndarray,
    residuals: np.ndarray,
    counts: np.ndarray,
    isolated: np.ndarray,
    method: BiasMethod | str = "auto",
    forces_within: np.ndarray | None = None,
    anchors: Anchors | None = None,
) -> None:
    """Fit `bias` to r = E_ref − E_model, `(m,)` eV, of frames with energies E_ref `(m,)`.

    The rest is as in `Bias.fit`, and `method` as in `fit_bias`.
    """
    chosen, why = chosen_method(method, counts, isolated, anchors)
    bias.fit(residuals, counts, chosen, forces_within, isolated, anchors)
    bias.fit_report |= {"reference": reference_levels(energies, counts), **why}


def chosen_method(
    method: BiasMethod | str,
    counts: np.ndarray,
    isolated: np.ndarray,
    anchors: Anchors | None = None,
) -> tuple[BiasMethod, dict[str, str]]:
    """The method, and the part of a fit's report that says why `auto` means it for these data."""
    _check_method(method)
    if method != "auto":
        return cast(BiasMethod, method), {}
    chosen, why = automatic(counts[~isolated] if (~isolated).any() else counts, anchors)
    return chosen, {"why": why}


def automatic(counts: np.ndarray, anchors: Anchors | None = None) -> tuple[BiasMethod, str]:
    """Method for data of compositions `(m, N_ELEMENTS)`, and one line that says why."""
    rows = np.unique(counts[:, counts.any(axis=0)], axis=0)
    k, e, rank = len(rows), rows.shape[1], len(row_space(rows))
    if anchors is not None and (anchors.deviations > 0).any():
        return "ridge", f"ridge: anchors with deviations are a prior beside {k} compositions"
    if len(np.unique(formula_units(rows)[0], axis=0)) == 1:
        return "mean", f"mean: all {len(counts)} frames have one composition, or multiples of it"
    spare = f"{k - rank} to spare for errors" if k > rank else "none to spare for errors of others"
    return "least-squares", (
        f"least-squares: {k} compositions determine {rank} of {e} energies per element, {spare}"
    )


def _check_method(method: str) -> None:
    if method not in (methods := ("auto", *get_args(BiasMethod))):
        raise ValueError(f"bias method {method!r} is unknown; choose from {', '.join(methods)}")


def isolated_atoms(frames: DeviceFrames) -> np.ndarray:
    """Frames of one atom without neighbours, `(m,)` bool; a crystal's cell of one atom has some."""
    isolated = frames.atom_counts == 1
    places = np.flatnonzero(isolated)
    if len(places):
        centres = frames.batch(places).graph.edge_index[0].cpu().numpy()
        isolated[places[np.unique(centres)]] = False
    return isolated


def reference_levels(energies: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Mean reference energy of each composition in eV per atom, by formula."""
    compositions, owner = np.unique(counts, axis=0, return_inverse=True)
    sums = np.bincount(owner.ravel(), weights=energies) / np.bincount(owner.ravel())
    return {
        formula(composition): round(float(level / composition.sum()), 6)
        for composition, level in zip(compositions, sums, strict=True)
    }
