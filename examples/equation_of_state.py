"""Equation of state and phonons of a crystal."""

import numpy as np
from ase import units
from ase.build import bulk
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
