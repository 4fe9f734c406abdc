"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA where there is one")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing output files")]
Frames = Annotated[
    str | None,
    typer.Option(help="frames to use, as a slice such as :1000 or ::10; all by default"),
]
Checkpoint = Annotated[Path, typer.Option("--checkpoint", "-c", help="*.safetensors")]
CALCULATORS = "gfn2-xtb, gfn1-xtb, ipea1-xtb, emt, …, or module:Class or module:function"
ARGUMENTS = "its keyword arguments, as JSON or name=value; may be repeated"


def made_calculator(name: str, arguments: list[str] | None) -> tuple[Calculator, dict[str, Any]]:
    """A calculator that a user names, and the keyword arguments that it was made with."""
    from ase_biasgrad.named_calculators import labelling_calculator

    keywords = keyword_arguments(arguments)
    if "" not in sys.path:
        sys.path.insert(0, "")  # module:Class may be a file in the working folder
    try:
        return labelling_calculator(name, keywords), keywords
    except TypeError as error:
        raise ValueError(f"calculator {name!r}, made with {keywords}: {error}") from error


def keyword_arguments(given: list[str] | None) -> dict[str, Any]:
    """Keyword arguments of a calculator as a user writes them."""
    keywords: dict[str, Any] = {}
    for text in given or []:
        keywords |= _keywords(text)
    return keywords


def _keywords(text: str) -> dict[str, Any]:
    """Arguments from a JSON object or one name=value, the value JSON or else a text."""
    name, equals, value = text.partition("=")
    if equals and name.isidentifier():
        try:
            return {name: json.loads(value)}
        except json.JSONDecodeError:
            return {name: value}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{text!r}: neither JSON ({error}) nor name=value") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{text!r}: must be a JSON object or name=value")
    return found
