"""Input scripts of LAMMPS with a line that attaches a potential."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ase_biasgrad.calculators.lammps.attachment import attach
from ase_biasgrad.calculators.lammps.launch import new_lammps

LINE = re.compile(r"^[ \t]*fix[ \t]+(\S+)[ \t]+(\S+)[ \t]+biasgrad\b(.*)$", re.MULTILINE)
EXAMPLE = "fix potential all biasgrad C H O"


@dataclass(frozen=True)
class Script:
    """An input script, cut at the line of the potential."""

    before: str
    after: str
    fix: str
    elements: list[str]


def read_script(path: str | Path) -> Script:
    """Read an input script and find its line `fix ID all biasgrad ELEMENT …`.

    Raises `ValueError` if there is no such line, or more than one.
    """
    text = Path(path).read_text(encoding="utf-8")
    lines = list(LINE.finditer(text))
    if len(lines) != 1:
        raise ValueError(
            f"{path}: has {len(lines)} lines that attach the potential; write one, such as "
            f"`{EXAMPLE}`, with the element of each atom type, behind `read_data` or the like and "
            "outside of loops"
        )
    fix, group, rest = lines[0].groups()
    number = text.count("\n", 0, lines[0].start()) + 1
    elements = rest.partition("#")[0].split()
    if group != "all":
        raise ValueError(
            f"{path}, line {number}: the potential is that of all atoms, not of group {group!r}: "
            f"write `fix {fix} all biasgrad …`"
        )
    if not elements or elements[-1] == "&":
        raise ValueError(
            f"{path}, line {number}: name the element of each atom type in this line: `{EXAMPLE}`"
        )
    return Script(text[: lines[0].start()], text[lines[0].end() :], fix, elements)


def run_script(
    script: str, checkpoints: Sequence[str], arguments: Sequence[str] = (), dtype: str = "float32"
) -> None:
    """Run an input script on the processes of this run, with the potential where it says so.

    Commands before and after the line of the potential are run as two files, so that labels and
    loops must not cross it. Several checkpoints are a committee. `arguments` are those of LAMMPS'
    command line, such as `-var T 300`.
    """
    parts = read_script(script)
    lmp = new_lammps(arguments)
    with tempfile.TemporaryDirectory(prefix="biasgrad-") as folder:
        for name, text in (("before", parts.before), ("after", parts.after)):
            file = Path(folder) / f"{name}-{Path(script).name}"
            file.write_text(text + "\n", encoding="utf-8")
            lmp.file(str(file))  # which process 0 reads
            if name == "before":
                attach(lmp, list(checkpoints), parts.elements, fix=parts.fix, dtype=dtype)
    lmp.close()
