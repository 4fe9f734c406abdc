"""Fits in closed form, from small to large, for drivers of kernels and linear models.

Such a fit has no half: it is done or it is not. So small ones come first, and their time tells
whether a larger one will be done in what is left. The best of all, by the force error on validation
frames, is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_biasgrad.training.benchmarks.peers.protocol import Job

MARGIN = 1.3  # of a forecast


@dataclass
class Ladder:
    """Fits of a job, and what they cost.

    Parameters
    ----------
    fit
        Fit a size; what it returns is kept if it is the best.
    error
        Force MAE of a fit on validation frames, eV/Å.
    cost
        Of a size, in any unit; time goes with it.
    """

    job: Job
    fit: Callable[[Any], Any]
    error: Callable[[Any], float]
    cost: Callable[[Any], float]
    best: Any = None
    size: Any = None
    least: float = math.inf
    tried: list[dict[str, Any]] = field(default_factory=list)

    def climb(self, sizes: Sequence[Any]) -> None:
        """Fit sizes in this order until one would not be done in time; the first always is."""
        for size in sizes:
            if self.tried and self.forecast(size) > self.job.left():
                return
            begin = self.job.left()
            found = self.fit(size)
            error = self.error(found)
            seconds = begin - self.job.left()
            self.tried.append({"size": size, "seconds": seconds, "validation_force_mae": error})
            if self.best is None or error < self.least:
                self.best, self.size, self.least = found, size, error

    def forecast(self, size: Any) -> float:
        """Seconds of a fit, from those of the last one."""
        last = self.tried[-1]
        return MARGIN * float(last["seconds"]) * self.cost(size) / self.cost(last["size"])

    def told(self) -> dict[str, Any]:
        """Error and cost of the fits, for `train.json`."""
        if not math.isfinite(self.least):
            raise RuntimeError("no fit has a finite error on validation frames")
        return {"validation_force_mae": self.least, "tried": self.tried}
