"""`biasgrad benchmark md`: what an MD step costs, beside SchNetPack, autograd and xTB."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.calculators.md_benchmark import Row

TITLES = {"schnet": "SchNet", "painn": "PaiNN", "tensornet": "TensorNet"}


def md(
    seconds: Annotated[float, typer.Option(min=0.1, help="for each comparison")] = 6.0,
    threads: Annotated[int, typer.Option(min=1, help="of the CPU")] = 1,
    large: Annotated[
        bool, typer.Option(help="also 1000 atoms and more, memory and start of a process")
    ] = True,
    device: Annotated[str, typer.Option(help="cpu, or cuda for both calculators")] = "cpu",
) -> None:
    """Measure MD steps, accuracy, memory and start-up, each beside another code."""
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
    print(f"\n{'whole VelocityVerlet step':52s} {'ours':>9s} {'rival':>9s}  ratio")
    on_cpu = device == "cpu"
    # on CUDA TensorNet runs by autograd, which would be its rival
    for name in TITLES if on_cpu else ("schnet", "painn"):
        backbone = bench.random_backbone(name)
        for label, atoms in bench.molecules().items():
            _row(f"{label}, {_size(backbone)}", atoms, backbone, seconds, device)
        if on_cpu:
            what, ethanol = f"ethanol, {_size(backbone)}, float64", bench.molecules()["ethanol"]
            _row(what, ethanol, backbone, seconds, dtype="float64")
        if large:
            for count in (1000,) if on_cpu else (1000, 10_000):
                _large(name, count, 3 * seconds, device, threads)
    if on_cpu:
        if xtb is not None:
            backbone = bench.random_backbone("schnet", features=64, interactions=3)
            what, ethanol = f"ethanol, {_size(backbone)}", bench.molecules()["ethanol"]
            _compare(what, ethanol, bench.calculator(backbone), ("GFN2-xTB (tblite)", xtb), seconds)
        _model_alone()
        _hessians()
    _accuracy()
    if large and on_cpu:
        _start_up()
        if sys.platform == "linux":
            _memory()


def _row(
    what: str, atoms: Atoms, backbone: Any, seconds: float, device: str = "cpu",
    dtype: str = "float32",
) -> None:  # fmt: skip
    """Our calculator beside the rival that there is for it."""
    from ase_biasgrad.calculators import md_benchmark as bench

    engine = "cpu" if device == "cpu" else "auto"
    ours = bench.calculator(backbone, device=device, dtype=dtype, engine=engine)
    _compare(what, atoms, ours, bench.rival(backbone, device, dtype), seconds)


def _large(name: str, count: int, seconds: float, device: str, threads: int) -> None:
    """Many atoms: beside the rival, with a list searched at every step, on two threads and one."""
    from ase_biasgrad.calculators import md_benchmark as bench

    backbone, atoms = bench.random_backbone(name, **bench.LARGE.get(name, {})), bench.fluid(count)
    what = f"{count} atoms, periodic, {_size(backbone)}"
    _row(what, atoms, backbone, seconds, device)
    if name == "schnet":
        anew = bench.with_fresh_lists(bench.calculator(backbone, device=device))
        rival = bench.rival(backbone, device)
        _compare(f"{what}, list anew each step", atoms, anew, rival, seconds)
    if device == "cpu" and (os.cpu_count() or 1) > 1:
        import torch

        one, two = (bench.on_threads(bench.calculator(backbone), k) for k in (1, 2))
        _compare(f"{what}, two threads", atoms, two, ("one thread", one), seconds)
        torch.set_num_threads(threads)


def _compare(
    what: str, atoms: Atoms, ours: Calculator, rival: tuple[str, Calculator], seconds: float
) -> None:
    from ase_biasgrad.calculators.md_benchmark import compared

    _print(compared(what, atoms, ours, rival, seconds))


def _print(row: Row) -> None:
    print(
        f"{row.what:52s} {row.ours:6.3f} ms {row.theirs:6.2f} ms  {row.ratio:5.1f}×  {row.rival}",
        flush=True,
    )


def _model_alone() -> None:
    from ase_biasgrad.calculators import md_benchmark as bench

    print()
    for name in ("schnet", "tensornet"):
        backbone = bench.random_backbone(name)
        for label, atoms in bench.molecules().items():
            time, floor = bench.engine_time(backbone, atoms), bench.floor(backbone, atoms)
            print(
                f"model alone, {label}, {_size(backbone)}: {time:.3f} ms, {time / floor:.1f} times "
                f"the arithmetic floor ({floor:.3f} ms at {bench.sgemm_speed() / 1e9:.0f} GFLOP/s)"
            )


def _hessians() -> None:
    from ase_biasgrad.calculators import md_benchmark as bench

    print("\nHessians in float64:")
    for name in TITLES:
        backbone = bench.random_backbone(name)
        for label, atoms in bench.molecules().items():
            _print(bench.hessians(f"{label}, {_size(backbone)}", atoms, backbone))


def _accuracy() -> None:
    from ase_biasgrad.calculators import md_benchmark as bench

    print("\nlargest force difference to autograd in float64, eV/Å (the rival's in float32):")
    for name in TITLES:
        backbone = bench.random_backbone(name, scale=1.0)
        ours, theirs = bench.force_errors(backbone, [*bench.molecules().values(), bench.fluid(64)])
        print(f"  {_size(backbone)}: {ours:.1e} ({theirs:.1e})")


def _start_up() -> None:
    """Starts that find compiled code, and one that finds none."""
    from ase_biasgrad.calculators import md_benchmark as bench
    from ase_biasgrad.calculators.start_benchmark import first_start, start_of
    from ase_biasgrad.checkpoint import save_checkpoint

    print("\na new process, from the first import to the forces on ethanol:")
    with tempfile.TemporaryDirectory() as folder:
        for name, title in TITLES.items():
            checkpoint = Path(folder) / f"{name}.safetensors"
            save_checkpoint(checkpoint, bench.potential(bench.random_backbone(name)))
            ours, theirs = start_of(checkpoint), start_of(checkpoint, "reference")
            print(
                f"  {title}: {ours.seconds:.2f} s, {ours.ratio:.2f} times the import of torch "
                f"({ours.of_torch:.2f} s), {ours.memory:.0f} MB; by autograd "
                f"{theirs.seconds:.2f} s, {theirs.memory:.0f} MB",
                flush=True,
            )
        seconds = first_start(checkpoint, Path(folder) / "cache")
    print(f"  {title}, all kernels compiled: {seconds:.1f} s")


def _memory() -> None:
    from ase_biasgrad.calculators.md_benchmark import peak_memory

    print("\nmemory of a process that evaluates energies and forces, periodic:")
    for name, title in TITLES.items():
        for count in (1000, 10_000, 100_000) if name == "schnet" else (1000, 10_000):
            ours = peak_memory(name, count)
            beside = ""
            if count == 1000:
                theirs = peak_memory(name, count, "reference")
                beside = f", {theirs / ours:.1f}× (autograd {theirs:.0f} MB)"
            print(f"  {count} atoms, {title}: {ours:.0f} MB{beside}", flush=True)


def _xtb() -> Any:
    """GFN2-xTB where tblite is installed."""
    from ase_biasgrad.named_calculators import labelling_calculator

    try:
        return labelling_calculator("gfn2-xtb")
    except ImportError:
        return None


def _size(backbone: Any) -> str:
    arguments = backbone.arguments
    return f"{TITLES[backbone.name]} {arguments['features']}×{arguments['interactions']}"
