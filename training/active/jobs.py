"""Work handed to an executor, whose workers may fail or die."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
)
from contextlib import contextmanager
from typing import Any

from ase_biasgrad.data.labelling import Reference, prepare
from ase_biasgrad.lazy import required

MakeExecutor = Callable[[], Executor]


def process_executor(workers: int, reference: Reference) -> MakeExecutor:
    """Maker of pools of processes that begin empty: they share nothing with this one.

    They have the reference calculator before anything else, and end with this process.
    """
    context = multiprocessing.get_context("spawn")
    return lambda: ProcessPoolExecutor(workers, context, _begin, (reference,))


def _begin(reference: Reference) -> None:
    """Prepare a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(reference)


def _end_with_parent() -> None:
    """End this process when its parent is gone: another one may go on in the same folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def dask_executor(address: str, reference: Reference) -> MakeExecutor:
    """Maker of executors of a running Dask cluster (extra `dask`).

    Raises
    ------
    ModuleNotFoundError
        If Dask's `distributed` is missing.
    """
    distributed = required("distributed", "--dask")

    def make() -> Executor:
        client = distributed.Client(address)
        client.run(prepare, reference)
        return _OfClient(client)

    return make


class _OfClient(Executor):
    """The executor of a Dask client, which ends with it."""

    def __init__(self, client: Any) -> None:
        self._client, self._executor = client, client.get_executor()

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = self._executor.submit(function, *arguments, **keywords)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=wait)
        self._client.close()


class Jobs:
    """Functions run by an executor; one whose worker dies is tried once more, alone."""

    def __init__(self, make: MakeExecutor) -> None:
        self._make = make
        self._executor: Executor | None = None

    def results(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        """Place of the arguments, and result or exception, in the order in which they are done."""
        broken = []
        for k, result in self._together(function, arguments, range(len(arguments))):
            if isinstance(result, (BrokenExecutor, CancelledError)):
                broken.append(k)
            else:
                yield k, result
        if broken:
            self.close()  # this executor takes no more work
        for k in broken:  # which of them killed the worker, shows when it is alone
            for _, result in self._together(function, arguments, [k]):
                yield k, result
                if isinstance(result, BrokenExecutor):
                    self.close()

    def _together(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        places: Sequence[int],
    ) -> Iterator[tuple[int, Any]]:
        waiting: dict[Future[Any], int] = {}
        for k in places:
            try:
                waiting[self._ready().submit(function, *arguments[k])] = k
            except BrokenExecutor as error:  # while the others were handed over
                yield k, error
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except Exception as error:  # whatever a calculator raises
                yield waiting[future], error
            except CancelledError as error:
                yield waiting[future], error

    def _ready(self) -> Executor:
        if self._executor is None:
            self._executor = self._make()
        return self._executor

    def close(self) -> None:
        """End the workers; later work gets new ones."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


@contextmanager
def running(make: MakeExecutor) -> Iterator[Jobs]:
    """Jobs whose executor ends with the block."""
    jobs = Jobs(make)
    try:
        yield jobs
    finally:
        jobs.close()
