"""Commands that are killed at a random moment: real processes, real SIGKILL.

Processes are forked from this one, which has loaded torch and compiled the kernels. A moment is an
access to the command's folder, counted by Python's audit hooks, and some time after it: moments are
then as dense as the work on files, and no slow machine moves them all to its imports.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tqdm import tqdm

from ase_biasgrad.cli import main

# tqdm's own lock is shared with forked processes: one killed while it holds it would block all
tqdm.set_lock(threading.RLock())

SECONDS = 300  # a command takes some
SAID = "said.txt"  # in the folder of the command


class _Watch:
    """Accesses to files in `folder`; at number `alarm` the parent is told."""

    folder: Path | None = None
    seen = 0
    alarm = -1
    teller = -1


def _hook(event: str, arguments: tuple) -> None:
    if _Watch.folder is None or not event.startswith(("open", "os.", "shutil.", "tempfile.")):
        return
    folder = str(_Watch.folder)
    for path in arguments[: 1 if event == "open" else 2]:
        if isinstance(path, (str, Path)) and os.path.abspath(path).startswith(folder):
            _Watch.seen += 1
            if _Watch.seen == _Watch.alarm:
                os.write(_Watch.teller, b"!")
            return


sys.addaudithook(_hook)


def length(folder: Path, run: Callable[[], object]) -> tuple[int, float]:
    """Number of times that `run` turns to files in `folder`, and seconds that it takes."""
    _Watch.folder, _Watch.seen, _Watch.alarm = folder.resolve(), 0, -1
    begin = time.monotonic()
    try:
        run()
    finally:
        _Watch.folder = None
    return _Watch.seen, time.monotonic() - begin


def killed(folder: Path, line: list[str], access: int = -1, seconds: float = 0) -> bool:
    """Run `biasgrad` with `line` in `folder` and kill it after so many accesses and that time.

    False if it ended before, which it must do well.
    """
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(reader)
        _Watch.folder, _Watch.seen = folder.resolve(), 0
        _Watch.alarm, _Watch.teller = access, writer
        _end_with(folder, line)
    os.close(writer)
    told = select.select([reader], [], [], SECONDS)[0]
    if not told or os.read(reader, 1):  # else it ended, which closes the pipe
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    assert told, f"biasgrad {' '.join(line)}: not done in {SECONDS} s"
    if os.WIFSIGNALED(status):
        return True
    said = (folder / SAID).read_text()
    assert os.waitstatus_to_exitcode(status) == 0, f"biasgrad {' '.join(line)}: {said}"
    return False


def _end_with(folder: Path, line: list[str]) -> None:
    """Run the command and end this process with its exit code."""
    code = 1
    try:
        os.chdir(folder)
        sys.argv = ["biasgrad", *line]
        with open(SAID, "w") as said, redirect_stdout(said), redirect_stderr(said):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
    finally:
        os._exit(code)
