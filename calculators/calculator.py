"""`BiasGradCalculator`: one or several potentials as an ASE calculator."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase.calculators.calculator import (
    BaseCalculator,
    CalculationFailed,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
)
from ase.stress import full_3x3_to_voigt_6_stress
from ase.symbols import Symbols

from ase_biasgrad.bias_arrays import BiasArrays, EnergyZero
from ase_biasgrad.calculators.base import PotentialCalculator
from ase_biasgrad.calculators.baseline import added_baseline
from ase_biasgrad.calculators.checks import check_finite
from ase_biasgrad.calculators.engines.base import Evaluation, Structure
from ase_biasgrad.calculators.engines.select import select_engine
from ase_biasgrad.calculators.extrapolation import ClosePairs, Notice, RangeCheck
from ase_biasgrad.calibration import Calibration
from ase_biasgrad.committee_file import read_committee
from ase_biasgrad.composition_fit import KNOWN_WITHIN
from ase_biasgrad.lazy import required
from ase_biasgrad.machine import may_have_cuda
from ase_biasgrad.neighbours import complete_cell, is_isolated
from ase_biasgrad.potential_arrays import PotentialArrays
from ase_biasgrad.readouts import Readouts
from ase_biasgrad.training_range import TrainingRange, joined
from ase_biasgrad.units import N_ELEMENTS

if TYPE_CHECKING:
    from ase import Atoms

    from ase_biasgrad.potential import Potential

SAME_ZERO = 0.5  # eV per atom between mean reference energies; another temperature gives less
DTYPES = ("float32", "float64")


class EnergyZeroWarning(UserWarning):
    """The energy of a potential has an arbitrary zero; differences at one composition are valid."""


class BiasGradCalculator(PotentialCalculator):
    """Energy, forces and stress of a potential, or the mean of a committee.

    One evaluation gives every property, so asking for another one costs nothing. Energies are
    in eV, forces in eV/Å, stress in eV/Å³ (Voigt order xx yy zz yz xz xy, tension positive).

    `calc.results["energy_reference_std"]` is the standard error of the bias of this composition in
    eV, NaN where the data of its fit does not show one; for a committee the mean, since all members
    were fitted to the same data.

    A committee (several checkpoints, or one file of `biasgrad committee`) also leaves the standard
    deviations over its members (ddof=1, for each component) in `calc.results` as `energy_std`,
    `forces_std (n, 3)` and `stress_std (6,)`. If its file knows how errors follow from spreads,
    `energy_std` and `forces_std` are calibrated standard deviations of the error, and
    `energy_interval` and `forces_interval (n, 3)` the half widths of intervals that hold 90 % of
    the errors.

    A potential with readouts (`biasgrad committee` of a single run) has the same of energy and
    forces, at the cost of several steps. They are computed where they are asked for, by
    `calc.get_property("forces_std", atoms)` or `"energy_std"`.

    Parameters
    ----------
    checkpoint
        A checkpoint file, a committee file, a `Potential`, or a list of these (a committee).
    device
        `cpu`, `cuda`, `cuda:1`, … or `auto`: CUDA where there is one.
    dtype
        Of the networks: `float32` or `float64`. Positions, the bias and energy sums are always
        float64.
    engine
        `auto` takes `cpu`, compiled programs with written-out derivatives over sampled radial
        filters, for SchNet, PaiNN and TensorNet on a CPU, and `reference`, autograd through the
        plain backbones, for everything else, CUDA devices included. The attribute `engine` names
        the one that runs.
    skin
        Neighbour lists reach this far (Å) beyond the cutoff and are searched anew only when an
        atom could have come in. Results do not depend on it.
    strict
        Raise an error instead of a warning where the energy zero is not known, and for structures
        outside of the training range (`ExtrapolationError`).
    reference
        Reference energies that the bias leads to, one of the checkpoint's by name; by default the
        one it was trained with. Forces and stress are the same for all.
    repulsion
        Repel atoms that come closer than any of their elements did in training, which keeps them
        from collapsing where the networks know nothing. Within the training range nothing changes.
    baseline
        The calculator to which a potential with a baseline adds its results; by default it makes
        the one that its checkpoint names, where that is GFN2-xTB or another well-known one.

    Attributes
    ----------
    outside
        How the last structure is outside of the training range, None if it is inside. The first
        such structure gets an `ExtrapolationWarning`. A checkpoint that does not say what its
        training saw, or a `Potential`, is not checked.

    Raises
    ------
    ase.calculators.calculator.CalculatorSetupError
        On arguments that cannot be used.
    ase_biasgrad.checkpoint.CheckpointError
        On a file that is no checkpoint.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]
    advice = "the structure is far outside of what the potential was trained on"

    def __init__(
        self,
        checkpoint: str | Path | Potential | Sequence[str | Path | Potential],
        device: str = "auto",
        dtype: str = "float32",
        engine: str = "auto",
        skin: float = 1.0,
        strict: bool = False,
        reference: str | None = None,
        repulsion: bool = True,
        baseline: BaseCalculator | None = None,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise CalculatorSetupError(f"dtype={dtype!r} is unknown; choose from {DTYPES}")
        if not isinstance(checkpoint, (list, tuple)):
            checkpoint = [checkpoint]  # type: ignore[list-item]
        if not checkpoint:
            raise CalculatorSetupError("no checkpoint was given")
        self.sources: list[dict[str, str]] = []
        self._seen: list[TrainingRange | None] = []
        self.device = _device(device)
        self.dtype, self.skin, self.strict = dtype, float(skin), strict
        self.calibration: Calibration | None = None  # of a committee that is one file
        self._readouts: Readouts | None = None  # of a single potential
        potentials = [p for source in checkpoint for p in self._loaded(source)]
        if len(checkpoint) > 1:  # another committee than the one that was calibrated
            self.calibration, self._readouts = None, None
        self._networks = [p.network for p in potentials]
        try:
            self._engine = select_engine(self._networks, self.device, dtype, engine, self.skin)
            self.biases: list[BiasArrays] = [p.bias_of(reference) for p in potentials]
        except ValueError as error:
            raise CalculatorSetupError(str(error)) from error
        self.reference = reference or potentials[0].reference
        _check_one_zero(self.biases)
        if self.has_spreads:
            properties = [*self.implemented_properties, "energy_std", "forces_std"]
            self.implemented_properties = properties  # type: ignore[misc]
        self._cutoff = max(network.cutoff for network in self._networks)
        self.elements = set.intersection(*(set(p.elements) for p in potentials))
        self._warned = False
        self._baseline = added_baseline([p.baseline for p in potentials], baseline)
        self.repulsion, self._notice = repulsion, Notice(strict)
        self.outside: str | None = None
        self._range: RangeCheck | None = None
        if (seen := joined(self._seen)) is not None:
            self._range = RangeCheck(seen, self._cutoff, self.skin, self.elements)
        self._bias_of: tuple[tuple[bytes, bool], np.ndarray, float] | None = None

    def _loaded(self, source: str | Path | Potential) -> list[PotentialArrays]:
        if isinstance(source, (str, Path)):
            stored = read_committee(source)
            self.sources.append({"checkpoint": stored.path.name, "sha256": stored.sha256})
            self._seen += [member.training_range for member in stored.members]
            self.calibration, self._readouts = stored.calibration, stored.readouts
            return [member.potential for member in stored.members]
        from ase_biasgrad.potential import Potential

        if not isinstance(source, Potential):
            raise CalculatorSetupError(
                f"{source!r} is neither the path of a checkpoint nor a Potential"
            )
        self.sources.append({"potential": source.backbone.name})
        self._seen.append(None)
        return [copy.deepcopy(source.arrays())]

    @property
    def baseline(self) -> str | None:
        """Baseline that is added to the networks, described for messages; None if there is none."""
        return None if self._baseline is None else self._baseline.told

    @property
    def has_spreads(self) -> bool:
        """True if `energy_std` and `forces_std` can be asked for."""
        return len(self.biases) > 1 or self._readouts is not None

    @property
    def engine(self) -> str:
        """Name of the engine that runs."""
        return self._engine.name

    def _get_name(self) -> str:  # ASE's hook; the name in ASE's tables, files and databases
        return "biasgrad"

    # --- state -----------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget results and neighbour lists."""
        with self._lock:
            super().reset()
            if hasattr(self, "_engine"):
                self._engine.reset()
            if (check := getattr(self, "_range", None)) is not None:
                check.reset()

    def copy(self) -> BiasGradCalculator:
        """Another calculator without results that shares the weights, for another thread, say."""
        with self._lock:
            other = copy.copy(self)
            other.atoms, other.results, other._bias_of, other._kept = None, {}, None, None
            other._engine, other._notice = self._engine.fresh(), Notice(self.strict)
            other._range = None if self._range is None else self._range.fresh()
            other._baseline = None if self._baseline is None else self._baseline.fresh()
        return other

    def todict(self) -> dict[str, Any]:
        """Description of this calculator in JSON values."""
        return {
            "potentials": self.sources,
            "device": self.device,
            "dtype": self.dtype,
            "engine": self.engine,
            "reference": self.reference,
            "repulsion": self.repulsion,
            **({} if self._baseline is None else {"baseline": self._baseline.record}),
        }

    # --- calculation -----------------------------------------------------------------------

    def evaluated(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """Energies, and forces and stress where one of them is asked for."""
        structure = _structure(atoms)
        if len(structure.numbers) == 0:
            return self._results(structure, _nothing(len(self.biases)))
        asked = bool({"energy_std", "forces_std"} & set(properties))
        spreads = asked and self._readouts is not None
        derivatives = spreads or bool({"forces", "stress"} & set(properties))
        pairs, self.outside = self._close_pairs(structure)
        evaluation = self._engine.evaluate(structure, derivatives)
        self.outside = self.outside or self._too_large(structure, evaluation)
        results = self._results(structure, self._repelled(structure, pairs, evaluation))
        if spreads:
            results |= self._spreads(structure)
        return results if self._baseline is None else self._baseline.added(results, atoms)

    def check(self, atoms: Atoms) -> None:
        """Raise `InputError` on a structure that the potential cannot describe."""
        if not math.isfinite(atoms.cell.array.sum()):
            raise InputError(f"the cell is not finite: {atoms.cell.array.tolist()}")
        super().check(atoms)
        if atoms.pbc.any():
            try:
                complete_cell(atoms.cell.array, atoms.pbc)
            except ValueError as error:
                raise InputError(str(error)) from error

    # --- the training range ----------------------------------------------------------------

    def _close_pairs(
        self, structure: Structure, place: int | None = 0
    ) -> tuple[ClosePairs | None, str | None]:
        """Pairs closer than any in training, and how the structure is outside, which is given."""
        if self._range is None:
            return None, None
        pairs, message = self._range.outside(structure, place)
        self._notice.give(message)
        return pairs, message

    def _too_large(self, structure: Structure, evaluation: Evaluation) -> str | None:
        """Message about a force larger than those in training, which is given."""
        if self._range is None or evaluation.forces is None:
            return None
        forces = evaluation.forces
        mean = forces[0] if len(forces) == 1 else forces.mean(axis=0)
        message = self._range.too_large(structure.numbers, mean)
        self._notice.give(message)
        return message

    def _repelled(
        self, structure: Structure, pairs: ClosePairs | None, evaluation: Evaluation
    ) -> Evaluation:
        if self._range is None or pairs is None or not self.repulsion:
            return evaluation
        return self._range.repelled(structure.numbers, pairs, evaluation)

    def _results(self, structure: Structure, evaluation: Evaluation) -> dict[str, Any]:
        bias, error = self._bias_per_atom(structure)
        energies = evaluation.energies + bias  # (members, n)
        members: dict[str, np.ndarray] = {"energy": energies.sum(axis=1), "energies": energies}
        if evaluation.forces is not None:
            members["forces"] = evaluation.forces
            volume = _volume(structure.cell)
            if evaluation.strain_gradient is not None and volume > 1e-12:
                stress = evaluation.strain_gradient / volume
                members["stress"] = full_3x3_to_voigt_6_stress(stress)  # (members, 6)
        results = _single(members) if len(self.biases) == 1 else _committee(members)
        if self.calibration is not None and len(self.biases) > 1:
            self.calibration.calibrate(results, structure.numbers)
        return {**results, "energy_reference_std": error}

    def _spreads(self, structure: Structure) -> dict[str, Any]:
        """Spreads of the readouts, calibrated."""
        assert self._readouts is not None
        changes = self._engine.readouts(structure, self._readouts.weights)
        assert changes.forces is not None
        numbers = structure.numbers
        found = self._readouts.spreads(numbers, changes.energies, changes.forces)
        if self.calibration is not None:
            self.calibration.calibrate(found, numbers)
        return found

    def _bias_per_atom(self, structure: Structure) -> tuple[np.ndarray, float]:
        """Biases split over the atoms, `(members, n)`, and their standard error.

        They depend on the numbers alone.
        """
        numbers = structure.numbers
        isolated = is_isolated(structure.positions, structure.cell, structure.pbc, self._cutoff)
        key = (numbers.tobytes(), isolated)
        if self._bias_of is None or self._bias_of[0] != key:
            self._check_energy_zero(numbers, isolated)
            values = [bias.per_atom(numbers) for bias in self.biases]
            counts = np.bincount(numbers, minlength=N_ELEMENTS)[None]
            errors = [float(bias.standard_error(counts)[0]) for bias in self.biases]
            self._bias_of = (key, np.stack(values), float(np.mean(errors)))
        return self._bias_of[1:]

    def _check_energy_zero(self, numbers: np.ndarray, isolated: bool) -> None:
        counts = np.bincount(numbers, minlength=N_ELEMENTS)
        if len(numbers) == 0 or all(bias.knows(counts, isolated) for bias in self.biases):
            return
        message = unknown_zero({bias.zero for bias in self.biases}, numbers)
        if self.strict:
            raise InputError(message)
        if not self._warned:
            warnings.warn(message, EnergyZeroWarning, stacklevel=6)
            self._warned = True

    # --- second derivatives ----------------------------------------------------------------

    def get_hessian(self, atoms: Atoms, strain: bool = False) -> np.ndarray:
        """Second derivatives ∂²E/∂r∂r of the energy `(3n, 3n)` in eV/Å², exact, in float64.

        By the derivatives of the engine's forces, in float64 whatever the engine's precision; of a
        committee the mean. Constraints are not applied. The state of the calculator does not
        change. Errors are those of `calculate`. PaiNN has kinks, rounded off over some 10⁻⁴ Å, at
        sites of high symmetry: there its Hessian tells nothing of larger displacements.

        Parameters
        ----------
        atoms
            The structure. Rows and columns run over x, y, z of its first atom, of the second, …
        strain
            Add six rows and columns for the strains xx yy zz yz xz xy (a shear is 2 ε), under
            which positions and cell become r (1 + ε): ∂²E/∂r∂ε in eV/Å and ∂²E/∂ε∂ε in eV.
        """
        if self.baseline is not None:
            raise PropertyNotImplementedError(
                f"there is no exact Hessian of the baseline {self.baseline}; take finite "
                "differences of the forces (ase.vibrations, ase.phonons)"
            )
        self.check(atoms)
        s = _structure(atoms)
        if len(s.numbers) == 0:
            return np.zeros((6, 6) if strain else (0, 0))
        with self._lock:
            try:
                hessian = self._engine.second_derivatives(s, strain)
            except ArithmeticError as error:
                raise CalculationFailed(str(error)) from error
            pairs, _ = self._close_pairs(s, place=None)
            if self._range is not None and pairs is not None and self.repulsion:
                hessian = hessian + self._range.hessian(s.numbers, pairs, strain)
        check_finite({"Hessian": hessian}, len(s.numbers), self.advice)
        return hessian

    # --- many structures -------------------------------------------------------------------

    def evaluate_many(
        self, structures: Sequence[Atoms], atoms_per_batch: int = 2000
    ) -> list[dict[str, Any]]:
        """Results of many structures, in batches of about `atoms_per_batch` atoms.

        Returns for each structure what `results` would hold after a calculation of energy, forces
        and stress; a committee's spreads are among them, those of readouts are not (ask
        `get_property("forces_std", atoms)`). The state of the calculator does not change. Errors
        are those of `calculate`, and name the structure.
        """
        for k, atoms in enumerate(structures):
            try:
                self.check(atoms)
            except InputError as error:
                raise InputError(f"structure {k}: {error}") from error
        checked = [_structure(atoms) for atoms in structures]
        sizes = np.cumsum([max(1, len(s.numbers)) for s in checked]) // atoms_per_batch
        results: list[dict[str, Any]] = []
        with self._lock:
            for which in np.unique(sizes):
                batch = [s for s, b in zip(checked, sizes, strict=True) if b == which]
                results += self._results_of_batch(batch)
            if self._baseline is not None:
                for k, atoms in enumerate(structures):
                    if len(atoms):
                        results[k] = self._baseline.added(results[k], atoms)
                        check_finite(results[k], len(atoms), self.advice)
        return results

    def _results_of_batch(self, batch: list[Structure]) -> list[dict[str, Any]]:
        """Results without a baseline. What is seldom wrong is looked at for all at once first."""
        full = [s for s in batch if len(s.numbers)]
        close = [self._close_pairs(s, place)[0] for place, s in enumerate(full, start=1)]
        found = self._engine.evaluate_many(full) if full else []
        finite = self._checked_at_once(full, found) if full else True
        of_full = iter(
            (self._repelled(s, pairs, evaluation), finite and pairs is None)
            for s, pairs, evaluation in zip(full, close, found, strict=True)
        )
        results, nothing = [], _nothing(len(self.biases))
        for s in batch:
            evaluation, checked = next(of_full) if len(s.numbers) else (nothing, True)
            results.append(self._results(s, evaluation))
            if not checked:
                check_finite(results[-1], len(s.numbers), self.advice)
        return results

    def _checked_at_once(self, batch: list[Structure], found: list[Evaluation]) -> bool:
        """Tell of forces larger than those in training; True if all numbers are finite."""
        energies, forces, strain = (
            np.concatenate([getattr(each, name) for each in found], axis=1)
            for name in ("energies", "forces", "strain_gradient")
        )
        if self._range is not None:
            numbers = np.concatenate([s.numbers for s in batch])
            if self._range.too_large(numbers, forces.mean(axis=0)):
                for s, evaluation in zip(batch, found, strict=True):
                    self._too_large(s, evaluation)
        return math.isfinite(energies.sum() + forces.sum() + strain.sum())


def unknown_zero(zeros: set[EnergyZero], numbers: np.ndarray) -> str:
    """Message about atoms whose energy zero is not known."""
    reason = (
        "the bias of this potential has not been fitted (run `biasgrad fit-bias`)"
        if "none" in zeros
        else f"the {'/'.join(sorted(zeros))} bias was fitted to other compositions, or is off "
        f"by more than {KNOWN_WITHIN} eV per atom at {Symbols(numbers).get_chemical_formula()}"
    )
    return (
        f"the energy zero is not known: {reason}. Forces, stress and energy differences at "
        "one composition are valid; do not compare energies across compositions"
    )


def _structure(atoms: Atoms) -> Structure:
    numbers, positions = atoms.numbers.astype(np.int64), atoms.positions.astype(np.float64)
    return Structure(numbers, positions, atoms.cell.array.copy(), atoms.pbc.copy())


def _check_one_zero(biases: list[BiasArrays]) -> None:
    """Refuse a committee whose energies have different zeros: their mean would have none.

    Members may know different compositions, but were fitted all or none, and to the same level of
    reference energies (eV per atom) at each composition that they share.
    """
    fitted = [bias.zero != "none" for bias in biases]
    if any(fitted) and not all(fitted):
        raise CalculatorSetupError(
            f"the bias of committee member {fitted.index(False)} has not been fitted, that of "
            f"member {fitted.index(True)} has: run `biasgrad fit-bias` for all on the same data"
        )
    levels: dict[str, tuple[float, int]] = {}
    for k, bias in enumerate(biases):
        for composition, level in bias.fit_report.get("reference", {}).items():
            first, member = levels.setdefault(composition, (level, k))
            if abs(level - first) > SAME_ZERO:
                raise CalculatorSetupError(
                    f"committee members {member} and {k} have different energy zeros: they were "
                    f"fitted to {first:.3f} and {level:.3f} eV per atom at {composition}; run "
                    "`biasgrad fit-bias` for all on the same data"
                )


def _single(members: dict[str, np.ndarray]) -> dict[str, Any]:
    """Results of one potential, in arrays of their own."""
    results: dict[str, Any] = {name: values[0].copy() for name, values in members.items()}
    results["energy"] = results["free_energy"] = float(results["energy"])
    return results


def _committee(members: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over the members, and the spreads of what is compared among them."""
    results: dict[str, Any] = {
        name: np.array(values.mean(axis=0), order="C") for name, values in members.items()
    }
    results["energy"] = results["free_energy"] = float(results["energy"])
    for name in ("energy", "forces", "stress"):
        if name in members:
            results[f"{name}_std"] = np.std(members[name], axis=0, ddof=1)
    results["energy_std"] = float(results["energy_std"])
    return results


def _volume(cell: np.ndarray) -> float:
    return float(abs(np.linalg.det(cell))) if cell.any() else 0.0


def _nothing(members: int) -> Evaluation:
    return Evaluation(np.zeros((members, 0)), np.zeros((members, 0, 3)), np.zeros((members, 3, 3)))


def _device(name: str) -> str:
    if name == "cpu" or (name == "auto" and not may_have_cuda()):
        return "cpu"
    if name == "auto":
        return "cuda" if _has_cuda() else "cpu"
    torch = required("torch", f"device={name!r}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CalculatorSetupError(f"device={name!r} is unknown: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CalculatorSetupError(f"device={name!r}: this torch sees no CUDA device; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CalculatorSetupError(
            f"device={name!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0"
        )
    if device.type not in ("cpu", "cuda"):
        raise CalculatorSetupError(f"device={name!r} has no float64; use cpu or cuda")
    return str(device)


def _has_cuda() -> bool:
    try:
        import torch
    except ModuleNotFoundError:  # the CPU engine runs without
        return False
    return bool(torch.cuda.is_available())
