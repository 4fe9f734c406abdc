"""Code on the pages: Python blocks run, shell lines name commands and options that there are."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import small_potential
from helpers import biasgrad, write_clusters

from ase_biasgrad import save_checkpoint
from ase_biasgrad.calibration import Calibration, Scale
from ase_biasgrad.cli import app
from ase_biasgrad.committee_file import save_committee
from ase_biasgrad.readouts import Readouts

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/potentials/*.md")
    for path in REPOSITORY.glob(pattern)
)
# pages that begin with a kernel are notebooks, which `make docs` runs
NOTEBOOKS = [
    page for page in PAGES if (REPOSITORY / page).read_text().startswith("---\nfile_format")
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.M | re.S)
INDENTED = re.compile(r"(?:^(?: {4}|\t)[^\n]*\n)+", re.M)


def blocks(page: str, *languages: str) -> list[str]:
    """Fenced blocks of a page, in one of these languages."""
    text = re.sub(r"^ {3}(?=\S)", "", (REPOSITORY / page).read_text(), flags=re.M)
    return [code for language, code in FENCE.findall(text) if language.strip() in languages]


def shell_lines() -> list[tuple[str, str]]:
    """Every `biasgrad …` line of every page, continued lines in one."""
    lines = []
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        code = [body for _, body in FENCE.findall(text)]
        code += INDENTED.findall(FENCE.sub("", text)) + re.findall(r"`(biasgrad [^`]+)`", text)
        for block in code:
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"\s*(?:srun )?biasgrad (.+)", line)
                if found and not found[1].startswith("…"):
                    lines.append((page, found[1]))
    return lines


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Small stand-ins for the files that the pages name."""
    (tmp_path / "run").mkdir()
    for k, name in enumerate(("run/potential", "a", "b")):
        save_checkpoint(tmp_path / f"{name}.safetensors", small_potential("schnet", seed=k))
    members = [tmp_path / f"{name}.safetensors" for name in "ab"]
    scales = Calibration({0: Scale(1.0, 2.0)}, Scale(1.0, 2.0), 10)
    save_committee(tmp_path / "committee.safetensors", members, scales)
    width = 8  # of the last layer
    readouts = Readouts(np.eye(2, width), (1, 6, 8, 29), np.zeros((2, 4)))
    save_committee(tmp_path / "uncertain.safetensors", members[:1], scales, {}, readouts)
    write_clusters(tmp_path / "data.h5")
    np.savez(tmp_path / "rmd17_ethanol.npz", nuclear_charges=np.ones(2), coords=np.ones((4, 2, 3)))
    for k, part in enumerate(("train", "test")):
        np.savetxt(tmp_path / f"index_{part}_01.csv", [k, k + 2], fmt="%d")
    shutil.copytree(REPOSITORY / "examples" / "potentials", tmp_path / "examples" / "potentials")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stand_ins(page: str) -> dict[str, object]:
    """Names that blocks of a page take from the text around them."""
    import torch
    from ase.build import molecule

    if page == "docs/qm7.md":
        from ase_biasgrad.dense import Input, Linear, Sequential, padded

        water = molecule("H2O")
        width = Input().forward(padded([(water.numbers, water.positions)], 23)).shape[1]
        layers = [Input(), Linear(width, 1, np.random.default_rng(0))]
        return {"network": Sequential(layers), "atoms": water}
    if page == "docs/se3_transformer.md":
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        edge_index = pairs[pairs[:, 0] != pairs[:, 1]].T
        positions, velocities, charges = torch.randn(3, 3), torch.randn(3, 3), torch.ones(3)
        vectors = positions[edge_index[1]] - positions[edge_index[0]]
        return {
            "edge_index": edge_index,
            "vectors": vectors,
            "velocities": velocities,
            "charges": charges,
        }
    return {}


@pytest.mark.parametrize("page", [p for p in PAGES if p not in NOTEBOOKS and blocks(p, "python")])
def test_python_blocks_run(page, folder):
    """Blocks of a page share their names, as a reader who goes through it would have them."""
    names: dict[str, object] = {"__name__": "page", **stand_ins(page)}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_pages_have_code():
    assert {"README.md", "docs/index.md", "docs/howto.md"} <= {
        p for p in PAGES if blocks(p, "python")
    }
    notebooks = {"tutorial", "md17", "architecture", "qm7_tutorial"}
    assert {f"docs/{name}.md" for name in notebooks} == set(NOTEBOOKS)
    assert len(shell_lines()) > 40


def test_dynamics_of_the_first_page_are_written(folder):
    names: dict[str, object] = {}
    exec(blocks("README.md", "python")[0].replace("1000", "20"), names)
    from ase.io import read

    assert len(read("md.traj", ":")) == 21


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_shell_lines_name_commands_and_options(page, line):
    command = typer.main.get_command(app)
    words = shlex.split(line.split(" #")[0].replace("|", " ").replace("…", "").replace(";", " "))
    path = ["biasgrad"]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        path.append(name)
        assert name in command.commands, f"{page}: {' '.join(path)} does not exist"
        command = command.commands[name]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= known, f"{page}: {' '.join(path)} has no {sorted(given - known)}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", (REPOSITORY / page).read_text())
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((REPOSITORY / page).parent / target).exists(), f"{page}: {target} is missing"


def test_configuration_of_the_first_page_trains(folder):
    """The configuration that the README writes, on fewer frames."""
    config = re.search(
        r"cat > config.yaml <<END\n(.*?)END", (REPOSITORY / "README.md").read_text(), re.S
    )
    (folder / "config.yaml").write_text(config[1])
    quick = ("data.train=40", "data.validation=10", "force_stage.epochs=1", "backbone.features=8")
    biasgrad(folder, "train", "config.yaml", *quick, "trainer.progress_bar=false", "-o", "again")
    assert (folder / "again" / "potential.safetensors").exists()
