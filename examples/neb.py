"""A nudged elastic band: an adatom hops to the next site, one calculator for all images."""

import matplotlib.pyplot as plt
from ase.build import add_adsorbate, fcc100
from ase.constraints import FixAtoms
from ase.mep import NEB, NEBTools
from ase.optimize import FIRE, LBFGS
from common import copper_checkpoint

from ase_biasgrad import BiasGradCalculator

calculator = BiasGradCalculator(copper_checkpoint())
ends = []
for position in ((0, 0), (1, 0)):
    slab = fcc100("Cu", (2, 2, 2), vacuum=6)
    add_adsorbate(slab, "Cu", 1.8, "hollow", offset=position)
    slab.set_constraint(FixAtoms(range(8)))
    slab.calc = calculator
    LBFGS(slab, logfile=None).run(fmax=0.02, steps=50)
    ends.append(slab)
images = [ends[0], *(ends[0].copy() for _ in range(3)), ends[1]]
band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
band.interpolate(mic=True)
for image in images:
    image.calc = calculator
FIRE(band).run(fmax=0.05, steps=40)
energies = [image.get_potential_energy() for image in images]
print(f"barrier {max(energies) - energies[0]:.3f} eV")

figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
NEBTools(images).plot_band(axes)
axes.set(title="a copper atom hops on copper (100)")
figure.savefig("neb.png", dpi=100)
