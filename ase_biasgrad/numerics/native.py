"""Kernels called by their address: Numba compiles them once on a machine, and is not loaded again.

Importing Numba and its targets takes longer than everything else at the start of a calculator. Its
code needs neither: what is kept is the code of a kernel, and of a function that calls it with
arguments from one array, the frame. llvmlite links both. Arrays are passed by reference, so a call
that is bound once costs next to nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from ase_biasgrad.numerics.kept_files import keep, read_kept

ENTRY = "call_with_frame"
FIRST = 1  # place of the first argument; before it that of the result
QUICK = 5000  # numbers in all arrays; with fewer, to let other threads run costs more than the work
RESULT = 8  # numbers that a result has room for, none of which is read
NEWEST = 0, 68  # of Numba's versions that are known to pass arrays in this form
RAISED = "the compiled {} stopped with status {}"


class NativeKernel:
    """A kernel of `kernel_cache.compiled`, named instead of imported.

    Arguments are whole numbers (int64), floats (float64), C-contiguous arrays, and named tuples of
    these. What it returns is not read.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *arguments: Any) -> None:
        """Call it once."""
        self.bind(*arguments)()

    def bind(self, *arguments: Any) -> BoundCall:
        """A call with these arguments. Arrays are kept, and used as they are at each call."""
        return BoundCall(self, arguments)


class BoundCall:
    """A kernel and its arguments; calling it lets other threads run, unless it is over at once."""

    def __init__(self, kernel: NativeKernel, arguments: tuple[Any, ...]) -> None:
        self.kernel, self.arguments = kernel, arguments
        place = _entry_or_none(kernel, arguments)
        self._entry: Callable[..., int] | None = None
        if place is None:
            self._by_numba = getattr(import_module(kernel.module), kernel.name)
            return
        form = ctypes.PYFUNCTYPE if _size(arguments) < QUICK else ctypes.CFUNCTYPE
        self._entry = form(ctypes.c_int32, ctypes.c_int64)(place)
        self._result = np.zeros(RESULT, np.int64)
        numbers = [_address(self._result), *_numbers(arguments)]
        self.frame = np.array(numbers, np.int64)
        self._place = _address(self.frame)

    def __call__(self) -> None:
        if self._entry is None:
            self._by_numba(*self.arguments)
        elif (status := self._entry(self._place)) not in (0, -2):  # -2: None
            raise RuntimeError(RAISED.format(self.kernel.name, status))

    def replace_first(self, *numbers: int) -> None:
        """Put other whole numbers in the place of the first arguments, which are such, too."""
        self.arguments = (*numbers, *self.arguments[len(numbers) :])
        if self._entry is not None:
            self.frame[FIRST : FIRST + len(numbers)] = numbers

    def __reduce__(self) -> tuple[Any, ...]:  # of pickles and copies
        return BoundCall, (self.kernel, self.arguments)


def _kind(value: Any) -> str:
    """Type of an argument, such as i8, f8, f4[2] for a matrix, or (…) for a named tuple."""
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError(f"an array of shape {value.shape} is not C-contiguous")
        return f"{value.dtype.str[1:]}[{value.ndim}]"
    if isinstance(value, tuple):
        return f"{type(value).__name__}({','.join(map(_kind, value))})"
    return "f8" if isinstance(value, (float, np.floating)) else "i8"


def _numbers(arguments: tuple[Any, ...]) -> list[int]:
    """Arguments in the order and form in which Numba passes them: an array as its owner (twice),
    numbers, bytes of each, address, shape, and strides."""
    numbers: list[int] = []
    for value in arguments:
        if isinstance(value, np.ndarray):
            numbers += (0, 0, value.size, value.itemsize, _address(value))
            numbers += value.shape
            numbers += value.strides
        elif isinstance(value, tuple):
            numbers += _numbers(value)
        elif isinstance(value, (float, np.floating)):
            numbers.append(int(np.float64(value).view(np.int64)))
        else:
            numbers.append(int(value))
    return numbers


def _size(arguments: tuple[Any, ...]) -> int:
    """Numbers in all arrays among arguments."""
    arrays = (each for each in arguments if isinstance(each, (np.ndarray, tuple)))
    return sum(_size(each) if isinstance(each, tuple) else each.size for each in arrays)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _entry_or_none(kernel: NativeKernel, arguments: tuple[Any, ...]) -> int | None:
    """Address of the function of a frame; None where Numba itself has to make the calls."""
    if _numba_version() > NEWEST:
        _say_that_numba_calls(f"Numba {version('numba')} is newer than {NEWEST[0]}.{NEWEST[1]}")
        return None
    try:
        return _entry(kernel.module, kernel.name, arguments)
    except (RuntimeError, OSError, AttributeError, ImportError) as error:  # of this platform
        _say_that_numba_calls(f"{type(error).__name__}: {error}")
        return None


@cache
def _numba_version() -> tuple[int, ...]:  # read from files
    return tuple(int(part) for part in version("numba").split(".")[:2])


@cache
def _say_that_numba_calls(reason: str) -> None:
    warnings.warn(
        f"kernels are called by Numba, which takes a second to load ({reason})", stacklevel=2
    )


_ENTRIES: dict[tuple[str, str, str], int] = {}
_LINKED: list[Any] = []  # code goes when this goes
_LINKING = RLock()  # a library is linked once, whichever thread asks first


def _entry(module: str, name: str, arguments: tuple[Any, ...]) -> int:
    """Address of the function of a frame for arguments of these kinds."""
    kinds = ",".join(map(_kind, arguments))
    with _LINKING:
        if (module, name, kinds) not in _ENTRIES:
            _ENTRIES[module, name, kinds] = _linked(_code(module, name, kinds, arguments))
        return _ENTRIES[module, name, kinds]


def _code(module: str, name: str, kinds: str, arguments: tuple[Any, ...]) -> bytes:
    """Kept code, or code that is compiled now, and kept."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    sources = Path(spec.origin).parent
    key = hashlib.sha256(f"{_machine()} {kinds}".encode()).hexdigest()[:16]
    file = f"{module.rpartition('.')[2]}.{name}.{key}.native"
    content = read_kept(sources, file)
    if content is None:
        _say_that_it_takes_time()
        content = _compiled(module, name, arguments)
        keep(sources, file, content)
    return content


@cache
def _say_that_it_takes_time() -> None:
    print("ase-biasgrad: compiling for this machine, once, for half a minute …", file=sys.stderr)


@cache
def _machine() -> str:
    """Everything that code depends on besides its sources."""
    import llvmlite
    import llvmlite.binding as llvm

    chosen = (os.environ.get(f"NUMBA_CPU_{what}", "") for what in ("NAME", "FEATURES"))
    versions = llvmlite.__version__, version("numba")
    host = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return " ".join([llvm.get_process_triple(), *host, *chosen, *versions])


@cache
def _linker() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_lljit_compiler(machine)


def _linked(content: bytes) -> int:
    import llvmlite.binding as llvm

    size = int.from_bytes(content[:8], "little")
    library = llvm.JITLibraryBuilder().add_current_process()
    for code in (content[8 : 8 + size], content[8 + size :]):
        library.add_object_img(code)
    for name, address in _array_memory().items():
        library.import_symbol(f"NRT_{name}", address)
    name = hashlib.sha256(content).hexdigest()
    found = library.export_symbol(ENTRY).link(_linker(), name)
    _LINKED.append(found)
    return int(found[ENTRY])


@cache
def _array_memory() -> dict[str, int]:
    """Addresses of the functions by which kernels get memory: an extension module of Numba, which
    is loaded without the rest of it."""
    numba = find_spec("numba")
    assert numba is not None
    assert numba.origin is not None
    folder = Path(numba.origin).parent / "core" / "runtime"
    finder = FileFinder(str(folder), (ExtensionFileLoader, EXTENSION_SUFFIXES))
    spec = finder.find_spec("_nrt_python")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    helpers: dict[str, int] = module.c_helpers
    return {name: address for name, address in helpers.items() if name.startswith("MemInfo")}


# --- with Numba -----------------------------------------------------------------------------


def _compiled(module: str, name: str, arguments: tuple[Any, ...]) -> bytes:
    """Length of the first, code of a kernel, and code of its entry."""
    import numba

    kernel = getattr(import_module(module), name)
    options = {**kernel.targetoptions, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    bare = numba.jit(**options)(kernel.py_func)
    kinds = tuple(map(_numba_type, arguments))
    bare.compile(kinds)
    made = bare.overloads[kinds]
    code = made.library.serialize_using_object_code()[2][0]
    return len(code).to_bytes(8, "little") + code + _entry_code(made.fndesc, arguments)


def _numba_type(value: Any) -> Any:
    from numba import from_dtype, types

    if isinstance(value, np.ndarray):
        return types.Array(from_dtype(value.dtype), value.ndim, "C")
    if isinstance(value, tuple):
        return types.NamedTuple(list(map(_numba_type, value)), type(value))
    return types.float64 if isinstance(value, (float, np.floating)) else types.int64


def _entry_code(description: Any, arguments: tuple[Any, ...]) -> bytes:
    """Code of the function of a frame, which calls a kernel in Numba's calling convention."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    pointer, number, status = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)
    kinds = [{"p": pointer, "i": number, "f": ir.DoubleType()}[k] for k in _classes(arguments)]
    module = ir.Module("entry")
    module.triple = llvm.get_process_triple()
    signature = ir.FunctionType(status, [pointer, pointer, *kinds])
    kernel = ir.Function(module, signature, description.llvm_func_name)
    entry = ir.Function(module, ir.FunctionType(status, [number]), ENTRY)
    builder = ir.IRBuilder(entry.append_basic_block())

    def loaded(place: int, kind: Any) -> Any:
        address = builder.add(entry.args[0], ir.Constant(number, 8 * place))
        return builder.load(builder.inttoptr(address, kind.as_pointer()))

    values = [loaded(FIRST + k, kind) for k, kind in enumerate(kinds)]
    raised = builder.bitcast(builder.alloca(pointer), pointer)
    builder.ret(builder.call(kernel, [loaded(0, pointer), raised, *values]))
    machine = llvm.Target.from_default_triple().create_target_machine(
        codemodel="jitdefault", jit=True
    )
    code: bytes = machine.emit_object(llvm.parse_assembly(str(module)))
    return code


def _classes(arguments: tuple[Any, ...]) -> Iterator[str]:
    """Kinds of `_numbers`: p for pointers, i for whole numbers, f for floats."""
    for value in arguments:
        if isinstance(value, np.ndarray):
            yield from "ppiip" + 2 * value.ndim * "i"
        elif isinstance(value, tuple):
            yield from _classes(value)
        else:
            yield "f" if isinstance(value, (float, np.floating)) else "i"
