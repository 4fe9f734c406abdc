"""The QM7 ladder: from the mean to the potentials of this package, in one table."""
