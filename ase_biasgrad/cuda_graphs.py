"""CUDA graphs: a step recorded once and replayed with one launch.

A shape runs as it is the first time, which compiles the kernels, and is recorded the second
time: structures that come only once are not worth a graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Held = TypeVar("Held")
Shape = tuple[int, ...]  # atoms first
Capture = Callable[[Callable[[], None]], Callable[[], None]]

# at most an eighth of a bucket is empty on account of its size
STEPS = 8

# torch waits for the whole device when it begins to record, which would end another recording
_recording = threading.Lock()
_streams: dict[torch.device, torch.cuda.Stream] = {}


def bucket(count: int, smallest: int) -> int:
    """`count` rounded up to one of few sizes: powers of two and seven steps between them."""
    if count <= smallest:
        return smallest
    step = max(1, 2 ** (count - 1).bit_length() // (2 * STEPS))
    return -(-count // step) * step


def captured(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what `run` does on the device; the returned function does it again.

    Other threads may go on using CUDA meanwhile.
    """
    graph = torch.cuda.CUDAGraph()
    with _recording:
        # torch's own stream for this is one for all devices; cuBLAS takes memory for each stream
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)
        torch.cuda.current_blas_handle()  # each thread has its own; none is made while recording
        stream = _streams[device]
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
    return graph.replay


@dataclass
class Recording(Generic[Held]):
    """Buffers of a shape, how often they ran, and the graph over them."""

    buffers: Held
    runs: int = 0
    replay: Callable[[], None] | None = None


class Recordings(Generic[Held]):
    """Recordings of the latest shapes.

    Parameters
    ----------
    capture
        Records a step: `captured` with its device.
    most_shapes, most_atoms
        Shapes that are kept, and atoms in all of them but the latest.

    Attributes
    ----------
    captures
        How many graphs have been recorded.
    """

    def __init__(self, capture: Capture, most_shapes: int = 8, most_atoms: int = 200_000) -> None:
        self._capture = capture
        self._most_shapes, self._most_atoms = most_shapes, most_atoms
        self._of: OrderedDict[Shape, Recording[Held]] = OrderedDict()
        self.captures = 0

    def find(
        self, shape: Shape, holds: Callable[[Held], bool], make: Callable[[], Held]
    ) -> Recording[Held]:
        """The recording of a shape; a new one if there is none or its buffers are too small."""
        recording = self._of.pop(shape, None)
        if recording is None or not holds(recording.buffers):
            recording = None  # frees its memory before more is taken
            self._make_room()
            recording = Recording(make())
        self._of[shape] = recording
        return recording

    def run(self, recording: Recording[Held], step: Callable[[], None]) -> None:
        """Run the step, which works on the recording's buffers and is the same every time."""
        recording.runs += 1
        if recording.runs == 2:
            recording.replay = self._capture(step)
            self.captures += 1
        if recording.replay is None:
            step()
        else:
            recording.replay()

    def _make_room(self) -> None:
        while self._of and (
            len(self._of) >= self._most_shapes
            or sum(shape[0] for shape in self._of) > self._most_atoms
        ):
            self._of.popitem(last=False)
