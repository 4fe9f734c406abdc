"""Fused against pairwise layers of the SE(3)-Transformer.

    python tests/benchmarks/se3_fused.py [--batch 64] [--repeats 7] [--device cpu]

All in one run: the N-body network of the paper's size with the same weights in both forms. The
pairwise form is the original's: a radial network per pair of degrees, kernels built per edge,
keys and values apart. Times are medians of alternating repeats, of the processor on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ase_biasgrad.machine import hardware, versions
from ase_biasgrad.training.benchmarks.nbody.network import (
    NBodyNetwork,
    NBodyOptions,
    vectors_and_index,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from se3_plain import PlainSE3Transformer

Run = Callable[[], None]


def clock(device: torch.device) -> float:
    """Seconds: of the processor, or of the wall once the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def medians(runs: dict[str, Run], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each; they take turns, so that a busy machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            began = clock(device)
            run()
            if repeat >= 2:
                seconds[name].append(clock(device) - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def training_step(network: NBodyNetwork, inputs: tuple[Tensor, ...]) -> Run:
    """Forward, backward and a step of Adam."""
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        displacement, velocity = network(*inputs)
        (displacement.square().mean() + velocity.square().mean()).backward()
        optimizer.step()

    return run


def forward(network: NBodyNetwork, inputs: tuple[Tensor, ...]) -> Run:
    """Forward alone, nothing kept."""

    def run() -> None:
        with torch.no_grad():
            network(*inputs)

    return run


def with_low_memory(fused: NBodyNetwork) -> NBodyNetwork:
    """The same network computing kernels again in the backward pass."""
    options = NBodyOptions(**{**vars(fused.options), "low_memory": True})
    network = NBodyNetwork(options).to(fused.output_scale.device)
    network.load_state_dict(fused.state_dict())
    return network


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    shape = (arguments.batch, 5, 3)
    inputs = tuple(
        value.to(device)
        for value in (torch.randn(shape), torch.randn(shape), torch.randn(shape[:2]).sign())
    )
    fused = NBodyNetwork(NBodyOptions()).to(device)
    plain = NBodyNetwork(NBodyOptions()).to(device)
    plain.transformer = PlainSE3Transformer(fused.transformer).to(device)
    low_memory = with_low_memory(fused)
    _, index = vectors_and_index(inputs[0])

    with torch.no_grad():
        outputs = [network(*inputs) for network in (fused, plain, low_memory)]
    for other in outputs[1:]:
        for one, two in zip(outputs[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)

    print(f"{hardware(device)}\n{versions()}")
    print(f"N-body network, batch of {arguments.batch} ({index.shape[1]} edges)\n")
    print("| | forward | training step |\n|---|---|---|")
    rows = {"pairwise": plain, "fused": fused, "fused, low memory": low_memory}
    times = {
        kind: medians(
            {name: make(network, inputs) for name, network in rows.items()},
            arguments.repeats,
            device,
        )
        for kind, make in (("forward", forward), ("step", training_step))
    }
    for name in rows:
        cells = []
        for kind in times:
            seconds, slowest = times[kind][name], times[kind]["pairwise"]
            cells.append(f"{1e3 * seconds:.1f} ms ({slowest / seconds:.1f}×)")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
