"""Progress bars, which a terminal shows and no file or pipe ever gets."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def progress_bar(
    # what to go through; without them the bar is moved by its `update`
    items: Iterable[Any] | None = None,
    description: str = "",
    show: bool = True,  # show it, if the stream is a terminal
    **options: Any,  # others of tqdm
) -> Any:
    """A bar of tqdm on the standard error stream that vanishes when it is done."""
    from tqdm import tqdm

    return tqdm(items, description, disable=None if show else True, leave=False, **options)


def say(line: str) -> None:
    """Print a line on stderr, above a bar that is shown there."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        print(line, file=sys.stderr, flush=True)
