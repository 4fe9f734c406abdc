"""Interatomic potentials trained on forces, given their energy by a bias, run in ASE.

Importing this package loads neither torch nor ASE's calculators: names are resolved on first use.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from ase_biasgrad.lazy import lazy_names

if TYPE_CHECKING:
    from ase_biasgrad.backbones import build_backbone
    from ase_biasgrad.bias import Bias
    from ase_biasgrad.bias_file import load_bias, save_bias
    from ase_biasgrad.calculators import BiasedCalculator, BiasGradCalculator
    from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
    from ase_biasgrad.composition_fit import Anchors
    from ase_biasgrad.convert import convert_schnetpack
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.data.importers import ImportOptions, import_files
    from ase_biasgrad.data.sampling import sample
    from ase_biasgrad.data.writer import DatasetAppender, DatasetWriter
    from ase_biasgrad.potential import Potential

__version__ = version("ase-biasgrad")
__all__ = [
    "Anchors",
    "Bias",
    "BiasGradCalculator",
    "BiasedCalculator",
    "Dataset",
    "DatasetAppender",
    "DatasetWriter",
    "ImportOptions",
    "Potential",
    "build_backbone",
    "convert_schnetpack",
    "import_files",
    "load_bias",
    "load_checkpoint",
    "sample",
    "save_bias",
    "save_checkpoint",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Anchors": "ase_biasgrad.composition_fit",
        "Bias": "ase_biasgrad.bias",
        "BiasGradCalculator": "ase_biasgrad.calculators",
        "BiasedCalculator": "ase_biasgrad.calculators",
        "Dataset": "ase_biasgrad.data.dataset",
        "DatasetAppender": "ase_biasgrad.data.writer",
        "DatasetWriter": "ase_biasgrad.data.writer",
        "ImportOptions": "ase_biasgrad.data.importers",
        "Potential": "ase_biasgrad.potential",
        "build_backbone": "ase_biasgrad.backbones",
        "convert_schnetpack": "ase_biasgrad.convert",
        "import_files": "ase_biasgrad.data.importers",
        "load_bias": "ase_biasgrad.bias_file",
        "load_checkpoint": "ase_biasgrad.checkpoint",
        "sample": "ase_biasgrad.data.sampling",
        "save_bias": "ase_biasgrad.bias_file",
        "save_checkpoint": "ase_biasgrad.checkpoint",
    },
)
