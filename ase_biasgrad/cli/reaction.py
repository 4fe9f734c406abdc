"""`biasgrad reaction`: the energy of a reaction, with the standard error of its energy zero."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.options import ARGUMENTS, CALCULATORS, Device, made_calculator

if TYPE_CHECKING:
    from ase import Atoms

    from ase_biasgrad.bias_arrays import BiasArrays

ARROW = re.compile(r"\s*(?:<=>|->|→|=>|=)\s*")
# 3 O2, 3O2, 1/2 O2, 0.5 O2; a name that begins with a digit needs a blank after its number
TERM = re.compile(r"(?:(\d+/\d+|\d+\.?\d*|\.\d+)(?:\s+|(?=[A-Z(])))?(\S+)")
STEPS = 500


@dataclass(frozen=True)
class Species:
    """One side of a term: its name in the equation, ν (negative for what reacts), and what it is.

    `counts` is the composition by symbol, and `candidates` are structures of it by where they are
    from; there are several where isomers have the formula.
    """

    name: str
    coefficient: Fraction
    counts: dict[str, int]
    candidates: dict[str, Atoms]


def reaction(
    equation: Annotated[str, typer.Argument(help='such as "C2H6O + 3 O2 -> 2 CO2 + 3 H2O"')],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="*.safetensors")
    ] = None,
    calculator: Annotated[
        str | None, typer.Option(help=f"instead of a checkpoint, with --zero: {CALCULATORS}")
    ] = None,
    calculator_arguments: Annotated[list[str] | None, typer.Option(help=ARGUMENTS)] = None,
    zero: Annotated[
        Path | None, typer.Option(help="its bias, of `fit-bias --calculator` (*.json)")
    ] = None,
    structures: Annotated[
        list[Path] | None,
        typer.Option(
            help="file or folder of structures, known by formula or by the name of the file; may "
            "be repeated; molecules of ase.build are taken for the others"
        ),
    ] = None,
    relax: Annotated[bool, typer.Option(help="relax the structures first, but no cell")] = True,
    fmax: Annotated[float, typer.Option(help="largest force left, eV/Å")] = 0.01,
    reference: Annotated[
        str | None, typer.Option(help="reference energies of the checkpoint, by name")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compute the energy of a reaction, with its standard error.

    Ends with an error where the data of the bias does not determine the energy.
    """
    if (checkpoint is None) == (calculator is None) or (calculator is None) != (zero is None):
        raise typer.BadParameter("name a --checkpoint, or a --calculator and its --zero")
    species = _species(equation, structures or [])
    made, bias = _calculator(checkpoint, calculator, calculator_arguments, zero, reference, device)
    _check_known(species, bias)
    total = 0.0
    for each in species:
        energy, where = _lowest(each, made, fmax if relax else None)
        total += float(each.coefficient) * energy
        sign = "+" if each.coefficient > 0 else "-"
        typer.echo(f"{sign}{abs(each.coefficient)} {each.name}: {energy:.6f} eV ({where})")
    typer.echo(f"reaction energy: {_in_both(total)}")
    typer.echo(f"standard error: {_error(species, bias)}")


def _calculator(
    checkpoint: Path | None,
    name: str | None,
    arguments: list[str] | None,
    zero: Path | None,
    reference: str | None,
    device: str,
) -> tuple[Any, BiasArrays]:
    if name is not None:
        calculator, _ = made_calculator(name, arguments)  # tblite comes before torch
        from ase_biasgrad.calculators import BiasedCalculator

        if reference is not None:
            raise typer.BadParameter("--reference is for checkpoints; --zero names a bias itself")
        biased = BiasedCalculator(calculator, str(zero))
        return biased, biased.zero
    from ase_biasgrad.calculators import BiasGradCalculator

    assert checkpoint is not None
    ours = BiasGradCalculator(checkpoint, device=device, dtype="float64", reference=reference)
    return ours, ours.biases[0]


def _species(equation: str, paths: list[Path]) -> list[Species]:
    """Species of a balanced equation, with structures for each."""
    sides = ARROW.split(equation.strip())
    if len(sides) != 2 or not all(sides):
        raise ValueError(f"{equation!r}: write an equation as in 'CH4 + 2 O2 -> CO2 + 2 H2O'")
    files = _structures(paths)
    species = [
        _one(term.strip(), sign, files, equation)
        for sign, side in zip((-1, 1), sides, strict=True)
        for term in side.split("+")
    ]
    left: dict[str, Fraction] = {}
    right: dict[str, Fraction] = {}
    for each in species:
        side = left if each.coefficient < 0 else right
        for symbol, count in each.counts.items():
            side[symbol] = side.get(symbol, Fraction(0)) + abs(each.coefficient) * count
    off = [
        f"{symbol} {left.get(symbol, 0)} on the left and {right.get(symbol, 0)} on the right"
        for symbol in sorted({*left, *right})
        if left.get(symbol, 0) != right.get(symbol, 0)
    ]
    if off:
        raise ValueError(f"{equation!r} does not balance: {'; '.join(off)}")
    return species


def _one(term: str, sign: int, files: dict[str, Atoms], equation: str) -> Species:
    """One term of the equation."""
    from ase.formula import Formula

    found = TERM.fullmatch(term)
    if found is None:
        raise ValueError(
            f"{equation!r}: {term!r} is no species with its number; ions are not described"
        )
    number, name = found.groups()
    coefficient = sign * Fraction(number or 1)
    if coefficient == 0:
        raise ValueError(f"{equation!r}: {term!r} takes no part")
    named = {path: atoms for path, atoms in files.items() if Path(path).stem == name}
    if named:
        first = next(iter(named.values()))
        return Species(name, coefficient, _formula_unit(first), named)
    try:
        counts = dict(Formula(name).count())
    except ValueError as error:
        given = ", ".join(files) or "none was given"
        raise ValueError(
            f"{equation!r}: {name!r} is neither a formula nor the name of a structure ({given})"
        ) from error
    matching = {p: atoms for p, atoms in files.items() if _copies(atoms, counts)}
    candidates = matching or _built(name, counts)
    if not candidates:
        raise ValueError(
            f"{equation!r}: ase.build.molecule has no {name}; give one with --structures"
        )
    return Species(name, coefficient, counts, candidates)


def _structures(paths: list[Path]) -> dict[str, Atoms]:
    """Structures of files, and of all files of folders, by path."""
    from ase_biasgrad.data.sampling import starting_structure

    files = [
        file
        for path in paths
        for file in (sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path])
    ]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: no such structure or folder")
    return {str(file): starting_structure(str(file)) for file in files}


def _built(name: str, counts: dict[str, int]) -> dict[str, Atoms]:
    """Molecules of `ase.build` of this name, or else all of this formula."""
    from ase.build import molecule
    from ase.build.molecule import extra
    from ase.collections import g2

    known = [*g2.names, *extra]
    if name in known:
        return {name: molecule(name)}
    built = {each: molecule(each) for each in known}
    return {each: atoms for each, atoms in built.items() if _copies(atoms, counts) == 1}


def _formula_unit(atoms: Atoms) -> dict[str, int]:
    """Composition: of a molecule, or of the formula unit of a crystal."""
    formula = atoms.symbols.formula
    return dict((formula.reduce()[0] if atoms.pbc.any() else formula).count())


def _copies(atoms: Atoms, counts: dict[str, int]) -> int:
    """Times that a structure holds a composition, more than once for a crystal alone; else 0."""
    held = atoms.symbols.formula.count()
    copies = sum(held.values()) // sum(counts.values())
    if held != {symbol: copies * count for symbol, count in counts.items()}:
        return 0
    return copies if copies == 1 or atoms.pbc.any() else 0


def _check_known(species: list[Species], bias: BiasArrays) -> None:
    """Raise `ValueError` naming the species whose energy zero is not known."""
    from ase_biasgrad.neighbours import is_isolated
    from ase_biasgrad.units import counts_of

    unknown = []
    for each in species:
        alone = all(is_isolated(a.positions, a.cell.array, a.pbc) for a in each.candidates.values())
        if not bias.knows(counts_of(each.counts), alone):
            unknown.append(each.name)
    if unknown:
        raise ValueError(
            "the energy of this reaction is not determined by the data: the energy zero of "
            f"{', '.join(dict.fromkeys(unknown))} is not known. Fit the bias to data with these "
            "compositions, or with such as combine to them"
        )


def _error(species: list[Species], bias: BiasArrays) -> str:
    """Standard error of the reaction energy, with its parts.

    σ² = σ_zero² + Σ_s ν_s² noise²: the error of the bias, in which energies per element cancel, and
    that of each structure, for which stands the spread of residuals within a composition.
    """
    import numpy as np

    from ase_biasgrad.units import counts_of

    nu = np.array([float(each.coefficient) for each in species])
    _, zero = bias.reaction(np.stack([counts_of(each.counts) for each in species]), nu)
    names = [each.name for each in species]
    net = [nu[[name == other for other in names]].sum() for name in dict.fromkeys(names)]
    noise = bias.fit_report.get("noise")
    parts = {
        f"energy zero {zero:.4f} eV": zero,
        f"structures {noise or 0:.4f} eV each, as in the data of the fit": noise,
    }
    unknown = {
        "the error of the energy zero, for want of compositions": np.isnan(zero),
        "that of single structures, for want of repeated compositions": noise is None,
    }
    variance = np.nan_to_num(zero) ** 2 + float(np.square(net).sum()) * (noise or 0.0) ** 2
    told = [text for text, value in parts.items() if value is not None and not np.isnan(value)]
    if not told:
        return "the data of the fit shows none"
    missing = "; ".join(f"without {text}" for text, lacks in unknown.items() if lacks)
    return f"{_in_both(float(np.sqrt(variance)))} ({'; '.join([*told, *filter(None, [missing])])})"


def _in_both(energy: float) -> str:
    from ase import units

    return f"{energy:.4f} eV, {energy * units.mol / units.kcal:.2f} kcal/mol"


def _lowest(species: Species, calculator: Any, fmax: float | None) -> tuple[float, str]:
    """Lowest energy of the structures of a species by formula unit, and where it is from."""
    energies = {}
    for where, atoms in species.candidates.items():
        try:
            energies[where] = _energy(atoms, calculator, fmax) / (_copies(atoms, species.counts))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{species.name} ({where}): {error}") from error
    best = min(energies, key=lambda where: energies[where])
    others = [where for where in energies if where != best]
    told = f"{best}, {'as it is' if fmax is None else 'relaxed'}"
    return energies[best], told + (f"; lower than {', '.join(others)}" if others else "")


def _energy(atoms: Atoms, calculator: Any, fmax: float | None) -> float:
    from ase.optimize import LBFGS

    moving = atoms.copy()
    moving.calc = calculator
    if fmax is not None and len(moving) > 1 and not LBFGS(moving, logfile=None).run(fmax, STEPS):
        raise ValueError(
            f"not relaxed to {fmax} eV/Å in {STEPS} steps; give a relaxed structure with "
            "--structures, and --no-relax"
        )
    return float(moving.get_potential_energy())
