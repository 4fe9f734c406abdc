"""Compiled kernels are kept, do not outlive their sources, and need no place to be kept."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ase_biasgrad
import ase_biasgrad.calculators
import ase_biasgrad.numerics

KERNEL = """
from ase_biasgrad.numerics.kernel_cache import compiled
from helper import scaled

@compiled()
def kernel(x):
    return scaled(x) + 1
"""
HELPER = """
from ase_biasgrad.numerics.kernel_cache import compiled

@compiled(fastmath=True)
def scaled(x):
    return 2 * x
"""
RUN = "from kernel import kernel; print(kernel({x}), sum(kernel.stats.cache_hits.values()))"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kernel.py").write_text(KERNEL)
    (tmp_path / "helper.py").write_text(HELPER)
    return tmp_path


def started(folder, code: str, **environment: str) -> subprocess.Popen:
    known = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    known |= {"PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=known, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(process: subprocess.Popen) -> str:
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out.strip() + errors


def test_code_is_kept_until_a_source_changes(folder):
    def kept() -> set[str]:
        return {path.name for path in folder.rglob("*.nb[ci]")}

    said(started(folder, "import kernel"))
    assert kept() == set()  # an import writes nothing
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 0"
    first = kept()
    assert len(first) == 4  # two functions
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 1"
    (folder / "helper.py").write_text(HELPER.replace("2 * x", "3 * x"))  # of the same length
    assert said(started(folder, RUN.format(x="4.0"))) == "13.0 0"
    assert len(kept()) == 4
    assert not kept() & first


def test_without_a_place_for_code_one_line_says_so(folder):
    # a file where a folder would have to be: permissions do not hold back root
    (folder / "__pycache__").write_text("")
    nowhere = str(folder / "__pycache__" / "cache")
    where = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), nowhere)
    out = said(started(folder, RUN.format(x="4.0"), **where))
    assert out.startswith("9.0 0")
    assert out.count("set NUMBA_CACHE_DIR to a folder of yours") == 1
    assert said(started(folder, "import kernel", **where)) == ""


def test_damaged_files_are_replaced(folder):
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 0"
    for path in folder.rglob("*.nb[ci]"):
        path.write_bytes(path.read_bytes()[:20])
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 0"
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 1"


def test_code_with_a_flipped_bit_is_not_run(folder):
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 0"
    for path in folder.rglob("kernel.*.nbc"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 0"
    assert said(started(folder, RUN.format(x="4.0"))) == "9.0 1"


def test_processes_that_begin_together(folder):
    arguments = {"4": "9", "4.0": "9.0", "4j": "(1+8j)"}
    waiting = [(started(folder, RUN.format(x=x)), y) for x, y in 2 * [*arguments.items()]]
    for process, expected in waiting:
        assert said(process).split()[0] == expected
    for x, expected in arguments.items():
        assert said(started(folder, RUN.format(x=x))) == f"{expected} 1"


def kernel_modules() -> list[str]:
    rooms = {"ase_biasgrad": ase_biasgrad, "ase_biasgrad.calculators": ase_biasgrad.calculators}
    return sorted(
        ".".join([name, *path.relative_to(top).with_suffix("").parts])
        for name, room in rooms.items()
        for top in [Path(room.__file__).parent]
        for path in top.rglob("*.py")
        if "kernel_cache import compiled" in path.read_text()
    )


def test_kernels_call_what_their_digest_covers():
    """Functions compiled into a kernel are of its folder or of `numerics`."""
    numerics = Path(ase_biasgrad.numerics.__file__).parent
    checked = 0
    for name in kernel_modules():
        module = importlib.import_module(name)
        source = Path(module.__file__)
        assert not re.search(r"jit\(.*cache=True", source.read_text()), source
        for kernel in vars(module).values():
            function = getattr(kernel, "py_func", None)
            if function is None or function.__module__ != name:
                continue
            for used in inspect.getclosurevars(function).globals.values():
                made = getattr(used, "py_func", getattr(used, "_defn", used))
                if not getattr(made, "__module__", "").startswith("ase_biasgrad"):
                    continue
                assert Path(inspect.getfile(made)).parent in (source.parent, numerics), (name, made)
                checked += 1
    assert checked > 50
