"""Networks as programs of instructions that compiled code executes: energies and forces on a CPU."""
