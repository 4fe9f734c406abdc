"""Training states on disk: whole or not at all, read without running code of theirs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ase_biasgrad.files import whole_file


class WholeStateFiles(TorchCheckpointIO):
    """Writes states beside their final place and renames them there; reads plain values alone.

    Lightning's own way writes to the system's temporary folder and moves from there, which between
    file systems is a copy that a full disk or a kill cuts off.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a state as `read_state` does, whatever Lightning asks for."""
        return read_state(Path(path))


def read_state(path: Path) -> dict[str, Any]:
    """A training state: tensors and plain values.

    Raises `ValueError` if the file holds anything else, which might run code when it is read, or is
    damaged.
    """
    try:
        return torch.load(_checked(path), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(
            f"{path}: cannot be read as a training state of tensors and plain values; files that "
            "hold anything else are not opened, since they could run code. Begin a new run"
        ) from error


def _checked(path: Path) -> io.BytesIO:
    """The parts of a state whose checksums are right, as an archive made anew.

    torch compares no checksums, and finds its parts by other fields of the file than `zipfile`.
    """
    whole = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(whole, "w") as copy:
        if len(set(archive.namelist())) < len(archive.namelist()):
            raise ValueError("parts stand in it twice")
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))  # which compares the checksum
    whole.seek(0)
    return whole
