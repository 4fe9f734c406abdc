"""A potential as the force of a LAMMPS instance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.data import atomic_masses, chemical_symbols

if TYPE_CHECKING:
    from ase_biasgrad.calculators.lammps.force import LammpsForce
    from ase_biasgrad.potential import Potential

SAME_MASS = 0.05  # relative
RUNNING = ("command", "commands_list", "commands_string", "file")


def attach(
    lmp: Any,
    checkpoint: str | Path | Potential | Sequence[str | Path | Potential],
    elements: Sequence[str],
    *,
    fix: str = "biasgrad",
    dtype: str = "float32",
    skin: float = 0.5,
    reference: str | None = None,
) -> LammpsForce:
    """Make a potential a force of a LAMMPS instance, on as many processes as that has.

    It is a `fix external`, which adds energy, forces, virial and per-atom energies to those of
    pair styles, if there are any. Commands of the instance raise what the potential cannot
    describe. The potential has neighbour lists of its own, and its processes tell each other of
    their atoms, so that no setting of LAMMPS (`neighbor`, `comm_modify cutoff`) can be too short.

    Parameters
    ----------
    lmp
        `lammps.lammps`, with a box in units `metal`.
    checkpoint
        A checkpoint file, a `Potential`, or a list of these (a committee) of SchNet, PaiNN or
        TensorNet.
    elements
        Symbol of each atom type, in order.
    fix
        Name of the fix: `f_NAME` is its energy, and `unfix NAME` takes it away.
    dtype
        Of the networks, `float32` or `float64`.
    skin
        Å beyond the cutoff that the potential's neighbour lists reach; results do not depend on it.
    reference
        Reference energies that the bias leads to, one of the checkpoint's by name.

    Raises
    ------
    ValueError
        If units, types or elements do not fit the potential.
    ase.calculators.calculator.CalculatorSetupError, ase_biasgrad.checkpoint.CheckpointError
        As for `BiasGradCalculator`.
    """
    from ase_biasgrad.calculators.calculator import BiasGradCalculator
    from ase_biasgrad.calculators.lammps.force import LammpsForce

    if not skin > 0:
        raise ValueError(f"skin is {skin:g} Å: it must be positive")
    numbers = _checked(lmp, elements)
    calculator = BiasGradCalculator(
        checkpoint, device="cpu", dtype=dtype, engine="cpu", reference=reference
    )
    if calculator.baseline is not None:
        raise ValueError(f"LAMMPS runs no baseline: the potential needs {calculator.baseline}")
    if unknown := [chemical_symbols[z] for z in numbers if z not in calculator.elements]:
        known = [chemical_symbols[z] for z in sorted(calculator.elements)]
        raise ValueError(f"the potential does not know {unknown}; it was trained for {known}")
    force = LammpsForce(lmp, fix, calculator, numbers, skin)
    lines = [f"fix {fix} all external pf/callback 1 1", f"fix_modify {fix} energy yes virial yes"]
    if lmp.extract_global("pair_style") == "none":  # else LAMMPS warns of what it need not do
        lines += [f"comm_modify cutoff {force.cutoff!r}", "atom_modify sort 0 0.0"]
    for line in lines:
        lmp.command(line)
    if force.members > 1:
        lmp.fix_external_set_vector_length(fix, 2)
    lmp.set_fix_external_callback(fix, force, None)
    for name in RUNNING:
        setattr(lmp, name, _raising(getattr(lmp, name), force))
    return force


def _raising(method: Callable[..., Any], force: LammpsForce) -> Callable[..., Any]:
    """A method that raises what the force could not do during it; LAMMPS knows no way."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        result = method(*arguments, **keywords)
        force.raise_error()
        return result

    return run


def _checked(lmp: Any, elements: Sequence[str]) -> list[int]:
    """Atomic numbers of the types of an instance that a potential can be attached to."""
    numbers = []
    for symbol in elements:
        if symbol not in chemical_symbols[1:]:
            raise ValueError(f"{symbol!r} is not an element; name one for each atom type, in order")
        numbers.append(chemical_symbols.index(symbol))
    units = lmp.extract_global("units")
    if units != "metal":
        raise ValueError(f"the units are {units!r}; potentials need `units metal` (eV, Å, ps)")
    if not lmp.extract_setting("box_exist"):
        raise ValueError("there is no box yet; attach the potential after `read_data` or the like")
    types = lmp.extract_setting("ntypes")
    if types != len(numbers):
        raise ValueError(
            f"there are {types} atom types and {len(numbers)} elements, {' '.join(elements)}; "
            "name one for each type, in order"
        )
    if lmp.extract_setting("kokkos_active"):
        raise ValueError("KOKKOS is active; potentials run on CPUs: start LAMMPS without it")
    if not lmp.extract_setting("tag_enable"):
        raise ValueError("atoms have no ids; leave out `atom_modify id no`")
    _check_masses(lmp, numbers)
    return numbers


def _check_masses(lmp: Any, numbers: Sequence[int]) -> None:
    """Refuse elements in another order than that of the masses."""
    masses = lmp.extract_atom("mass")
    if not masses:
        return
    for k, z in enumerate(numbers, start=1):
        likely = [
            other for other in numbers if abs(masses[k] / atomic_masses[other] - 1) < SAME_MASS
        ]
        if likely and z not in likely:
            raise ValueError(
                f"atom type {k} is named {chemical_symbols[z]} and has the mass of "
                f"{chemical_symbols[likely[0]]}, {masses[k]:g} u; name elements in order of types"
            )
