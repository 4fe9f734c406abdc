"""The rooms of the package and who imports whom, drawn from the import statements.

python docs/architecture.py [picture.svg]
"""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "ase_biasgrad"
FOLDERS = {"": "ase_biasgrad", "calculators": "calculators", "training": "training"}


def room(module: str) -> str | None:
    """A folder or a flat file of the package; None for other packages and for the doors."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def modules() -> dict[str, Path]:
    """Files by the name that they are imported by."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            inside = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            parts = (PACKAGE, *([name] if name else []), *inside)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, at its top or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            longer = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= longer & known or {node.module}
    return names


def rooms() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    files = modules()
    graph: dict[str, set[str]] = {own: set() for module in files if (own := room(module))}
    for module, path in files.items():
        own = room(module)
        if own is not None:
            others = {room(name) for name in imported(path, set(files))}
            graph[own] |= {other for other in others if other and other != own}
    return graph


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Height of each room: one more than the highest that it imports.

    Raises
    ------
    graphlib.CycleError
        If rooms import each other in a circle.
    """
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[other] for other in graph[name]), default=-1)
    return height


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without arrows that follow from longer ways."""
    height = levels(graph)
    below: dict[str, set[str]] = {}
    for name in sorted(graph, key=height.__getitem__):
        below[name] = graph[name].union(*(below[other] for other in graph[name]))
    return {
        name: {o for o in others if not any(o in below[other] for other in others)}
        for name, others in graph.items()
    }


def draw(path: str | Path | None = None) -> None:
    """The picture, to a file or to the notebook that calls."""
    import matplotlib.pyplot as plt

    graph = rooms()
    height, arrows = levels(graph), reduced(graph)
    folders = {p.name for p in (REPOSITORY / PACKAGE).iterdir() if p.is_dir()} | set(FOLDERS)
    rows: dict[int, list[str]] = {}
    for name in sorted(graph):
        rows.setdefault(height[name], []).append(name)
    place: dict[str, tuple[float, float]] = {}
    for row, names in sorted(rows.items()):
        # beside what it imports, so that arrows are short
        names.sort(key=lambda n: sum(place[o][0] for o in arrows[n]) / max(len(arrows[n]), 1))
        for k, name in enumerate(names):
            aside = 0.2 if row % 2 else -0.2  # lines then pass beside boxes rather than behind
            place[name] = ((k + 0.5 + aside) / len(names), row)
    figure, axes = plt.subplots(figsize=(11, 1.05 * len(rows) + 0.5))
    for name, others in arrows.items():
        for other in others:
            style = {"arrowstyle": "-|>", "color": "0.55", "lw": 0.9, "shrinkA": 13, "shrinkB": 13}
            axes.annotate("", place[other], place[name], arrowprops=style)
    for name, (x, y) in place.items():
        folder = name in folders
        box = {
            "boxstyle": "round,pad=0.45",
            "facecolor": "#dbe9f6" if folder else "white",
            "edgecolor": "#3b6ea5" if folder else "0.6",
        }
        weight = "bold" if folder else "normal"
        axes.text(x, y, name, ha="center", va="center", bbox=box, fontsize=8.5, weight=weight)
    axes.set(xlim=(0, 1), ylim=(-0.6, max(rows) + 0.6))
    axes.axis("off")
    figure.tight_layout(pad=0.2)
    if path is not None:
        figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "architecture.svg")
