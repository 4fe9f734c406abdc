"""The wheel, away from the repository: three folders must have become one package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "-w", folder, REPOSITORY], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *options, "--target", folder / "site", wheel], check=True)
    return folder / "site"


def test_every_module_is_in_the_wheel(site):
    for folder, package in {
        "ase_biasgrad": "ase_biasgrad",
        "calculators": "ase_biasgrad/calculators",
        "training": "ase_biasgrad/training",
    }.items():
        sources = {p.relative_to(REPOSITORY / folder) for p in (REPOSITORY / folder).rglob("*.py")}
        missing = [p for p in sources if not (site / package / p).is_file()]
        assert missing == []
    assert (site / "ase_biasgrad" / "py.typed").exists()


def test_it_imports_from_outside_of_the_repository(site):
    code = (
        "import ase_biasgrad, ase_biasgrad.training.run as r, ase_biasgrad.cli as c\n"
        "from ase_biasgrad import BiasGradCalculator\n"
        "print(ase_biasgrad.__file__, r.__file__, c.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(name).is_relative_to(site) for name in done.stdout.split())
