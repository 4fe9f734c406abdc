"""Kernels called by their address: the results of Numba's own calls, without Numba."""

import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from ase_biasgrad.numerics import native as module

KERNELS = """
import numpy as np
from ase_biasgrad.numerics.kernel_cache import compiled
from helper import scaled


@compiled(error_model="numpy")
def kernel(n, factor, matrix, pair):
    memory = np.zeros((n, 2))  # that Numba's runtime gives and takes
    for i in range(n):
        memory[i, 0] = scaled(factor * pair.x[i]) + matrix[i % 2, 1]
    for i in range(n):
        pair.y[i] = memory[i, 0]
    return n


@compiled()
def divide(n, x):
    x[0] = 12 // n
"""
HELPER = """
import math
from ase_biasgrad.numerics.kernel_cache import compiled


@compiled()
def scaled(x):
    return math.exp(2 * x)
"""
USE = """
import sys
from typing import NamedTuple
import numpy as np
from ase_biasgrad.numerics.native import NativeKernel


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


pair = Pair(np.arange(4.0), np.zeros(4))
matrix = np.array([[1, 2], [3, 4]], sys.argv[1])
NativeKernel("kernels", "kernel")(4, 0.25, matrix, pair)
print(pair.y.tolist() == (np.exp(0.5 * pair.x) + [2, 4, 2, 4]).tolist(), "numba" in sys.modules)
"""


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "use.py").write_text(USE)
    return tmp_path


def used(folder, kind: str = "f8") -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "use.py", kind], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_code_is_kept_and_then_runs_without_numba(folder):
    out, said = used(folder)
    assert out == "True True"
    assert said.count("compiling for this machine") == 1
    assert used(folder) == ("True False", "")
    assert used(folder, "f4")[0] == "True True"  # another kind of array is other code
    assert used(folder, "f4")[0] == "True False"
    (folder / "helper.py").write_text(HELPER.replace("2 *", "3 *"))
    assert used(folder)[0] == "False True"  # not the code of other sources
    assert len(list(folder.glob("__pycache__/kernels.kernel.*.native.*"))) == 1


def test_damaged_code_is_not_run(folder):
    assert used(folder)[0] == "True True"
    (file,) = folder.glob("__pycache__/*.native.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    assert used(folder)[0] == "True True"
    assert used(folder)[0] == "True False"


@pytest.fixture
def native(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    from ase_biasgrad.numerics.native import NativeKernel

    # sources of a test are others than those of the test before
    monkeypatch.setattr("ase_biasgrad.numerics.native._ENTRIES", {})
    yield lambda name: NativeKernel("kernels", name)
    for name in ("kernels", "helper"):
        sys.modules.pop(name, None)


def test_arrays_are_passed_by_reference_and_errors_are_raised(native):
    pair, matrix = Pair(np.zeros(3), np.zeros(3)), np.ones((2, 2))
    call = native("kernel").bind(3, 1.0, matrix, pair)
    call()
    np.testing.assert_array_equal(pair.y, 2.0)
    pair.x[:], matrix[1, 1] = np.log(3.0), 5.0
    call()
    np.testing.assert_allclose(pair.y, [10.0, 14.0, 10.0], rtol=1e-15)
    whole = pair.y.copy()
    pair.y[:] = 0
    call.replace_first(2)
    call()
    np.testing.assert_array_equal(pair.y, [*whole[:2], 0])
    call.replace_first(3)
    call()
    np.testing.assert_array_equal(pair.y, whole)
    again = pickle.loads(pickle.dumps(call))
    again.arguments[3].y[:] = 0
    again()
    np.testing.assert_array_equal(again.arguments[3].y, pair.y)
    x = np.zeros(1, np.int64)
    native("divide")(4, x)
    assert x[0] == 3
    with pytest.raises(RuntimeError, match="divide stopped with status"):
        native("divide")(0, x)
    with pytest.raises(ValueError, match="not C-contiguous"):
        native("kernel").bind(2, 1.0, np.ones((4, 4))[:, ::2], pair)


@pytest.mark.parametrize("size", [3, 10_000])
def test_threads_link_code_once_and_share_it(native, size):
    """Also while the interpreter's lock is kept, which it is for a few numbers."""
    matrix = np.ones((2, 2))
    pairs = [Pair(np.full(size, float(k)), np.zeros(size)) for k in range(8)]

    def run(pair: Pair) -> None:
        native("kernel")(size, 0.5, matrix, pair)

    with ThreadPoolExecutor(8) as threads, warnings.catch_warnings():
        warnings.simplefilter("error")
        list(threads.map(run, pairs))
    for k, pair in enumerate(pairs):
        np.testing.assert_allclose(pair.y, np.exp(k) + 1, rtol=1e-15)


@pytest.mark.parametrize("reason", ["newer", "cannot be linked"])
def test_numba_makes_the_calls_where_its_code_cannot_be_linked(folder, monkeypatch, reason):
    monkeypatch.syspath_prepend(str(folder))
    if reason == "newer":
        monkeypatch.setattr(module, "NEWEST", (0, 1))
    else:

        def refuse(*_):
            raise RuntimeError(reason)

        monkeypatch.setattr(module, "_entry", refuse)
    module._say_that_numba_calls.cache_clear()
    x = np.zeros(1, np.int64)
    with pytest.warns(UserWarning, match=f"called by Numba.*{reason}"):
        call = module.NativeKernel("kernels", "divide").bind(4, x)
    call()
    assert x[0] == 3
