"""Errors of a potential on labelled frames: one report as table, JSON and numbers to plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ase_biasgrad.bias import Bias
from ase_biasgrad.data.dataset import formula
from ase_biasgrad.files import write_whole
from ase_biasgrad.metrics import (
    EV_TO_KCAL_MOL,
    EFwT,
    EnergyRelation,
    ErrorNorms,
    centred,
    efwt,
    energy_relation,
    error_norms,
)
from ase_biasgrad.potential import Potential
from ase_biasgrad.training.evaluation.predict import largest_per_frame, predict
from ase_biasgrad.training.frames.device_frames import DeviceFrames


@dataclass(frozen=True)
class CompositionErrors:
    """Errors on the frames of one composition.

    `spread` is the standard deviation of the energy residuals: the least root mean square
    error that any bias can leave. `least_mae` is the same for the mean absolute error.
    `zero_known` says whether the bias knows this composition; else its energies are off by an
    arbitrary constant.
    """

    energy: ErrorNorms
    forces: ErrorNorms
    spread: float
    least_mae: float
    zero_known: bool = True


@dataclass(frozen=True)
class Report:
    """Errors in eV and eV/Å; everything that needs energies is None where there are none."""

    frames: int
    forces: ErrorNorms
    forces_by_element: dict[str, ErrorNorms]
    force_rms: float
    labelled: dict[str, int] = field(default_factory=dict)  # frames that have each label
    energy: ErrorNorms | None = None
    energy_per_atom: ErrorNorms | None = None
    efwt: EFwT | None = None
    relation: EnergyRelation | None = None
    by_composition: dict[str, CompositionErrors] = field(default_factory=dict)
    stress: ErrorNorms | None = None
    energy_zero: str = "none"
    seen: int | None = None  # frames seen in training, where this is known
    # what the pictures show: (reference, predicted)
    energy_pairs: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    force_pairs: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    def summary(self) -> dict[str, Any]:
        """The numbers as JSON values, None for those that are not finite."""
        numbers = asdict(replace(self, energy_pairs=None, force_pairs=None))
        del numbers["energy_pairs"], numbers["force_pairs"]
        values: dict[str, Any] = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
        return values


def evaluate(potential: Potential, frames: DeviceFrames, progress: bool = False) -> Report:
    """Compare a potential with reference labels; frames with a baseline, with it on both sides.

    Raises
    ------
    ValueError
        If the frames have no forces.
    """
    if frames.forces is None:
        raise ValueError("evaluation needs reference forces, and the data has none")
    has_stress = frames.stress is not None and bool(frames.stress.isfinite().any())
    predicted = predict(potential, frames, stress=has_stress, progress=progress)
    if frames.baseline is not None:
        predicted = predicted.plus(frames.baseline)
        frames = frames.less(frames.baseline.negative())
    assert frames.forces is not None
    reference = frames.forces.cpu().numpy()
    errors = predicted.forces - reference  # NaN where frames have no forces
    known = np.isfinite(reference).all(axis=1)
    numbers = frames.numbers.cpu().numpy()
    common: dict[str, Any] = {
        "frames": len(frames),
        "labelled": frames.labelled(),
        "forces": error_norms(errors[known]),
        "force_rms": float(np.sqrt(np.mean(reference[known] ** 2))),
        "forces_by_element": {
            chemical_symbols[z]: error_norms(errors[known & (numbers == z)])
            for z in np.unique(numbers[known])
        },
        "force_pairs": (reference[known], predicted.forces[known]),
        "energy_zero": potential.bias.zero,
    }
    if predicted.stress is not None and frames.stress is not None:
        stress = frames.stress.cpu().numpy()
        common["stress"] = error_norms((predicted.stress - stress)[np.isfinite(stress)])
    if frames.energy is None:
        return Report(**common)
    share = common["forces"].rmse / common["force_rms"] if common["force_rms"] > 0 else 0.0
    return Report(**common, **_energy_part(potential.bias, frames, predicted.energy, errors, share))


def _energy_part(
    bias: Bias,
    frames: DeviceFrames,
    predicted: np.ndarray,
    force_errors: np.ndarray,
    force_error: float,
) -> dict[str, Any]:
    assert frames.energy is not None
    labelled = np.isfinite(frames.energy.cpu().numpy())
    reference, predicted = frames.energy.cpu().numpy()[labelled], predicted[labelled]
    atom_counts = frames.atom_counts[labelled]
    compositions, group = np.unique(frames.compositions()[labelled], axis=0, return_inverse=True)
    group = group.ravel()
    errors = predicted - reference
    force_errors = force_errors[np.repeat(labelled, frames.atom_counts)]
    largest = largest_per_frame(force_errors, atom_counts)
    first = np.cumsum(frames.atom_counts) - frames.atom_counts
    assert frames.forces is not None
    both = np.isfinite(frames.forces.cpu().numpy()[first]).all(axis=1)[labelled]
    owner = np.repeat(np.where(both, group, -1), atom_counts)
    return {
        "energy": error_norms(errors),
        "energy_per_atom": error_norms(errors / atom_counts),
        "efwt": efwt(errors[both], largest[both]) if both.any() else None,
        "relation": energy_relation(reference, predicted, group, force_error),
        "by_composition": {
            formula(composition): CompositionErrors(
                error_norms(errors[group == k]),
                error_norms(force_errors[owner == k]),
                float(np.std(errors[group == k])),
                float(np.mean(np.abs(errors[group == k] - np.median(errors[group == k])))),
                bias.knows(composition),
            )
            for k, composition in enumerate(compositions)
        },
        "energy_pairs": (
            centred(reference, group),
            predicted - reference + centred(reference, group),
        ),
    }


def table(report: Report) -> str:
    """The report for a terminal, in meV and kcal/mol side by side."""
    rows = [("", "meV", "kcal/mol")]

    def add(name: str, value: float) -> None:
        rows.append((name, f"{1000 * value:.3f}", f"{value * EV_TO_KCAL_MOL:.4f}"))

    if report.energy is not None and report.energy_per_atom is not None:
        add("energy MAE", report.energy.mae)
        add("energy RMSE", report.energy.rmse)
        add("energy MAE per atom", report.energy_per_atom.mae)
    add("force MAE (per Å)", report.forces.mae)
    add("force RMSE (per Å)", report.forces.rmse)
    for element, norms in report.forces_by_element.items():
        add(f"force MAE on {element}", norms.mae)
    if report.stress is not None:
        rows.append(("stress MAE (eV/Å³)", f"{report.stress.mae:.6f}", ""))
    for name, errors in list(report.by_composition.items())[:20]:
        add(f"{name}: energy MAE", errors.energy.mae)
        add(f"{name}: least MAE of any bias", errors.least_mae)
    if len(report.by_composition) > 20:
        rows.append((f"… {len(report.by_composition) - 20} more compositions in the JSON", "", ""))
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}} {a:>14} {b:>12}".rstrip() for name, a, b in rows]
    partly = ", ".join(
        f"{name} in {n}" for name, n in report.labelled.items() if 0 < n < report.frames
    )
    heading = f"{report.frames} frames{f' ({partly})' if partly else ''}"
    lines.insert(0, f"{heading}; energy zero: {report.energy_zero}")
    if report.seen:
        lines.insert(
            1, f"seen in training: {report.seen} of these frames; the errors are flattered"
        )
    if report.efwt is not None:
        lines.append(
            f"EFwT {report.efwt.both:.3f} (energy within 0.02 eV {report.efwt.energy:.3f}, "
            f"forces within 0.03 eV/Å {report.efwt.forces:.3f})"
        )
    if unknown := [name for name, e in report.by_composition.items() if not e.zero_known]:
        lines.append(
            f"the energy zero is not known for {', '.join(unknown[:10])}"
            f"{f' and {len(unknown) - 10} more' if len(unknown) > 10 else ''}: their energies are "
            "off by arbitrary constants; fit a bias to frames of theirs (`biasgrad fit-bias`)"
        )
    if report.relation is not None:
        lines.append(
            f"E_ref on E_model: slope {report.relation.slope:.4f}, correlation "
            f"{report.relation.correlation:.4f}: {report.relation.verdict}"
        )
    return "\n".join(lines)


def save_json(report: Report, path: str | Path) -> None:
    """Write `report.summary()`, whole or not at all."""
    write_whole(path, json.dumps(report.summary(), indent=1))
