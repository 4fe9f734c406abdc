"""Sphinx configuration. Pages that begin with a kernel are notebooks and run at every build."""

import os
import sys
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here))
# notebooks run in processes of their own: small networks want one thread, and the pages' scripts
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])

project = "ase-biasgrad"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
nb_render_markdown_format = "myst"
html_theme = "furo"
html_title = "ase-biasgrad"
exclude_patterns = ["_build"]
