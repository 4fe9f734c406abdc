"""Vibrations of an adatom on a slab."""

from ase.build import add_adsorbate, fcc100
from ase.constraints import FixAtoms
from ase.optimize import LBFGS
from ase.vibrations import VibrationsData
from common import copper_checkpoint

from ase_biasgrad import BiasGradCalculator

slab = fcc100("Cu", (2, 2, 2), vacuum=6)
add_adsorbate(slab, "Cu", 1.8, "hollow")
slab.set_constraint(FixAtoms(range(8)))
slab.calc = BiasGradCalculator(copper_checkpoint(), dtype="float64")
LBFGS(slab).run(fmax=0.01, steps=50)
hessian = slab.calc.get_hessian(slab)  # exact, no displacements
vibrations = VibrationsData.from_2d(slab, hessian[-3:, -3:], indices=[8])
print(vibrations.tabulate())
