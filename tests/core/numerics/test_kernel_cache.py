"""Compiled kernels do not outlive their sources."""

from pathlib import Path

import ase_biasgrad.calculators.engines.cpu
import ase_biasgrad.fused
import ase_biasgrad.numerics
from ase_biasgrad.numerics.kernel_cache import forget_stale_kernels


def test_a_changed_source_forgets_what_was_compiled(tmp_path):
    folder, other = tmp_path / "kernels", tmp_path / "other.py"
    cache = folder / "__pycache__"
    cache.mkdir(parents=True)
    (folder / "a.py").write_text("1")
    other.write_text("2")
    compiled = [cache / "a.f-1.py311.nbi", cache / "a.f-1.py311.1.nbc"]
    kept = cache / "a.cpython-311.pyc"
    kept.write_text("")
    for change in (None, folder / "a.py", other, folder / "b.py"):
        for path in compiled:
            path.write_text("machine code")
        if change is not None:
            change.write_text("3")
        forget_stale_kernels(folder, [other])
        assert not any(path.exists() for path in compiled)
        for path in compiled:
            path.write_text("machine code")
        forget_stale_kernels(folder, [other])  # nothing has changed
        assert all(path.exists() for path in compiled)
    assert kept.exists()


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError

    monkeypatch.setattr("ase_biasgrad.numerics.kernel_cache.whole_file", refuse)
    forget_stale_kernels(tmp_path, [])


def test_kernels_of_training_and_of_the_engine_are_looked_after():
    packages = ase_biasgrad.numerics, ase_biasgrad.fused, ase_biasgrad.calculators.engines.cpu
    for folder in (Path(package.__path__[0]) for package in packages):
        assert (folder / "__pycache__" / "kernels.sha256").exists()
