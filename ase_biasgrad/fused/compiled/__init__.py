"""Networks as programs of instructions for compiled code: energies and forces on a CPU."""
