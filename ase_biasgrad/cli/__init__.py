"""The command line: `biasgrad …`. Commands import what they need when they run."""

from __future__ import annotations

import codecs
import sys
import warnings
from typing import Any

import typer

from ase_biasgrad.cli import (
    benchmark,
    bias,
    committee,
    data,
    ipi,
    lammps,
    learn,
    levels,
    md,
    potential,
    predict,
    reaction,
    relax,
    train,
)
from ase_biasgrad.cli.baselines import load_tblite_before_torch

app = typer.Typer(
    help="Interatomic potentials trained on forces, given their energy by a bias, run in ASE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data", help="Make, import and look at datasets.")
app.add_typer(benchmark.app, name="benchmark", help="Measure on your own machine, in tables.")
app.command("train")(train.train)
app.command("learn")(learn.learn)
app.command("fit-bias")(bias.fit_bias)
app.command("rebias")(bias.rebias)
app.command("compare-levels")(levels.compare_levels)
app.command("convert-energies")(bias.convert_energies)
app.command("committee")(committee.committee)
app.command("reaction")(reaction.reaction)
app.command("evaluate")(potential.evaluate)
app.command("convert")(potential.convert)
app.command("info")(potential.info)
app.command("predict")(predict.predict)
app.command("relax")(relax.relax)
app.command("md")(md.md)
app.command("ipi")(ipi.ipi)
app.command("lammps")(lammps.lammps)
app.command("lammps-data")(lammps.lammps_data)


# for terminals and pipes whose encoding lacks the field's signs
PLAIN = {"→": "->", "√": "sqrt", "Å": "A", "×": "x", "±": "+-", "–": "-", "…": "...", "∞": "inf"}
PLAIN |= {"α": "alpha", "ε": "epsilon", "μ": "mu", "Σ": "sum", "²": "2", "³": "3", "⁻": "-"}


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in text), error.end


codecs.register_error("biasgrad", _in_plain_letters)


_format = warnings.formatwarning


def _in_one_line(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
    """Say what a user should know without the place in the code."""
    if category is UserWarning:
        return f"biasgrad: {message}\n"
    return _format(message, category, *where, **line)


def main() -> None:
    """Entry point: errors that a user can cause end in one message and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="biasgrad")
    warnings.formatwarning = _in_one_line
    load_tblite_before_torch(sys.argv[1:])
    try:
        app()
    except ModuleNotFoundError as error:
        print(
            f"biasgrad: this command needs the package {error.name}, which is not installed; "
            "`pip install ase-biasgrad` installs everything",
            file=sys.stderr,
        )
        sys.exit(1)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"biasgrad: {error}", file=sys.stderr)
        sys.exit(1)
