"""SE(3)-Transformer: attention between points that turns with them.

Fuchs, Worrall, Fischer, Welling (2020), "SE(3)-Transformers: 3D roto-translation equivariant
attention networks", NeurIPS, arXiv:2006.10503.

Features are dicts from degree l to tensors `(n, 2l + 1, channels)`. Degree 1 is in Cartesian
order, so that vectors `(n, 3)` go in and come out as they are. An edge points from the centre i,
which receives, to the neighbour j, which sends; its vector is x_j − x_i.
"""

from ase_biasgrad.se3_transformer.fibers import Features, Fiber, uniform_fiber
from ase_biasgrad.se3_transformer.network import SE3Transformer, transformer_blocks

__all__ = ["Features", "Fiber", "SE3Transformer", "transformer_blocks", "uniform_fiber"]
