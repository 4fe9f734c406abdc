"""Relax atoms with LBFGS, then atoms and cell together."""

from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from common import copper_checkpoint

from ase_biasgrad import BiasGradCalculator

atoms = bulk("Cu", a=3.7, cubic=True)
atoms.rattle(0.05, seed=0)
atoms.calc = BiasGradCalculator(copper_checkpoint(), dtype="float64")
LBFGS(atoms).run(fmax=0.01)
LBFGS(FrechetCellFilter(atoms)).run(fmax=0.01, steps=100)
print(f"lattice constant {atoms.get_volume() ** (1 / 3):.3f} Å")
