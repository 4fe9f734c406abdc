"""`python -m ase_biasgrad.cli`."""

from ase_biasgrad.cli import main

main()
