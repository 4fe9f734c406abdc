"""Every example runs as a script and says what it should."""

import re
import shutil
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from conftest import run_script

from ase_biasgrad import build_backbone
from ase_biasgrad.training import load_config

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAYS = {
    "md.py": r"energy changed by -?0\.[01]\d+ meV per atom",
    "relax_cell.py": r"lattice constant 3\.[4-8]\d+ Å",
    "vibrations.py": r"meV\s+cm\^-1",
    "dense_network.py": r"finite differences by \d\.\de-0[5-9] eV/Å",
    "neb.py": r"barrier \d\.\d+ eV",
    "equation_of_state.py": r"lattice constant 3\.[4-8]\d+ Å, bulk modulus \d+ GPa",
    "forces_through_the_graph.py": r"trained on forces +\d+\.\d meV/Å, energy \d+\.\d+ meV",
    "train_from_extxyz.py": r"energy zero: scalar",
    "openmm_dynamics.py": r"OpenMM: .* (-\d+\.\d{3}) kJ/mol at the end\n.*positions: \1 kJ/mol",
    "nbody_rollout.py": r"after 3\.0 units of time: RMS error \d\.\d+",
    "fit_bias_of_schnetpack_model.py": r"forces are bit-identical",
    "path_integrals.py": r"kinetic energy 1\.\d+ eV, of classical nuclei 0\.35 eV",
}
NEEDS = {"openmm_dynamics.py": "openmmml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all, so that the potential that they share is trained once."""
    folder = tmp_path_factory.mktemp("examples")
    for script in EXAMPLES.glob("*.py"):
        shutil.copy(script, folder)
    shutil.copytree(EXAMPLES / "potentials", folder / "potentials")
    return folder


def lattice_constant_of_the_reference() -> float:
    """Lattice constant of copper by EMT, which the potential of the examples is trained on."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4)
    return atoms.get_volume() ** (1 / 3)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example(folder, name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    source = (folder / name).read_text()
    if "i-pi" in source and shutil.which("i-pi") is None:
        pytest.skip("i-PI is not installed (pip install ipi)")
    said = run_script(folder, name)
    assert re.search(SAYS[name], said)
    if lattice := re.search(r"lattice constant (\S+) Å", said):
        assert float(lattice[1]) == pytest.approx(lattice_constant_of_the_reference(), abs=0.01)
    for picture in re.findall(r'savefig\("([^"]+)"', source):
        assert (folder / picture).stat().st_size > 5000


def test_every_picture_of_the_gallery_is_an_example_s():
    page = (EXAMPLES.parent / "docs" / "gallery.md").read_text()
    shown = set(re.findall(r"\(pictures/(\w+)\.png\)", page))
    drawn = {path.stem for path in EXAMPLES.glob("*.py") if "savefig" in path.read_text()}
    assert shown == drawn
    assert all((EXAMPLES.parent / "docs" / "pictures" / f"{name}.png").exists() for name in shown)


def test_every_example_is_tested():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {*SAYS, "common.py", "demo.py"}


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_configuration(path):
    config = load_config(path)
    assert (config.data.train, config.data.validation) == (950, 50)
    backbone = build_backbone(config.backbone.name, config.backbone.arguments)
    assert sum(parameter.numel() for parameter in backbone.parameters()) > 100_000


def test_demo(folder):
    pytest.importorskip("tblite")
    said = run_script(
        folder, "demo.py", "--frames", "40", "--epochs", "3", "--features", "16", "--steps", "40"
    )
    for line in ("EFwT on the test trajectory", "energy drift of NVE", "time per MD step"):
        assert line in said
    pictures = said.rsplit("pictures", 1)[1].split()
    assert all((folder / picture.strip(",")).exists() for picture in pictures)
    forces = re.findall(r"force MAE (?:before the bias stage|after it) +([\d.]+)", said)
    assert forces[0] == forces[1]
