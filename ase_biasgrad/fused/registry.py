"""Choice of the fused form of a backbone."""

from __future__ import annotations

from ase_biasgrad.backbones import Backbone, PaiNN, SchNet, TensorNet
from ase_biasgrad.fused.painn import FusedPaiNN
from ase_biasgrad.fused.schnet import FusedSchNet
from ase_biasgrad.fused.tensornet import FusedTensorNet


def fused_form(backbone: Backbone) -> Backbone:
    """The backbone in its form for training, on the same parameters; itself if it has none."""
    if isinstance(backbone, SchNet):
        return FusedSchNet(backbone)
    if isinstance(backbone, PaiNN):
        return FusedPaiNN(backbone)
    if isinstance(backbone, TensorNet):
        return FusedTensorNet(backbone)
    return backbone
