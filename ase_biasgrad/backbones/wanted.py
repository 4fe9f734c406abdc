"""Whether a backward pass leads on to an input of a function, so that its gradient is needed."""

from __future__ import annotations

from typing import Any

import torch


def is_wanted(ctx: Any, place: int) -> bool:
    """Of the tensors given to the function of `ctx`, whether number `place` is asked for.

    `needs_input_grad` says only whether one could ask. The engine knows of everything but leaves,
    which count as wanted: take a view of them.
    """
    node = ctx.next_functions[place][0]
    if node is None:
        return False
    if hasattr(node, "variable"):
        return True
    # as torch.autograd.graph.register_multi_grad_hook does
    return torch._C._will_engine_execute_node(node)  # type: ignore[attr-defined]
