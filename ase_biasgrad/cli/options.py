"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.baselines import import_from_working_folder

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA where there is one")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing output files")]
Frames = Annotated[
    str | None, typer.Option(help="frames to use, as a slice such as :1000 or ::10; all by default")
]
CheckpointFile = Annotated[Path, typer.Argument(help="checkpoint (*.safetensors)")]
Checkpoints = Annotated[
    list[Path],
    typer.Option("--checkpoint", "-c", help="checkpoint; several, one each, are a committee"),
]
Structure = Annotated[
    str, typer.Argument(help="file that ASE reads, or name of a molecule such as CH3CH2OH")
]
Dtype = Annotated[str, typer.Option(help="precision of the network: float32 or float64")]
Seed = Annotated[int, typer.Option(min=0, help="of random numbers")]
Method = Annotated[
    str,
    typer.Option(
        help="fit of the bias: auto, mean, median, efwt, least-squares, least-absolute-deviation, "
        "huber, ridge"
    ),
]
Results = Annotated[
    Path, typer.Option("--output", "-o", help="folder of results, to which every run adds")
]
CALCULATORS = "gfn2-xtb, gfn1-xtb, ipea1-xtb, emt, …, or module:Class or module:function"
ARGUMENTS = "its keyword arguments, as JSON or name=value; may be repeated"


def made_calculator(name: str, arguments: list[str] | None) -> tuple[Calculator, dict[str, Any]]:
    """A calculator that a user names, and the keyword arguments that it was made with."""
    from ase_biasgrad.named_calculators import labelling_calculator

    keywords = keyword_arguments(arguments)
    import_from_working_folder()
    return labelling_calculator(name, keywords), keywords


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


def frame_slice(text: str) -> slice:
    """A slice of frames as a user writes it."""
    from ase.io.formats import string2index

    try:
        chosen = string2index(text)
    except (ValueError, TypeError):
        chosen = text
    if not isinstance(chosen, slice):
        raise typer.BadParameter(f"--frames {text!r} is no slice such as :1000, 500: or ::10")
    return chosen


def check_writable(output: Path) -> None:
    """Refuse an output that ASE could not write, before the work and not after it."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        name = filetype(str(output), read=False)
    except UnknownFileTypeError:
        name = ""
    if name not in ioformats or not ioformats[name].can_write:
        raise typer.BadParameter(f"{output}: ASE writes no format of this name; try *.xyz or *.cif")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"{output}: the folder {output.parent} does not exist")
