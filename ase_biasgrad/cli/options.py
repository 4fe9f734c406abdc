"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA where there is one")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing output files")]
