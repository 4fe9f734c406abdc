"""Mutated files, each known by a seed and a number, so that a case can be repeated."""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

MEMORY = 16 * 2**30  # bytes of addresses; what torch has loaded is some of them

# what a length, a count or an offset is not
LIES = (0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1)
KINDS = ("flip", "flip", "lie", "cut", "take out", "put in", "repeat", "blank")


def mutant(
    content: bytes, seed: int, k: int, places: Sequence[int], kinds: Sequence[str] = KINDS
) -> bytes:
    """Copy number `k` of `content` with one fault, which begins at one of `places`."""
    random = np.random.default_rng([seed, k])
    place, size = places[random.integers(len(places))], int(2 ** random.integers(7))
    before, after = content[:place], content[place:]
    kind = kinds[random.integers(len(kinds))]
    if kind == "flip":
        return before + bytes([after[0] ^ 1 << int(random.integers(8))]) + after[1:]
    if kind == "lie":
        width = (1, 2, 4, 8)[random.integers(4)]
        lie, start = LIES[random.integers(len(LIES))] % 256**width, place // width * width
        return content[:start] + lie.to_bytes(width, "little") + content[start + width :]
    if kind == "cut":
        return before
    if kind == "take out":
        return before + after[size:]
    if kind == "put in":
        return before + random.bytes(size) + after
    if kind == "repeat":  # twice the same key, line or record
        return before + after[:size] + after
    return before + bytes(min(size, len(after))) + after[size:]


def mutants(
    content: bytes,
    count: int,
    seed: int,
    places: Sequence[int] | None = None,
    kinds: Sequence[str] = KINDS,
) -> Iterator[tuple[str, bytes]]:
    """`count` mutants with what to call to have each again; those like `content` are left out.

    Faults begin anywhere, or at one of `places`.
    """
    for k in range(count):
        other = mutant(content, seed, k, places or range(len(content)), kinds)
        if other != content:
            yield f"number {k} of seed {seed}", other


def outcomes(
    cases: Iterable[tuple[str, bytes]],
    path: Path,
    judge: Callable[[Path], str],
    seconds: int = 30,
) -> Counter[str]:
    """Words of `judge` on each case, written to `path`, or "refused" by an error that names it.

    All other exceptions fail, and so do crashes and hangs: reading goes on in processes of their
    own with bounded memory, since readers written in C may take a process with them.
    """
    said: Counter[str] = Counter()
    cases = iter(cases)
    while batch := list(islice(cases, 100)):
        reader, writer = os.pipe()
        if not (child := os.fork()):
            try:
                os.close(reader)
                _judge_batch(batch, path, judge, seconds, writer)
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as results:
            words = [json.loads(line) for line in results]
        end = os.waitpid(child, 0)[1]
        if end or len(words) < len(batch):
            pytest.fail(f"{batch[len(words)][0]}: the process ended by signal {end} (14: it hung)")
        for (name, _), word in zip(batch, words, strict=True):
            if word.startswith("Traceback"):
                pytest.fail(f"{name}:\n{word}")
            said[word] += 1
    return said


def _judge_batch(
    batch: list[tuple[str, bytes]],
    path: Path,
    judge: Callable[[Path], str],
    seconds: int,
    writer: int,
) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    for _, content in batch:
        path.write_bytes(content)
        signal.alarm(seconds)
        try:
            word = judge(path)
        except BaseException as error:
            ours = type(error) is ValueError or type(error).__module__.startswith("ase_biasgrad.")
            word = "Traceback" + traceback.format_exc()[-3000:]
            word = "refused" if ours and str(path) in str(error) else word
        signal.alarm(0)
        os.write(writer, (json.dumps(word) + "\n").encode())
