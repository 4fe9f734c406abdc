"""`biasgrad train`: a configuration in, a checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_biasgrad.cli.baselines import import_from_working_folder

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.training.config import TeacherOptions


def train(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file with options; see --options")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="options that override it: force_stage.epochs=50 …")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="run folder")] = Path("run"),
    resume: Annotated[
        Path | None, typer.Option(help="continue the interrupted run in this folder")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="start from the network of this checkpoint (fine-tuning)"),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="learn from the forces of this checkpoint, of several (a committee), or of a "
            "calculator by name, on frames that are made with it"
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="train for this time, with a schedule that fits into it")
    ] = None,
    options: Annotated[
        bool, typer.Option("--options", help="print every option with its default and meaning")
    ] = False,
) -> None:
    """Train a potential: the force stage, then the bias stage."""
    from ase_biasgrad.training.config import describe_options, load_config

    if options:
        typer.echo(describe_options(), nl=False)
        return
    if (config is None) == (resume is None):
        raise typer.BadParameter("name either a configuration or --resume RUN")
    import_from_working_folder()  # of a baseline that is module:Class
    from ase_biasgrad.training import run
    from ase_biasgrad.training.evaluation.evaluate import table

    try:
        if resume is not None:
            folder, result = resume, run.resume(resume)
        else:
            assert config is not None
            given = {
                "fine_tuning.checkpoint": None if from_ is None else str(from_),
                "force_stage.max_minutes": minutes,
                "teacher.names": teacher or None,
            }
            more = {name: value for name, value in given.items() if value is not None}
            options_used = load_config(config, overrides or [], more)
            of_teacher = _teacher(options_used.teacher)
            folder, result = output, run.train(options_used, output, of_teacher)
    except KeyboardInterrupt:
        go_on = f"biasgrad train --resume {resume or output}"
        if resume is None and not (output / "config.yaml").exists():  # in labels of a baseline
            go_on = "the same command"
        typer.echo(f"interrupted; go on with: {go_on}", err=True)
        raise typer.Exit(130) from None
    if result.out_of_time_after is not None:
        typer.echo(
            "trainer.max_time ended the force stage after "
            f"{result.out_of_time_after} epochs; go on for as long again with: "
            f"biasgrad train --resume {folder}"
        )
    typer.echo("validation frames, which chose the best epoch\n" + table(result.after_bias))
    if result.test is not None:
        typer.echo("test frames, which chose nothing\n" + table(result.test))
    reports = ("report", "test") if result.test is not None else ("report",)
    if result.levels is not None:
        from ase_biasgrad.cli.levels import told

        typer.echo("levels of theory, a reference for each\n" + "\n".join(told(result.levels)))
    typer.echo(f"checkpoint: {result.checkpoint}")
    typer.echo("reports: " + ", ".join(str(folder / name) for name in reports))


def _teacher(options: TeacherOptions | None) -> Calculator | None:
    """The calculator that the options name."""
    if options is None:
        return None
    if all(name.endswith(".safetensors") for name in options.names):
        from ase_biasgrad.calculators import BiasGradCalculator

        return BiasGradCalculator(options.names)
    if len(options.names) > 1:
        raise ValueError(
            f"teacher: {', '.join(options.names)}: several can be checkpoints alone (*.safetensors)"
        )
    from ase_biasgrad.named_calculators import labelling_calculator

    return labelling_calculator(options.names[0], options.arguments)
