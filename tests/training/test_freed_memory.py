"""Freed memory is there for the next tensor."""

import platform
import subprocess
import sys

import pytest

# new pages are what a process asks the system for
SCRIPT = """
import resource, sys
import torch
from ase_biasgrad.training.freed_memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def work():
    held = [torch.ones(200_000) for _ in range(20)]  # 16 MB
    return sum(float(part[0]) for part in held)

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_the_system_is_asked_for_memory_once():
    def new_pages(argument: str) -> int:
        command = [sys.executable, "-c", SCRIPT, argument]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert new_pages("keep") < 0.2 * new_pages("leave")
