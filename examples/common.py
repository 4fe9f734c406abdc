"""A small potential of copper, trained on EMT forces in seconds, for the examples to use.

Replace `copper_checkpoint()` by the path of your own checkpoint.
"""

from pathlib import Path

from ase.build import bulk
from ase.calculators.emt import EMT

from ase_biasgrad import sample
from ase_biasgrad.training import config_from, train


def copper_checkpoint(folder: Path = Path("copper-example"), epochs: int = 20) -> Path:
    """Train once, and find the checkpoint again afterwards."""
    checkpoint = folder / "run" / "potential.safetensors"
    if checkpoint.exists():
        return checkpoint
    folder.mkdir(exist_ok=True)
    data = folder / "copper.h5"
    atoms = bulk("Cu", cubic=True)
    temperatures = (300.0, 900.0)
    sample(atoms, EMT(), data, temperatures=temperatures, frames=60, interval=5, progress=False)
    config = {
        "data": {"path": str(data), "train": 100, "validation": 20, "test": 0},
        "backbone": {"name": "painn", "features": 16, "interactions": 2, "cutoff": 4.5},
        "force_stage": {"epochs": epochs, "batch_size": 4, "learning_rate": 5e-3},
        "trainer": {"progress_bar": False},
    }
    config["force_stage"]["schedule"] = {"warmup_steps": 20}
    return train(config_from(config), folder / "run").checkpoint
