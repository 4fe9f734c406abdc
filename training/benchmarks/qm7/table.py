"""The ladder's table and learning curves, from results at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ase_biasgrad.files import whole_file
from ase_biasgrad.training.benchmarks import tables
from ase_biasgrad.training.benchmarks.qm7.ladder import Row
from ase_biasgrad.training.benchmarks.results import Result, differences
from ase_biasgrad.training.benchmarks.tables import spread


def table(rows: Sequence[Row], results: Sequence[Result]) -> str:
    """Markdown: mean ± standard deviation over folds of the errors, in kcal/mol.

    Of each row and its options the results with the most training molecules count.
    """
    groups = []
    for row in rows:
        for own in by_options(of_row(results, row)):
            groups.append((row, by_size(own)[-1]))
    differ = differences([_shared(group[0]) for _, group in groups])
    cells = []
    for (row, group), options in zip(groups, differ, strict=True):
        mae, rmse, seconds = (
            [result.figures[name] for result in group] for name in ("mae", "rmse", "seconds")
        )
        errors = [spread(mae, 2), spread(rmse, 2), len(group), f"{np.mean(seconds):.0f}"]
        cells.append([row.title, row.published, *errors, group[0].figures["note"], options])
    columns = ("method", "published MAE", "MAE", "RMSE", "folds", "processor time, s", "how far")
    return tables.table([*columns, "options that differ"], cells)


def of_row(results: Sequence[Result], row: Row) -> list[Result]:
    """Results of one row."""
    return [result for result in results if result.options["row"] == row.key]


def by_options(results: Sequence[Result]) -> list[list[Result]]:
    """Results that differ in fold and size alone, together."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(str(_shared(result)), []).append(result)
    return list(groups.values())


def _shared(result: Result) -> dict[str, object]:
    return {name: result.options[name] for name in ("minutes", "seed")}


def by_size(results: Sequence[Result]) -> list[list[Result]]:
    """Results of the same number of training molecules together, ascending, all of them last."""
    groups: dict[float, list[Result]] = {}
    for result in results:
        groups.setdefault(result.options["size"] or np.inf, []).append(result)
    return [groups[size] for size in sorted(groups)]


def write_learning_curves(rows: Sequence[Row], results: Sequence[Result], path: Path) -> list[str]:
    """Plot the mean absolute error over the number of training molecules; keys of the curves.

    Rows with a single size are points. The format follows from the suffix of `path`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    drawn = []
    for row in rows:
        for own in by_options(of_row(results, row)):
            sizes, errors = (
                [np.mean([result.figures[name] for result in group]) for group in by_size(own)]
                for name in ("trained_on", "mae")
            )
            axes.loglog(sizes, errors, "o-", label=row.key, markersize=3.5, linewidth=1)
            drawn.append(row.key)
    axes.set_xlabel("training molecules")
    axes.set_ylabel("mean absolute error, kcal/mol")
    axes.axhline(1.0, color="grey", linewidth=0.7, linestyle=":")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip("."), metadata={"Date": None})
    return drawn
