"""Calculators that are known by name."""

import os
import subprocess
import sys


def test_ours_is_known_in_a_process_that_has_not_read_a_file():
    code = """
from ase_biasgrad.named_calculators import labelling_calculator
try:
    labelling_calculator("biasgrad", {"checkpoint": "nowhere.safetensors"})
except FileNotFoundError as error:
    print("found", error)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert "found" in done.stdout, done.stderr
    assert "nowhere.safetensors" in done.stdout
