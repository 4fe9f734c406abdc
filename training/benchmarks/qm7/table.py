"""The ladder's table and learning curves, from results at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ase_biasgrad.files import whole_file
from ase_biasgrad.training.benchmarks.qm7.ladder import Result, Row


def table(rows: Sequence[Row], results: Sequence[Result]) -> str:
    """Markdown: mean ± standard deviation over folds of the errors, in kcal/mol.

    Of each row the results with the most training molecules count, folds of sizes that differ
    by one alike.
    """
    lines = [
        "| method | published MAE | MAE | RMSE | folds | processor time, s | how far |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        full = whole_sets([result for result in results if result.row == row.key])
        if not full:
            continue
        cells = [
            row.title,
            row.published or "–",
            _spread([result.mae for result in full]),
            _spread([result.rmse for result in full]),
            str(len(full)),
            f"{np.mean([result.seconds for result in full]):.0f}",
            full[0].note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def whole_sets(results: Sequence[Result]) -> list[Result]:
    """Those trained on all molecules outside of their fold; sizes of folds differ by one."""
    largest = max((result.trained_on for result in results), default=0)
    return [result for result in results if result.trained_on >= largest - 1]


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation (ddof=1); one fold has no deviation."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def write_learning_curves(rows: Sequence[Row], results: Sequence[Result], path: Path) -> list[str]:
    """Plot the mean absolute error over the number of training molecules; keys of the curves.

    Rows with a single size are points. The format follows from the suffix of `path`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    drawn = []
    for row in rows:
        curve = _curve([result for result in results if result.row == row.key])
        if not curve:
            continue
        sizes, errors = np.array(curve).T
        axes.loglog(sizes, errors, "o-", label=row.key, markersize=3.5, linewidth=1)
        drawn.append(row.key)
    axes.set_xlabel("training molecules")
    axes.set_ylabel("mean absolute error, kcal/mol")
    axes.axhline(1.0, color="grey", linewidth=0.7, linestyle=":")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip("."), metadata={"Date": None})
    return drawn


def _curve(results: Sequence[Result]) -> list[tuple[float, float]]:
    """(size, mean error over folds), ascending; sizes of folds that differ by one are one."""
    sizes = sorted({result.trained_on for result in results})
    points = []
    while sizes:
        size = sizes.pop()
        group = [result for result in results if size - 1 <= result.trained_on <= size]
        sizes = [other for other in sizes if other < size - 1]
        points.append((float(size), float(np.mean([result.mae for result in group]))))
    return points[::-1]
