"""Training states on disk: whole or not at all, also where /tmp is another file system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ase_biasgrad.files import whole_file


class WholeStateFiles(TorchCheckpointIO):
    """Writes states beside their final place and renames them there.

    Lightning's own way writes to the system's temporary folder and moves from there, which between
    file systems is a copy that a full disk or a kill cuts off.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            torch.save(checkpoint, temporary)
