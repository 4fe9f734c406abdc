"""The dense network in plain NumPy: layers with derivatives written by hand."""

from ase_biasgrad.dense.coulomb_matrix import PaddedMolecules, coulomb_matrices, padded
from ase_biasgrad.dense.inputs import Centre, CoulombMatrix, Input, NormOrder, TanhExpansion
from ase_biasgrad.dense.modules import Linear, Module, Output, Sequential, Standardise, Tanh
from ase_biasgrad.dense.potential import DensePotential, load_dense, save_dense

__all__ = [
    "Centre",
    "CoulombMatrix",
    "DensePotential",
    "Input",
    "Linear",
    "Module",
    "NormOrder",
    "Output",
    "PaddedMolecules",
    "Sequential",
    "Standardise",
    "Tanh",
    "TanhExpansion",
    "coulomb_matrices",
    "load_dense",
    "padded",
    "save_dense",
]
