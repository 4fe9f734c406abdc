"""Who may import whom: the calculators and training never import each other."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "calculators": ("ase_biasgrad.training", "ase_biasgrad.cli", "pytorch_lightning"),
    "training": ("ase_biasgrad.calculators", "ase_biasgrad.cli"),
    "ase_biasgrad": ("pytorch_lightning", "ase_biasgrad.training", "ase_biasgrad.calculators"),
}
# the command line joins the rooms; these two hand on what they name, lazily or for ASE's table
EXCEPTIONS = ("ase_biasgrad/cli/", "ase_biasgrad/__init__.py", "ase_biasgrad/io.py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_forbidden_imports(room):
    checked = 0
    for path in (REPOSITORY / room).rglob("*.py"):
        if path.relative_to(REPOSITORY).as_posix().startswith(EXCEPTIONS):
            continue
        checked += 1
        bad = [name for name in imported(path) if name.startswith(FORBIDDEN[room])]
        assert bad == [], path
    assert checked > 3
