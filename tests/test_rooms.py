"""The walls of the house: which room may import which, and what an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ase_biasgrad
import ase_biasgrad.calculators
import ase_biasgrad.training

REPOSITORY = Path(__file__).resolve().parents[1]
# modules of the core that know no network, and those that do
BASE = {
    "units",
    "files",
    "tensor_file",
    "architectures",
    "machine",
    "lazy",
    "progress",
    "neighbours",
    "charged_particles",
    "training_range",
    "calibration",
    "named_calculators",
    "baseline",
}
BIAS = {
    "bias",
    "bias_arrays",
    "bias_errors",
    "bias_file",
    "bias_fits",
    "composition_fit",
    "levels_of_theory",
}
POTENTIAL = {"potential", "potential_arrays", "checkpoint", "committee_file", "convert", "readouts"}
CORE = {*BASE, *BIAS, *POTENTIAL, "graph", "metrics"}
SYSTEMS = {"differentiable_graph", "se3_transformer", "dense"}
NETWORKS = {"backbones", "fused", "numerics"}
# a row for each room: what it may import besides itself
MAY_IMPORT = {
    "numerics": {"files"},
    "testing": {"lazy"},
    **{name: set() for name in ("units", "files", "machine", "lazy", "progress")},
    "tensor_file": {"files"},
    "architectures": {"units"},
    "training_range": {"units"},
    "calibration": {"units"},
    "charged_particles": {"progress"},
    "neighbours": set(),
    "named_calculators": set(),
    "baseline": {"named_calculators"},
    "graph": {"neighbours"},
    "bias_fits": set(),
    "bias_errors": {"bias_fits"},
    "composition_fit": {"bias_errors", "bias_fits", "units"},
    "bias_arrays": {"bias_fits", "composition_fit", "units"},
    "bias": {"bias_arrays", "bias_fits", "composition_fit", "units"},
    "bias_file": {"bias", "bias_arrays", "files", "units"},
    "levels_of_theory": {"bias", "composition_fit"},
    "metrics": {"bias_fits", "units"},
    "differentiable_graph": {"graph", "neighbours", "numerics"},
    "se3_transformer": {"graph", "numerics"},
    "dense": {"files", "numerics", "tensor_file"},
    "backbones": {"architectures", "graph", "differentiable_graph", "se3_transformer", "units"},
    "fused": {"backbones", "graph", "numerics"},
    "potential_arrays": {"bias_arrays"},
    "potential": {"backbones", "bias", "graph", "potential_arrays"},
    "checkpoint": {
        "baseline",
        *("architectures", "backbones", "bias_arrays", "files", "lazy", "potential"),
        *("potential_arrays", "tensor_file", "training_range"),
    },
    "readouts": {"potential_arrays", "units"},
    "committee_file": {"calibration", "checkpoint", "files", "readouts", "tensor_file"},
    "convert": {"backbones", "potential", "units"},
    "data": {
        "named_calculators",
        "units",
        "files",
        "neighbours",
        "charged_particles",
        "lazy",
        "progress",
    },
    "calculators": CORE | NETWORKS | SYSTEMS,
    "training": CORE | NETWORKS | SYSTEMS | {"data"},
    "cli": CORE | NETWORKS | SYSTEMS | {"data", "calculators", "training"},
    "__init__": CORE | NETWORKS | {"data", "calculators"},
}
ONLY = {
    "pytorch_lightning": {"training"},
    "schnetpack": {"convert", "calculators", "training"},
    "typer": {"cli"},
    "pytest": {"testing"},
}


def room_of(module: str) -> str:
    """`ase_biasgrad.data.writer` → `data`."""
    return f"{module}.".split(".")[1]


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for top, package in (
        ("ase_biasgrad", ""),
        ("calculators", "calculators"),
        ("training", "training"),
    ):
        for path in (REPOSITORY / top).rglob("*.py"):
            parts = path.relative_to(REPOSITORY / top).with_suffix("").parts
            if len(parts) > 1 or package:
                parts = tuple(part for part in parts if part != "__init__")
            found[".".join(filter(None, ("ase_biasgrad", package, *parts)))] = path
    return found


def imports(path: Path) -> list[tuple[str, str]]:
    """Module and name of every import in a file, those for annotations included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name) for alias in node.names]
    return found


def rooms_of_import(module: str, name: str) -> str:
    """The room that is imported from."""
    if module == "ase_biasgrad":  # a module, or a name of the door
        return name if name in MAY_IMPORT else "__init__"
    return room_of(module)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_what_its_row_allows(room):
    modules = {name: path for name, path in sources().items() if room_of(name) == room}
    assert modules
    for path in modules.values():
        for module, name in imports(path):
            if module.split(".")[0] == "ase_biasgrad":
                other = rooms_of_import(module, name)
                assert other in MAY_IMPORT[room] | {room}, f"{path} imports {module}"


def test_rows_have_no_circle():
    left = dict(MAY_IMPORT)
    while left:
        floor = {room for room, below in left.items() if not below & left.keys()}
        assert floor, f"these rooms import each other: {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in floor}


def test_no_room_imports_a_private_name_of_another():
    for name, path in sources().items():
        for module, imported in imports(path):
            if module.startswith("ase_biasgrad") and imported.startswith("_"):
                assert imported == "__version__" or room_of(module) == room_of(name), path


@pytest.mark.parametrize("package", sorted(ONLY))
def test_only_some_rooms_import(package):
    users = {
        room_of(name)
        for name, path in sources().items()
        if any(module.split(".")[0] == package for module, _ in imports(path))
    }
    assert users == ONLY[package]


@pytest.mark.parametrize("door", [ase_biasgrad, ase_biasgrad.calculators, ase_biasgrad.training])
def test_every_name_of_a_door_resolves(door):
    for name in door.__all__:
        assert getattr(door, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = door.nothing


def test_running_a_potential_loads_little():
    code = (
        "import sys, logging, ase_biasgrad, ase_biasgrad.calculators, ase_biasgrad.training\n"
        "assert not {'torch', 'h5py', 'numba'} & set(sys.modules)\n"
        "sys.path.insert(0, 'tests')\n"
        "from conftest import ethanol, small_potential\n"
        "for name in ('schnet', 'painn', 'tensornet'):\n"
        "    atoms = ethanol()\n"
        "    atoms.calc = ase_biasgrad.BiasGradCalculator(small_potential(name), device='cpu')\n"
        "    atoms.get_forces()\n"
        "heavy = {'pytorch_lightning', 'schnetpack', 'matplotlib', 'pooch', 'sklearn', 'e3nn',\n"
        "         'wandb', 'tensorboard', 'pydantic', 'typer'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert logging.getLogger().handlers == []\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


DOORS = {"ase_biasgrad", "ase_biasgrad.calculators", "ase_biasgrad.training"}
LIBRARIES = {f"ase_biasgrad.{name}" for name in (*SYSTEMS, "charged_particles")}


def test_examples_use_the_doors() -> None:
    for path in sorted((REPOSITORY / "examples").rglob("*.py")):
        ours = {module for module, _ in imports(path) if module.startswith("ase_biasgrad")}
        assert ours <= DOORS | LIBRARIES, path.name
