"""The pictures of the gallery, made by the examples.

    python docs/gallery.py

runs each example that draws a picture in a folder of its own, and copies the pictures to
`docs/pictures`. Takes some minutes.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
SCRIPTS = ("equation_of_state", "neb", "md", "dense_network", "nbody_rollout")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for script in EXAMPLES.glob("*.py"):
            shutil.copy(script, name)
        shutil.copytree(EXAMPLES / "potentials", Path(name) / "potentials")
        for script in SCRIPTS:
            subprocess.run([sys.executable, f"{script}.py"], cwd=name, check=True)
            shutil.copy(Path(name) / f"{script}.png", DOCS / "pictures")


if __name__ == "__main__":
    main()
