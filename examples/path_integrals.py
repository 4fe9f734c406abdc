"""Path-integral MD of ethanol with i-PI: the kinetic energy of quantum nuclei at 300 K.

Needs i-PI (`pip install 'ipi>=3.3'`). All 16 beads are evaluated in one call of the potential.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.build import molecule

POTENTIAL = "potentials/ethanol_rmd17.safetensors"
BEADS, TEMPERATURE, STEPS, SKIPPED = 16, 300, 400, 150

INPUT = f"""
<simulation verbosity='low'>
  <output prefix='ethanol'>
    <properties stride='1' filename='out'> [step, conserved{{electronvolt}},
      kinetic_cv{{electronvolt}}, potential{{electronvolt}}] </properties>
  </output>
  <total_steps> {STEPS} </total_steps>
  <prng> <seed> 1 </seed> </prng>
  <ffsocket name='biasgrad' mode='unix' pbc='False'>
    <address> ethanol </address>
    <batch_size> {BEADS} </batch_size>
  </ffsocket>
  <system>
    <initialize nbeads='{BEADS}'>
      <file mode='xyz'> ethanol.xyz </file>
      <velocities mode='thermal' units='kelvin'> {TEMPERATURE} </velocities>
    </initialize>
    <forces> <force forcefield='biasgrad'/> </forces>
    <motion mode='dynamics'>
      <fixcom> False </fixcom>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'> 0.5 </timestep>
        <thermostat mode='pile_g'> <tau units='femtosecond'> 20 </tau> </thermostat>
      </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> {TEMPERATURE} </temperature> </ensemble>
  </system>
</simulation>
"""

atoms = molecule("CH3CH2OH", vacuum=8)
cell = "CELL(abcABC): {} {} {} 90 90 90".format(*atoms.cell.lengths())
atoms.write("ethanol.xyz", comment=f"# {cell} positions{{angstrom}} cell{{angstrom}}")
Path("input.xml").write_text(INPUT)
server = subprocess.Popen(["i-pi", "input.xml"], stdout=subprocess.DEVNULL)
driver = [sys.executable, "-m", "ase_biasgrad.cli", "ipi", "ethanol.xyz", "-c", POTENTIAL]
driver += ["--unix", "ethanol", "--wait", "60"]
try:
    subprocess.run(driver, check=True)
    server.wait(timeout=60)
finally:
    server.kill()

conserved, kinetic = np.loadtxt("ethanol.out")[SKIPPED:, 1:3].T
classical = 1.5 * len(atoms) * units.kB * TEMPERATURE
print(f"kinetic energy {kinetic.mean():.2f} eV, of classical nuclei {classical:.2f} eV")
print(f"the conserved quantity fluctuates by {1e3 * conserved.std():.1f} meV")
