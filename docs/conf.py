"""Sphinx configuration."""

project = "ase-biasgrad"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
autodoc_typehints = "description"
autodoc_mock_imports = ["schnetpack", "pytorch_lightning"]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
exclude_patterns = ["_build"]
