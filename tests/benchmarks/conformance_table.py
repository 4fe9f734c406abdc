"""The conformance list over calculators that people use: a table of verdicts for the docs.

Each calculator runs in a process of its own and leaves a JSON file; `--page` writes the table of
all files. A calculator whose package is not installed here keeps the file that it has, so rows can
be made in several environments:

    python tests/benchmarks/conformance_table.py emt lj --results docs/conformance_results
    python tests/benchmarks/conformance_table.py --page docs/conformance.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.build import molecule

from ase_biasgrad.testing import CHECKS, Check, Subject, Verdict, verdicts_on

BEGIN, END = "<!-- verdicts -->", "<!-- end of verdicts -->"
SIGNS = {"passed": "✓", "failed": "✗", "not applicable": "–"}


# --- factories of calculators; each imports its package itself -------------------------------


def emt() -> Any:
    from ase.calculators.emt import EMT

    return EMT()


def lj() -> Any:
    from ase.calculators.lj import LennardJones

    return LennardJones()


def morse() -> Any:
    from ase.calculators.morse import MorsePotential

    return MorsePotential()


def gfn2() -> Any:
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


@cache
def _random_backbone(name: str) -> Any:
    from ase_biasgrad.calculators.md_benchmark import random_backbone

    return random_backbone(name, features=32, interactions=2, scale=1.0)


def spk() -> Any:
    import logging

    from ase_biasgrad.calculators.md_benchmark import schnetpack_calculator

    logging.getLogger("schnetpack").setLevel(logging.WARNING)
    return schnetpack_calculator(_random_backbone("schnet"))


@cache
def _mace_model() -> Any:
    import numpy as np
    import torch
    from e3nn import o3
    from mace import modules

    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = modules.ScaleShiftMACE(
            r_max=4.5,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=5,
            hidden_irreps=o3.Irreps("16x0e + 16x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(5),
            avg_num_neighbors=8.0,
            atomic_numbers=[1, 6, 7, 8, 29],
            correlation=2,
            gate=torch.nn.functional.silu,
            atomic_inter_scale=2.0,
            atomic_inter_shift=0.0,
        )
    torch.set_default_dtype(kept)
    return model


def mace() -> Any:
    from mace.calculators import MACECalculator

    return MACECalculator(models=[_mace_model()], device="cpu", default_dtype="float64")


@cache
def _chgnet_model() -> Any:
    from chgnet.model import CHGNet

    return CHGNet.load(use_device="cpu", verbose=False)


def chgnet() -> Any:
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(_chgnet_model(), use_device="cpu", on_isolated_atoms="ignore")


@cache
def _potential(name: str) -> Any:
    from ase_biasgrad import Potential

    return Potential(_random_backbone(name), elements=[1, 6, 7, 8, 29])


def biasgrad() -> Any:
    import warnings

    from ase_biasgrad import BiasGradCalculator
    from ase_biasgrad.calculators import EnergyZeroWarning

    warnings.simplefilter("ignore", EnergyZeroWarning)  # random weights have no energy zero
    return BiasGradCalculator(_potential("schnet"), device="cpu")


def biasgrad_reference() -> Any:
    import warnings

    from ase_biasgrad import BiasGradCalculator
    from ase_biasgrad.calculators import EnergyZeroWarning

    warnings.simplefilter("ignore", EnergyZeroWarning)
    potential = _potential("tensornet")
    return BiasGradCalculator(potential, device="cpu", engine="reference", dtype="float64")


# --- what is run and with what ---------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A calculator of the table."""

    title: str
    make: Callable[[], Any]
    package: str  # that must be installed
    elements: tuple[int, ...] | None = None
    note: str = ""
    structures: Sequence[Atoms] = ()


RANDOM = (1, 6, 7, 8, 29)
WATER = (molecule("H2O"), Atoms(molecule("H2O"), cell=[4.0, 4.5, 5.0], pbc=True))  # takes little
ROWS = {
    "emt": Row("EMT", emt, "ase", (1, 6, 7, 8, 13, 28, 29, 46, 47, 78, 79)),
    "lj": Row("Lennard-Jones", lj, "ase"),
    "morse": Row("Morse", morse, "ase"),
    "gfn2": Row("GFN2-xTB", gfn2, "tblite", None, "molecule and crystal of water", WATER),
    "spk": Row(
        "SpkCalculator", spk, "schnetpack", None, "a SchNet with random weights, without stress"
    ),
    "mace": Row("MACECalculator", mace, "mace-torch", RANDOM, "a small MACE with random weights"),
    "chgnet": Row("CHGNetCalculator", chgnet, "chgnet", None, "the potential of its package"),
    "biasgrad": Row("ours, `cpu`", biasgrad, "ase-biasgrad", RANDOM, "SchNet, float32"),
    "biasgrad_reference": Row(
        "ours, `reference`", biasgrad_reference, "ase-biasgrad", RANDOM, "TensorNet, float64"
    ),
}


def installed(package: str) -> bool:
    """True if the package can be used here."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return package != "ase-biasgrad" or importlib.util.find_spec("torch") is not None


def run(name: str) -> dict[str, Any]:
    """Verdicts of one calculator, with versions."""
    row = ROWS[name]
    subject = Subject(row.make, row.elements, row.structures, name=f"conformance_table:{name}")
    row.make()  # imports once for all
    found = [apart(check, subject) for check in CHECKS]
    packages = {row.package, "ase"} | ({"torch"} if "torch" in sys.modules else set())
    return {
        "title": row.title,
        "note": row.note,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in sorted(packages)},
        "verdicts": {v.check.name: [v.outcome, v.reason] for v in found},
    }


def apart(check: Check, subject: Subject) -> Verdict:
    """Verdict of a fork: some calculators end the process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, check, subject))
    child.start()
    sender.close()
    try:
        outcome, reason = receiver.recv()
    except EOFError:
        child.join()
        outcome = "failed"
        reason = f"ended the process with exit code {child.exitcode}; expected an exception at most"
    child.join()
    return Verdict(check, outcome, reason)


def _send(sender: Connection, check: Check, subject: Subject) -> None:
    (found,) = verdicts_on(subject, [check])
    sender.send((found.outcome, found.reason))


def run_in_a_process(name: str, results: Path) -> None:
    """Run one calculator and replace its file."""
    output = results / f"{name}.json"
    code = (
        "import json, sys, conformance_table as t\n"
        f"text = json.dumps(t.run({name!r}), indent=1, ensure_ascii=False)\n"
        f"open({str(output)!r}, 'w', encoding='utf-8').write(text + '\\n')\n"
    )
    path = os.pathsep.join([str(Path(__file__).resolve().parent), *filter(None, sys.path)])
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True)
    counts = _counts(json.loads(output.read_text(encoding="utf-8")))
    print(f"{name}: {counts}", flush=True)


def _counts(row: dict[str, Any]) -> str:
    outcomes = [outcome for outcome, _ in row["verdicts"].values()]
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in SIGNS)


# --- the page --------------------------------------------------------------------------------


def page(results: Path) -> str:
    """Markdown: all checks by all calculators, and the reasons of what is not passed."""
    rows = {
        name: json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ROWS
        if (results / f"{name}.json").exists()
    }
    lines = [_line(["", *(row["title"] for row in rows.values())])]
    lines.append(f"|{'---|' * (len(rows) + 1)}")
    for check in CHECKS:
        outcomes = [row["verdicts"].get(check.name, ["", ""])[0] for row in rows.values()]
        lines.append(_line([check.name.replace("_", " "), *(SIGNS.get(o, "") for o in outcomes)]))
    for row in rows.values():
        versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
        note = f"{row['note']}; " if row["note"] else ""
        lines += ["", f"### {row['title']}", "", f"{note}{versions}: {_counts(row)}.", ""]
        for name, (outcome, reason) in row["verdicts"].items():
            if outcome != "passed":
                told = reason.replace("|", "¦").replace("<", "‹").replace(">", "›")
                lines.append(f"- {SIGNS[outcome]} {name.replace('_', ' ')}: `{_plain(told)}`")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_page(path: Path, results: Path) -> None:
    """Replace what stands between the two marks of a page."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path}: has no marks {BEGIN} and {END} to write between")
    path.write_text(f"{before}{BEGIN}\n{page(results)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--results", type=Path, default=Path("docs/conformance_results"))
    parser.add_argument("--page", type=Path, help="write the table into this page")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(ROWS):
        parser.error(f"{sorted(unknown)} are not in the table; choose from {', '.join(ROWS)}")
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        if installed(ROWS[name].package):
            run_in_a_process(name, arguments.results)
        else:
            print(f"{name}: {ROWS[name].package} is not installed here; its file stays")
    if arguments.page is not None:
        write_page(arguments.page, arguments.results)


if __name__ == "__main__":
    main()
