"""`biasgrad benchmark md`: what an MD step costs here, beside SchNetPack's and xTB's."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ase_biasgrad.calculators.md_benchmark import Row


def md(
    seconds: Annotated[float, typer.Option(min=0.1, help="for each comparison")] = 6.0,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU")] = 1,
    large: Annotated[bool, typer.Option(help="also 1000 atoms, and memory up to 100 000")] = True,
    device: Annotated[str, typer.Option(help="cpu, or cuda for both calculators")] = "cpu",
) -> None:
    """Whole MD steps, accuracy and memory of the fused engines, in one table."""
    xtb = _xtb()  # before torch: on Python 3.11 tblite does not load after it
    import logging
    import warnings

    import torch

    from ase_biasgrad.calculators import md_benchmark as bench
    from ase_biasgrad.calculators.calculator import EnergyZeroWarning
    from ase_biasgrad.machine import hardware, versions

    # random weights have no energy zero; what SchNetPack's calculator says helps no one here
    warnings.simplefilter("ignore", EnergyZeroWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("schnetpack").setLevel(logging.WARNING)

    torch.set_num_threads(threads)
    print(f"{versions()}\n{hardware(device, threads)}")
    _print_header()
    for name in bench.SIZES:
        backbone = bench.random_backbone(name)
        for label, atoms in bench.molecules().items():
            ours = bench.calculator(backbone, device=device, engine=device.partition(":")[0])
            rival = "SpkCalculator", bench.schnetpack_calculator(backbone, device)
            what = f"{label}, {_size(name, backbone.arguments)}"
            _print_row(bench.compared(what, atoms, ours, rival, seconds))
    if large:
        for atoms_count in (1000,) if device == "cpu" else (1000, 10_000):
            _large(bench, atoms_count, seconds, device)
    if device == "cpu":
        if xtb is not None:
            ours = bench.calculator(bench.random_backbone("schnet", features=64, interactions=3))
            ethanol = bench.molecules()["ethanol"]
            what = "ethanol, SchNet 64×3"
            _print_row(bench.compared(what, ethanol, ours, ("GFN2-xTB (tblite)", xtb), seconds))
        _tensornet(bench, seconds)
        _model_alone(bench)
    _accuracy(bench)
    if large and device == "cpu" and sys.platform == "linux":
        _memory()


def _large(bench, count: int, seconds: float, device: str) -> None:  # type: ignore[no-untyped-def]
    backbone = bench.random_backbone("schnet", interactions=3)
    atoms = bench.fluid(count)
    rival = "SpkCalculator", bench.schnetpack_calculator(backbone, device)
    what = f"{count} atoms, periodic, SchNet 128×3"
    ours = bench.calculator(backbone, device=device, engine=device.partition(":")[0])
    _print_row(bench.compared(what, atoms, ours, rival, 3 * seconds))
    anew = bench.with_fresh_lists(
        bench.calculator(backbone, device=device, engine=device.partition(":")[0])
    )
    _print_row(bench.compared(f"{what}, list anew each step", atoms, anew, rival, 3 * seconds))


def _tensornet(bench, seconds: float) -> None:  # type: ignore[no-untyped-def]
    for label, atoms in {**bench.molecules(), "108 atoms, periodic": bench.fluid(108)}.items():
        ours, rival = (
            bench.calculator(bench.random_backbone("tensornet"), engine=engine)
            for engine in ("cpu", "reference")
        )
        what = f"{label}, TensorNet 64×2"
        _print_row(bench.compared(what, atoms, ours, ("autograd", rival), seconds))


def _model_alone(bench) -> None:  # type: ignore[no-untyped-def]
    print()
    for label, atoms in bench.molecules().items():
        backbone = bench.random_backbone("schnet")
        time, floor = bench.engine_time(backbone, atoms), bench.floor_of_schnet(backbone, atoms)
        print(
            f"model alone, {label}, SchNet 128×6: {time:.3f} ms, {time / floor:.1f} times the "
            f"arithmetic floor ({floor:.3f} ms at {bench.sgemm_speed() / 1e9:.0f} GFLOP/s)"
        )


def _accuracy(bench) -> None:  # type: ignore[no-untyped-def]
    print("\nlargest force difference to autograd in float64, eV/Å (SpkCalculator in float32):")
    for name in bench.SIZES:
        backbone = bench.random_backbone(name, scale=1.0)
        ours, theirs = bench.force_errors(backbone, [*bench.molecules().values(), bench.fluid(64)])
        print(f"  {_size(name, backbone.arguments)}: {ours:.1e} ({theirs:.1e})")


def _memory() -> None:
    print("\nmemory of a process that evaluates energies and forces, SchNet 128×3, periodic:")
    for count in (1000, 10_000, 100_000):
        code = (
            "from ase_biasgrad.calculators.md_benchmark import peak_memory;"
            f"print(peak_memory('schnet', {count}))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{count} atoms: {done.stderr.strip().splitlines()[-1]}")
        print(f"  {count} atoms: {float(done.stdout):.0f} MB")


def _xtb():  # type: ignore[no-untyped-def]
    """GFN2-xTB where tblite is installed."""
    from ase_biasgrad.data.sampling import labelling_calculator

    try:
        return labelling_calculator("gfn2-xtb")
    except ImportError:
        return None


def _size(name: str, arguments: dict[str, object]) -> str:
    title = {"schnet": "SchNet", "painn": "PaiNN"}[name]
    return f"{title} {arguments['features']}×{arguments['interactions']}"


def _print_header() -> None:
    print(f"\n{'whole VelocityVerlet step':52s} {'ours':>9s} {'rival':>9s}  ratio")


def _print_row(row: Row) -> None:
    print(
        f"{row.what:52s} {row.ours:6.3f} ms {row.theirs:6.2f} ms  {row.ratio:5.1f}×  {row.rival}",
        flush=True,
    )
