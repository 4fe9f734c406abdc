"""Markdown tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown of a whole table."""
    return "\n".join([head(columns), *map(line, rows)])


def head(columns: Sequence[str]) -> str:
    """The two lines above the rows."""
    return f"{line(columns)}\n|{'---|' * len(columns)}"


def line(cells: Iterable[object]) -> str:
    """One row; a cell without a value is a dash."""
    return f"| {' | '.join('–' if cell in (None, '') else str(cell) for cell in cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation (ddof=1); a single value has no deviation."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"
