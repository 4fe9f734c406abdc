"""Vibrations of an adatom on a slab."""

from ase.build import add_adsorbate, fcc100
from ase.constraints import FixAtoms
from ase.optimize import LBFGS
from ase.vibrations import Vibrations
from common import copper_checkpoint

from ase_biasgrad import BiasGradCalculator

slab = fcc100("Cu", (2, 2, 2), vacuum=6)
add_adsorbate(slab, "Cu", 1.8, "hollow")
slab.set_constraint(FixAtoms(range(8)))
slab.calc = BiasGradCalculator(copper_checkpoint(), dtype="float64")
LBFGS(slab).run(fmax=0.01, steps=50)
vibrations = Vibrations(slab, indices=[8])
vibrations.run()
vibrations.summary()
vibrations.clean()
