"""Equation of state and phonons of a crystal."""

import matplotlib.pyplot as plt
import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.eos import EquationOfState
from ase.phonons import Phonons
from common import copper_checkpoint

from ase_biasgrad import BiasGradCalculator

calculator = BiasGradCalculator(copper_checkpoint(), dtype="float64")
crystals = [bulk("Cu", a=a) for a in np.linspace(3.5, 3.75, 7)]
results = calculator.evaluate_many(crystals)
state = EquationOfState([c.get_volume() for c in crystals], [r["energy"] for r in results])
volume, _, modulus = state.fit()
lattice = (4 * volume) ** (1 / 3)
print(f"lattice constant {lattice:.3f} Å, bulk modulus {modulus / units.GPa:.0f} GPa")

phonons = Phonons(bulk("Cu", a=lattice), calculator, supercell=(3, 3, 3), delta=0.03)
phonons.run()
phonons.read(acoustic=True)
highest = phonons.band_structure([[0, 0, 0.5]])[0].max()
phonons.clean()
print(f"highest phonon at X/2: {1000 * highest:.1f} meV")

figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
lattices = np.linspace(3.5, 3.75, 60)
volumes = lattices**3 / 4
axes.plot(volumes, [EMT().get_potential_energy(bulk("Cu", a=a)) for a in lattices], color="0.6")
axes.plot([c.get_volume() for c in crystals], [r["energy"] for r in results], "o")
axes.set(
    xlabel="volume, Å³ per atom", ylabel="energy, eV per atom", title="points: potential; line: EMT"
)
figure.savefig("equation_of_state.png", dpi=100)
