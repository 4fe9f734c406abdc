"""Training steps as CUDA graphs: the loss of a batch and its gradients with one launch.

A step on small structures is some hundreds of kernels that take less time than their launches.
Shapes have to come again for this: batches of one kind of molecule have one shape throughout,
others are filled up to one of few with atoms that nothing feels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ase_biasgrad.cuda_graphs import Capture, Recordings, Shape, bucket
from ase_biasgrad.graph import AtomGraph
from ase_biasgrad.training.elastic import Springs
from ase_biasgrad.training.resident import Batch

FEWEST_ATOMS, FEWEST_PAIRS, MOST_SHAPES = 32, 256, 64
FAR = 1000.0  # Å, more than any cutoff

Part = TypeVar("Part", AtomGraph, Batch, Springs)


@dataclass(frozen=True)
class Filled:
    """A batch, and its number of atoms over that of its real ones."""

    batch: Batch
    share: Tensor  # () float64

    @property
    def shape(self) -> Shape:
        graph = self.batch.graph
        return len(graph.numbers), graph.edge_index.shape[1], graph.n_structures

    def tensors(self) -> list[Tensor]:
        """All that there are, in one order."""
        parts = (self.batch.graph, self.batch, self.batch.springs)
        values = [value for part in parts if part is not None for value in vars(part).values()]
        return [value for value in values if isinstance(value, Tensor)] + [self.share]

    def copy(self) -> Filled:
        """The same in memory of its own."""
        springs = self.batch.springs
        batch = replace(
            _copied(self.batch),
            graph=_copied(self.batch.graph),
            springs=None if springs is None else _copied(springs),
        )
        return Filled(batch, self.share.clone())


def as_it_is(batch: Batch) -> Filled:
    """For batches of one shape."""
    return Filled(batch, batch.graph.positions.new_ones(()))


def filled_up(batch: Batch) -> Filled:
    """With atoms and pairs that add nothing to any force, up to the next `bucket` of either.

    The graph must know its forward edges. Energies are of no use afterwards: the added atoms
    count among those of the last structure.
    """
    graph = batch.graph
    assert graph.forward is not None
    assert batch.forces is not None
    n, e = len(graph.numbers), graph.edge_index.shape[1]
    atoms = bucket(n + 2, FEWEST_ATOMS) - n
    pairs = bucket(e // 2, FEWEST_PAIRS) - e // 2
    apart = graph.positions.new_zeros((atoms, 3))
    apart[1:] = FAR
    ends = graph.edge_index.new_tensor([n, n + 1])[:, None].expand(2, pairs)
    filled = replace(
        graph,
        positions=torch.cat([graph.positions, apart]),
        numbers=_repeated(graph.numbers, atoms),
        edge_index=torch.cat([graph.edge_index, ends, ends.flip(0)], dim=1),
        edge_shift=torch.cat([graph.edge_shift, graph.edge_shift.new_zeros((2 * pairs, 3))]),
        batch=_repeated(graph.batch, atoms),
        forward=torch.cat([graph.forward, e + torch.arange(pairs, device=graph.device)]),
    )
    forces = torch.cat([batch.forces, batch.forces.new_zeros((atoms, 3))])
    springs = batch.springs
    if springs is not None:  # what is added has no error that could count in another's row
        springs = replace(springs, row=_repeated(springs.row, atoms))
    share = graph.positions.new_full((), (n + atoms) / n)
    return Filled(replace(batch, graph=filled, forces=forces, springs=springs), share)


class RecordedSteps:
    """Loss and gradients of batches; a shape is recorded the second time that it comes.

    Parameters
    ----------
    loss_of
        Loss `()` float64 of a batch, differentiable in the parameters, and never waiting for the
        device. Means over atoms are to be multiplied by the second argument.
    parameters
        What learns.
    fill
        `as_it_is` or `filled_up`.
    capture
        `ase_biasgrad.cuda_graphs.captured` for the device.
    """

    def __init__(
        self,
        loss_of: Callable[[Batch, Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        fill: Callable[[Batch], Filled],
        capture: Capture,
    ) -> None:
        self._loss_of, self._fill = loss_of, fill
        self._parameters = list(parameters)
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        device = self._parameters[0].device
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self.recordings: Recordings[Filled] = Recordings(capture, MOST_SHAPES, most_atoms=10**6)

    def __call__(self, batch: Batch) -> Tensor:
        """The loss `()`; `set_gradients` comes next."""
        filled = self._fill(batch)
        recording = self.recordings.find(filled.shape, lambda held: True, filled.copy)
        held = recording.buffers
        for target, source in zip(held.tensors(), filled.tensors(), strict=True):
            target.copy_(source)
        self.recordings.run(recording, lambda: self._run(held))
        return self._loss.clone()

    def set_gradients(self) -> None:
        """Let the parameters have the gradients of the last batch, until the next one."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _run(self, held: Filled) -> None:
        loss = self._loss_of(held.batch, held.share)
        gradients = torch.autograd.grad(loss, self._parameters)
        torch._foreach_copy_(self._gradients, list(gradients))
        self._loss.copy_(loss.detach())


def _copied(of: Part) -> Part:
    copies: dict[str, Any] = {k: v.clone() for k, v in vars(of).items() if isinstance(v, Tensor)}
    return replace(of, **copies)


def _repeated(values: Tensor, more: int) -> Tensor:
    """With `more` copies of the last row."""
    return torch.cat([values, values[-1:].expand(more)])
