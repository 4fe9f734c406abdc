"""Hardware and versions that a figure was measured on, in one line each."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# libraries of the drivers, and the file of AMD's
CUDA_DRIVERS = {"linux": ("libcuda.so.1",), "win32": ("nvcuda.dll",)}
AMD_DRIVER = Path("/dev/kfd")

PACKAGES = ("ase-biasgrad", "ase", "torch", "schnetpack", "pytorch-lightning", "numpy")


def hardware(device: torch.device | str = "cpu", threads: int | None = None) -> str:
    """The processor, how many of its cores torch uses, and the CUDA device if it is one."""
    import torch

    used = torch.get_num_threads() if threads is None else threads
    line = f"{_processor()}, {used} of {os.cpu_count()} cores"
    if torch.device(device).type == "cuda":
        line = f"{torch.cuda.get_device_name(device)}; {line}"
    return line


def versions() -> str:
    """Python and the packages that a figure depends on."""
    named = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"Python {platform.python_version()}, {named}"


def torch_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one.

    Raises `ValueError` if it is not `cpu` or a CUDA device of this machine.
    """
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(f"cuda:{k}" for k in range(there)), *(["cuda"] if there else [])]
    if name == "auto":
        return torch.device(known[-1])
    if name not in known:
        raise ValueError(f"there is no device {name!r} here; choose of auto, {', '.join(known)}")
    return torch.device(name)


def may_have_cuda() -> bool:
    """False where no driver of a GPU is installed, so that torch, slow to import, need not say."""
    if "torch" in sys.modules:
        return bool(sys.modules["torch"].cuda.is_available())
    return AMD_DRIVER.exists() or any(map(_loads, CUDA_DRIVERS.get(sys.platform, ())))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
