"""Seeded splits of frames into disjoint parts, as index lists."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PARTS = ("train", "validation", "test")
SCHNETPACK = {"train": "train_idx", "validation": "val_idx", "test": "test_idx"}
FEW = 10  # frames to measure errors on


def split_dataset(
    # n, seed, contiguous: as in `random_split`
    n: int,
    # by part, a number of frames, a share of all `n`, or a file for `read_indices`; numbers and
    # shares are drawn from the frames that no file names. None for `test` takes as many frames as
    # validation has, or what is left; 0 leaves it out
    sizes: Mapping[str, int | float | Path | None],
    seed: int,
    contiguous: bool = False,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Sorted frames `(size,)` of each of `PARTS`, and notes that the user should read.

    Raises `ValueError` if files share frames, a part is empty, or the parts need more frames than
    there are.
    """
    files = {
        part: read_indices(size, part, n) for part, size in sizes.items() if isinstance(size, Path)
    }
    named = np.concatenate([np.zeros(0, np.int64), *files.values()])
    if len(twice := np.flatnonzero(np.bincount(named, minlength=n) > 1)):
        raise ValueError(f"{', '.join(files)}: their files share the frames {_listed(twice)}")
    left = np.setdiff1d(np.arange(n), named)
    numbers = {part: size for part, size in sizes.items() if part not in files}
    validation = len(files["validation"]) if "validation" in files else None
    counts, notes = _counts(n, len(left), numbers, validation)
    drawn = random_split(
        len(left), {k: v for k, v in counts.items() if v or k != "test"}, seed, contiguous
    )
    split = files | {part: left[places] for part, places in drawn.items()}
    split = {part: split.get(part, np.zeros(0, np.int64)) for part in PARTS}
    few = [f"{part} ({len(split[part])})" for part in PARTS[1:] if 0 < len(split[part]) < FEW]
    if few:
        notes.append(f"few frames for {' and '.join(few)}: their errors are rough estimates")
    return split, notes


def _counts(
    n: int, left: int, sizes: Mapping[str, int | float | Path | None], validation: int | None
) -> tuple[dict[str, int], list[str]]:
    """Frames of each part to draw from `left` ones, and notes; `validation` frames have a file."""
    counts = {p: _count(p, s, n) for p, s in sizes.items() if isinstance(s, (int, float))}
    raised = [p for p, count in counts.items() if not count and isinstance(sizes[p], float)]
    counts |= dict.fromkeys(raised, 1)
    automatic = "test" in sizes and sizes["test"] is None
    if automatic:
        counts["test"] = counts["validation"] if validation is None else validation
    if raised and isinstance(sizes.get("train"), float):
        counts["train"] = max(
            1, min(counts["train"], left - sum(counts.values()) + counts["train"])
        )
    if automatic:
        counts["test"] = max(0, min(counts["test"], left - sum(counts.values()) + counts["test"]))
    notes = []
    if raised:
        taken = ", ".join(f"{count} {part}" for part, count in counts.items())
        notes.append(f"shares of {n} frames that are less than one frame take one: {taken}")
    if automatic and not counts["test"]:
        notes.append(
            f"no test part: the others take all {n} frames. Errors on validation frames are "
            "flattered, because training chose its best epoch by them"
        )
    return counts, notes


def read_indices(path: Path, part: str, n: int) -> np.ndarray:
    """Sorted frame indices `(k,)`, counted from 0, of a part of `n` frames.

    Reads text with an index in each line (rMD17's `index_test_01.csv`), NPZ files with `train_idx`,
    `val_idx`, `test_idx` (SchNetPack's `split.npz`) and the `split.json` of a run folder. Raises
    `ValueError` if the file holds something else, an index twice, or one that is not among the
    frames.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found = np.ravel(arrays[SCHNETPACK[part]])
        elif path.suffix == ".json":
            found = np.array(json.loads(path.read_text(encoding="utf-8"))[part])
        else:
            words = re.findall(r"[^\s,;]+", path.read_text(encoding="utf-8"))
            found = np.array([int(word) for word in words])
        indices = np.unique(found).astype(np.int64, casting="safe")
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: holds no frame indices of a {part} part: {error}") from error
    if not len(indices) or len(indices) < len(found):
        raise ValueError(f"{path}: names {'a frame twice' if len(indices) else 'no frame'}")
    if len(beyond := indices[(indices < 0) | (indices >= n)]):
        raise ValueError(f"{path}: names the frames {_listed(beyond)}; there are 0…{n - 1}")
    return indices


def _listed(frames: np.ndarray) -> str:
    return ", ".join(map(str, frames[:5])) + (", …" if len(frames) > 5 else "")


def random_split(
    n: int,  # number of frames
    # numbers of frames (integers), or shares of all frames (floats up to 1)
    sizes: dict[str, int | float],
    seed: int,  # the same seed gives the same split
    # give each part one block of consecutive frames, the blocks in random order: frames of one
    # trajectory are correlated, and neighbours in different parts flatter the errors
    contiguous: bool = False,
) -> dict[str, np.ndarray]:
    """Disjoint sorted indices `(size,)` for each name in `sizes`.

    Raises `ValueError` if a size is neither, a part is empty, or together they need more frames
    than there are.
    """
    counts = {name: _count(name, size, n) for name, size in sizes.items()}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"the {name} part of {n} frames would be empty (size {sizes[name]})")
    if (total := sum(counts.values())) > n:
        raise ValueError(f"the parts {counts} need {total} frames, and there are {n}")
    random = np.random.default_rng(seed)
    if not contiguous:
        order = random.permutation(n)
        ends = np.cumsum(list(counts.values()))
        return {
            k: np.sort(order[end - counts[k] : end]) for k, end in zip(counts, ends, strict=True)
        }
    names = list(counts)
    first, parts = 0, {}
    for k in random.permutation(len(names)):
        parts[names[k]] = np.arange(first, first + counts[names[k]])
        first += counts[names[k]]
    return {name: parts[name] for name in names}


def _count(name: str, size: int | float, n: int) -> int:
    """Frames of a part: `size` itself, or that share of `n`, rounded down."""
    if isinstance(size, float) and 0 < size <= 1:
        return int(np.floor(size * n + 1e-9))
    if size != size or size < 0 or size != int(size):
        raise ValueError(f"the size of the {name} part is {size}; give a number or share of frames")
    return int(size)
