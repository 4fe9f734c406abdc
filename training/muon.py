"""Muon: momentum whose matrices are made orthogonal, and AdamW for everything else.

The gradient of a layer's matrix is dominated by few directions. Muon replaces its momentum M = UΣVᵀ
by UVᵀ, so that all directions learn at the same pace (Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks"). Five polynomials of odd degree

    X ← a X + (b A + c A²) X,    A = XXᵀ,    X₀ = M / |M|,

do so, the best ones for singular values from 1e-3 to 1 (Amsel et al. 2025, arXiv:2505.16932). Steps
are scaled by 0.2 √max(rows, columns), which makes their root mean square that of AdamW's steps, so
one learning rate serves both (Liu et al. 2025, arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ase_biasgrad.backbones.base import Backbone

MOMENTUM = 0.95
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW
POLYNOMIALS = (  # a, b, c
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
MARGIN = 1.01  # the polynomials have no bound above 1
LIKE_ADAM = 0.2


def hidden_matrices(backbone: Backbone) -> list[nn.Parameter]:
    """Weights `(outputs, inputs)` of linear layers with several inputs and outputs, that learn.

    Those of functions of a distance are left out: they gain nothing, and have the largest matrices.
    """
    found: list[nn.Parameter] = [
        layer.weight  # type: ignore[misc]
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear) and not set(name.split(".")) & set(backbone.radial)
    ]
    return [weight for weight in found if weight.requires_grad and min(weight.shape) > 1]


class Muon(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the other parameters.

    Parameters
    ----------
    matrices
        Weights of hidden layers, each `(outputs, inputs)`.
    others
        Biases, embeddings, scales and all that is no matrix.
    lr
        Learning rate of both.
    weight_decay
        Decoupled weight decay of both.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
    ) -> None:
        # `fused` tells torch where the steps of a state that is read belong
        groups: list[dict[str, Any]] = [{"params": list(matrices)}]
        groups.append({"params": list(others), "fused": True})
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make a step; `closure` finds loss and gradients anew, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        of_matrices, others = self.param_groups
        alike: dict[torch.Size, list[nn.Parameter]] = {}  # one product for all
        for weight in of_matrices["params"]:
            if weight.grad is not None:
                alike.setdefault(weight.shape, []).append(weight)
        for weights in alike.values():
            self._step(weights, of_matrices["lr"], of_matrices["weight_decay"])
        self._adam_step(**others)
        return loss

    def _step(self, weights: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        moved = []
        for weight in weights:
            state, gradient = self.state[weight], weight.grad
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
            moved.append(torch.lerp(gradient, momentum, MOMENTUM))  # Nesterov's form
        directions = orthogonalised(torch.stack(moved))
        scale = lr * LIKE_ADAM * max(weights[0].shape) ** 0.5
        for weight, direction in zip(weights, directions, strict=True):
            weight.mul_(1 - lr * weight_decay).add_(direction, alpha=-scale)

    def _adam_step(
        self, params: list[nn.Parameter], lr: float, weight_decay: float, **_: Any
    ) -> None:
        """A step of AdamW, without what torch's class asks the CUDA driver every time."""
        weights = [weight for weight in params if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] |= {
                    "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        means, squares, steps = (
            [self.state[weight][key] for weight in weights]
            for key in ("exp_avg", "exp_avg_sq", "step")
        )
        gradients = [weight.grad for weight in weights]
        adamw(
            weights, gradients, means, squares, [], steps, fused=True, amsgrad=False,
            beta1=BETAS[0], beta2=BETAS[1], lr=lr, weight_decay=weight_decay, eps=EPSILON,
            maximize=False,
        )  # fmt: skip


def orthogonalised(matrices: Tensor) -> Tensor:
    """UVᵀ of each of the matrices UΣVᵀ, `(b, m, n)`, with singular values of 0.8 to 1.2.

    Those below a thousandth of the norm come out smaller.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT.contiguous() if tall else matrices
    norm = MARGIN * torch.linalg.matrix_norm(x, keepdim=True)
    x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)
    for a, b, c in POLYNOMIALS:  # sums within products: these matrices are small
        square = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
