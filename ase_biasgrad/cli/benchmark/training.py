"""`biasgrad benchmark training`: the force stage beside SchNetPack's own task, or autograd."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer


def benchmark_training(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="dataset, or npz file in kcal/mol; may be repeated (default: rMD17's ethanol "
            "and aspirin, downloaded)"
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="schnet, painn, tensornet; may be repeated (default: all)"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="frames per step")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="steps in each round")] = 40,
    rounds: Annotated[
        int, typer.Option(min=1, help="repetitions of each; the best one counts")
    ] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of either")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="processes of SchNetPack's loader")] = 0,
) -> None:
    """Measure training frames per second, beside SchNetPack or autograd."""
    from ase_biasgrad.machine import hardware, versions
    from ase_biasgrad.training.benchmarks import tables, throughput

    names = backbone or list(throughput.ARCHITECTURES)
    if unknown := set(names) - set(throughput.ARCHITECTURES):
        raise ValueError(
            f"no comparison for {sorted(unknown)}; choose from {list(throughput.ARCHITECTURES)}"
        )
    typer.echo(f"{versions()}\n{hardware(device, threads)}; SchNetPack's loader: {workers} workers")
    columns = ("backbone", "data", "batch", "rival", "its frames/s", "ours, frames/s", "ratio")
    more = ("ratio in processor time", "its MB", "ours, MB", "ΔF, eV/Å")
    typer.echo(tables.head([*columns, *more]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in _datasets(data, folder):
            for kind in names:
                arguments = throughput.ARCHITECTURES[kind]
                setting = throughput.Setting(
                    str(path.resolve()),
                    kind,
                    arguments,
                    batch_size=batch_size,
                    steps=steps,
                    device=device,
                    threads=threads,
                    workers=workers,
                )
                result = throughput.compare(setting, folder, rounds)
                size = f"{kind} {arguments['features']}×{arguments['interactions']}"
                theirs, ours = result.rival, result.ours
                rival = "SchNetPack" if kind in throughput.IN_SCHNETPACK else "autograd"
                own_work = device == "cpu" and not workers  # all of it in this process
                cells = [
                    *(size, path.stem, batch_size, rival, f"{theirs.frames_per_second:.0f}"),
                    *(f"{ours.frames_per_second:.0f}", f"{result.ratio:.2f}"),
                    f"{result.processor_ratio:.2f}" if own_work else None,
                    *(f"{theirs.memory:.0f}", f"{ours.memory:.0f}"),
                    f"{result.force_difference:.0e}",
                ]
                typer.echo(tables.line(cells))


def _datasets(data: list[Path] | None, folder: Path) -> list[Path]:
    """Dataset files; what is none yet is imported into `folder`."""
    from ase_biasgrad.data.importers import ImportOptions, import_files
    from ase_biasgrad.data.sets.md17 import import_md17

    if not data:
        files = [folder / f"{molecule}.h5" for molecule in ("ethanol", "aspirin")]
        for file in files:
            import_md17(file.stem, file, revised=True)
        return files
    units = ImportOptions(energy_unit="kcal/mol", length_unit="Angstrom")
    for path in data:
        if path.suffix == ".npz":
            import_files([path], folder / f"{path.stem}.h5", units, progress=False)
    return [folder / f"{path.stem}.h5" if path.suffix == ".npz" else path for path in data]
