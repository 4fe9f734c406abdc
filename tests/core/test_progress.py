"""Progress bars are for terminals alone."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from conftest import ethanol
from helpers import options, write_clusters
from test_rooms import sources

SCRIPT = """
from ase_biasgrad.data.importers import import_files
import_files(["x.xyz"], "x.h5")
"""
TRAINING = """
import json, sys
from ase_biasgrad.training import config_from, train
train(config_from(json.loads(sys.argv[1])), "run")
"""


def said_on(terminal: bool, script: str, folder, *arguments: str) -> str:
    """All that a script writes, with both streams a terminal or both a pipe."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(writer, (24, 80))
    line = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(line, stdout=writer, stderr=writer, cwd=folder)
    os.close(writer)
    said = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # how a terminal ends
            break
        if not part:
            break
        said += part
    os.close(reader)
    assert process.wait() == 0, said.decode()
    return said.decode()


@pytest.mark.parametrize("terminal", [True, False])
def test_imports_show_their_bar_on_a_terminal_alone(tmp_path, terminal):
    for seed in range(3):
        atoms = ethanol(seed)
        atoms.info["REF_energy"] = -4200.0
        atoms.write(tmp_path / "x.xyz", format="extxyz", append=True)
    said = said_on(terminal, SCRIPT, tmp_path)
    assert ("x.xyz: " in said and "\r" in said) == terminal
    if not terminal:
        assert said == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_training_shows_its_bars_on_a_terminal_alone(tmp_path, terminal):
    config = options(write_clusters(tmp_path / "x.h5"), epochs=2)
    config["trainer"]["progress_bar"] = True
    said = said_on(terminal, TRAINING, tmp_path, json.dumps(config))
    assert ("Epoch 1" in said) == terminal
    assert ("\r" in said.replace("\r\n", "\n")) == terminal


def test_every_bar_is_made_in_one_place():
    users = {name for name, path in sources().items() if re.search(r"\btqdm\b", path.read_text())}
    assert users == {"ase_biasgrad.progress"}
