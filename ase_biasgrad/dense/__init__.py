"""The dense network in plain NumPy: layers with derivatives written by hand."""
