"""Other packages' potentials beside ours: the same frames, core and minutes."""
