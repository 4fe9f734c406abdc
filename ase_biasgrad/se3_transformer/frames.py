"""Frames of edges: rotations that take an edge's direction to the pole of the harmonics, y.

Seen in such a frame a kernel commutes with turns about the pole, so that it couples a component m
with ±m alone, by one number each (Passaro and Zitnick 2023, "Reducing SO(3) convolutions to SO(2)
for efficient equivariant GNNs", ICML, arXiv:2302.03655). Which of the frames about the pole is
taken does not matter, nor where it jumps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ase_biasgrad.se3_transformer.couplings import clebsch_gordan


def edge_frames(vectors: Tensor) -> Tensor:
    """Rotations R `(e, 3, 3)` that turn vectors x `(e, 3)`, not zero, into (0, 1, 0)."""
    pole = vectors / vectors.norm(dim=1, keepdim=True)
    # the axis that is most nearly at right angles
    other = torch.zeros_like(pole).scatter_(1, pole.detach().abs().argmin(dim=1, keepdim=True), 1.0)
    first = torch.linalg.cross(other, pole)
    first = first / first.norm(dim=1, keepdim=True)
    return torch.stack([first, pole, torch.linalg.cross(first, pole)], dim=1)


def wigner_matrices(rotations: Tensor, highest_degree: int) -> list[Tensor]:
    """D_l `(e, 2l + 1, 2l + 1)` of rotations `(e, 3, 3)` for l = 0 to `highest_degree`.

    Each is made of the one before: degree l is in the product of degrees 1 and l − 1.
    """
    matrices = [torch.ones_like(rotations[:, :1, :1]), rotations]
    for degree in range(2, highest_degree + 1):
        before = matrices[-1]
        coupled = _on_device(1, degree - 1, degree, rotations.dtype, rotations.device)
        size = 3 * (2 * degree - 1)
        product = rotations[:, :, None, :, None] * before[:, None, :, None, :]
        matrices.append(coupled.T @ (product.reshape(-1, size, size) @ coupled))
    return matrices[: highest_degree + 1]


@cache
def _on_device(one: int, two: int, degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthonormal map `(components of both, 2l + 1)` from a product of degrees to degree l."""
    coupled = clebsch_gordan(one, two, degree).flatten(0, 1)
    return coupled.to(dtype=dtype, device=device)


@dataclass(frozen=True)
class FrameShape:
    """Which components of which degrees are seen in the frames of edges, and in which order.

    Components come by their order: those of m = 0 for all degrees, then for each m up to
    `highest_order` those of +m for all degrees that have it, and those of −m. `doubled` are
    those of m > 0 there twice, as two rows (f₊, f₋) and (f₋, −f₊): what is odd under reflection
    takes −m to +m and +m to −m with the other sign.
    """

    degrees: tuple[int, ...]
    highest_order: int
    doubled: bool

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """Degree, component m and sign of each row."""
        rows = [(degree, 0, 1) for degree in self.degrees]
        for m in range(1, self.highest_order + 1):
            plus, minus, opposite = (
                [(degree, component, sign) for degree in self.degrees if degree >= m]
                for component, sign in ((m, 1), (-m, 1), (m, -1))
            )
            rows += plus + minus + minus + opposite if self.doubled else plus + minus
        return rows

    @property
    def components(self) -> int:
        """Components of the degrees: Σ (2l + 1)."""
        return sum(2 * degree + 1 for degree in self.degrees)


def frame_matrices(matrices: list[Tensor], shape: FrameShape) -> Tensor:
    """Wigner matrices as one for all degrees of `shape`, `(e, rows, components)`."""
    gather, signs = _layout(shape, len(matrices), matrices[0].dtype, matrices[0].device)
    zero = torch.zeros_like(matrices[0][:, 0])
    flat = torch.cat([*(matrix.flatten(1) for matrix in matrices), zero], dim=1)
    rows = len(gather) // shape.components
    return (flat[:, gather] * signs).view(len(flat), rows, shape.components)


@cache
def _layout(
    shape: FrameShape, degrees: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Place of each entry among all entries of the matrices and a zero, and its sign."""
    first = [0]
    for degree in range(degrees):
        first.append(first[-1] + (2 * degree + 1) ** 2)
    places, signs = [], []
    for row, component, sign in shape.places:
        start = first[row] + (component + row) * (2 * row + 1)
        for degree in shape.degrees:
            width = 2 * degree + 1
            places += list(range(start, start + width)) if degree == row else [first[-1]] * width
            signs += [sign] * width
    return torch.tensor(places, device=device), torch.tensor(signs, dtype=dtype, device=device)


@dataclass(frozen=True)
class MessageShape:
    """Degrees that messages are made of and degrees that they have."""

    degrees_in: tuple[int, ...]
    degrees_out: tuple[int, ...]
    odd_paths: bool

    @property
    def highest_order(self) -> int:
        """Highest order, without its sign, that is coupled."""
        return min(max(self.degrees_in), max(self.degrees_out))

    @property
    def frames(self) -> tuple[FrameShape, FrameShape]:
        """Frames of features and of messages, as far as their orders are coupled."""
        return (
            FrameShape(self.degrees_in, self.highest_order, doubled=self.odd_paths),
            FrameShape(self.degrees_out, self.highest_order, doubled=False),
        )

    @property
    def members(self) -> list[tuple[int, ...]]:
        """Numbers of degrees in and out that have components of each order m."""
        return [
            tuple(sum(k >= m for k in degrees) for degrees in (self.degrees_in, self.degrees_out))
            for m in range(self.highest_order + 1)
        ]

    @property
    def numbers(self) -> int:
        """Numbers per pair of channels in a kernel."""
        parities = 2 if self.odd_paths else 1
        return sum(one * two * (parities if m else 1) for m, (one, two) in enumerate(self.members))

    @property
    def components_out(self) -> int:
        """Components of a message: Σ (2k + 1)."""
        return sum(2 * degree + 1 for degree in self.degrees_out)


@dataclass(frozen=True)
class Frames:
    """Frames of edges that send from `neighbour` `(edges,)`, differentiable in their vectors."""

    matrices: dict[FrameShape, Tensor]  # (edges, rows, components)
    neighbour: Tensor

    @classmethod
    def of(cls, vectors: Tensor, neighbour: Tensor, shapes: Iterable[MessageShape]) -> Frames:
        """All frames that these messages need, from vectors `(edges, 3)`."""
        both = dict.fromkeys(frame for shape in shapes for frame in shape.frames)
        highest = max(max(frame.degrees) for frame in both)
        wigner = wigner_matrices(edge_frames(vectors), highest)
        return cls({frame: frame_matrices(wigner, frame) for frame in both}, neighbour)

    def messages(
        self, features: Tensor, hidden: Tensor, kernels: list[Tensor], shape: MessageShape
    ) -> Tensor:
        """Messages `(edges, channels, components)` along all edges.

        Parameters
        ----------
        features
            Of the points, `(points, components, channels)`.
        hidden
            What the kernels are linear in, `(edges, hidden)`.
        kernels
            Of each order m, `(parities · degrees in · channels in · degrees out · channels out,
            hidden)`.
        """
        to_frame, from_frame = (self.matrices[frame] for frame in shape.frames)
        channels = sum(len(kernel) for kernel in kernels) // shape.numbers // features.shape[2]
        parities = 2 if shape.odd_paths else 1
        rows = [one * (2 * parities if m else 1) for m, (one, _) in enumerate(shape.members)]
        sent = features.index_select(0, self.neighbour)
        seen = torch.bmm(to_frame, sent).split(rows, dim=1)  # (edges, rows, channels in)
        coupled = []
        for m, (inputs, kernel) in enumerate(zip(seen, kernels, strict=True)):
            edges, turns, out = len(hidden), 2 if m else 1, shape.members[m][1]
            width = len(kernel) // (out * channels)  # parities · degrees · channels in
            weights = (hidden @ kernel.T).view(edges, width, out * channels)
            product = torch.bmm(inputs.reshape(edges, turns, width), weights)
            coupled.append(product.view(edges, turns * out, channels))
        return torch.bmm(torch.cat(coupled, dim=1).transpose(1, 2), from_frame)
