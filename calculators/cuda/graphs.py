"""CUDA graphs: a step recorded once and replayed with one launch.

A shape runs as it is the first time, which compiles the kernels, and is recorded the second
time: structures that come only once are not worth a graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ase_biasgrad.calculators.cuda.buffers import Buffers

Shape = tuple[int, int, bool]  # atoms, structures, derivatives
Step = Callable[[Buffers, bool], None]
# shapes that are kept, and atoms in all of them but the latest
MOST_SHAPES, MOST_ATOMS = 8, 200_000


# torch waits for the whole device when it begins to record, which would end another recording
_recording = threading.Lock()
_streams: dict[torch.device, torch.cuda.Stream] = {}


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
class Recording:
    """Buffers of a shape, how often they ran, and the graph over them."""

    buffers: Buffers
    runs: int = 0
    replay: Callable[[], None] | None = None


class Recordings:
    """Recordings of the latest shapes, made by `step`.

    Attributes
    ----------
    captures
        How many graphs have been recorded.
    """

    def __init__(self, step: Step, capture: Callable[[Callable[[], None]], Callable[[], None]]):
        self._step, self._capture = step, capture
        self._of: OrderedDict[Shape, Recording] = OrderedDict()
        self.captures = 0

    def find(
        self, shape: Shape, holds: Callable[[Buffers], bool], make: Callable[[], Buffers]
    ) -> Recording:
        """The recording of a shape; a new one if there is none or its buffers are too small."""
        recording = self._of.pop(shape, None)
        if recording is None or not holds(recording.buffers):
            recording = None  # frees its memory before more is taken
            self._make_room()
            recording = Recording(make())
        self._of[shape] = recording
        return recording

    def run(self, recording: Recording, derivatives: bool) -> None:
        """Run the step over the recording's buffers."""
        recording.runs += 1
        if recording.runs == 2:
            recording.replay = self._capture(lambda: self._step(recording.buffers, derivatives))
            self.captures += 1
        if recording.replay is None:
            self._step(recording.buffers, derivatives)
        else:
            recording.replay()

    def _make_room(self) -> None:
        while self._of and (
            len(self._of) >= MOST_SHAPES or sum(shape[0] for shape in self._of) > MOST_ATOMS
        ):
            self._of.popitem(last=False)
