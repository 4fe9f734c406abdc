"""Options of active learning, kept beside its results."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

EXPLORERS = ("md", "displacements", "relaxation", "strain", "neb")


@dataclass(frozen=True)
class LearnOptions:
    """Options of active learning.

    Attributes
    ----------
    calculator, arguments
        Of the reference, as in `labelling_calculator`.
    temperatures
        Of the dynamics, in K.
    budget
        Labels in all, those that fail included.
    initial, per_round
        Labels before the first training, and in each round.
    members
        Of the committee.
    explorers
        Some of `EXPLORERS`.
    trajectories
        Explorations of each kind from a structure: one from it, the others from the newest labelled
        frames.
    steps, timestep, friction
        Of each trajectory: steps, fs, 1/fs.
    limit
        Expected error of the force on an atom in eV/Å above which an exploration is unsure, and
        learning goes on. It ends at three times that.
    displacement, strain
        Largest root mean square of random displacements in Å, and largest strain.
    training_steps
        Optimizer steps of a member in each round.
    final_steps
        Optimizer steps of the final potential.
    config
        Options of trainings, groups and names as in `biasgrad train --options`.
    """

    calculator: str
    arguments: dict[str, Any] = field(default_factory=dict)
    temperatures: tuple[float, ...] = (300.0,)
    budget: int = 500
    initial: int = 20
    per_round: int = 25
    members: int = 4
    explorers: tuple[str, ...] = ("md",)
    trajectories: int = 4
    steps: int = 2000
    timestep: float = 0.5
    friction: float = 0.02
    limit: float = 0.2
    displacement: float = 0.15
    strain: float = 0.05
    training_steps: int = 1500
    final_steps: int = 6000
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.explorers) - set(EXPLORERS):
            raise ValueError(
                f"explorer {sorted(unknown)[0]!r} is unknown; choose from {', '.join(EXPLORERS)}"
            )
        if not self.explorers:
            raise ValueError("name an explorer at least")
        least = {
            "budget": 1,
            "initial": 10,
            "per_round": 1,
            "members": 2,
            "trajectories": 1,
            "steps": 1,
        }
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}, must be {lowest} or more")
        for name in ("timestep", "friction", "limit", "displacement", "training_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be above zero")
        if self.budget < self.initial:
            raise ValueError(
                f"a budget of {self.budget} labels is less than {self.initial} initial"
            )
        if not all(t > 0 for t in self.temperatures) or not self.temperatures:
            raise ValueError(f"temperatures are {self.temperatures}, must be above 0 K")

    def as_json(self) -> str:
        """JSON text, read by `from_json`."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LearnOptions:
        """Options of `as_json`.

        Raises
        ------
        ValueError
            If it is none.
        """
        try:
            found = json.loads(text)
            for name in ("temperatures", "explorers"):
                found[name] = tuple(found[name])
            return cls(**found)
        except (TypeError, KeyError) as error:
            raise ValueError(f"no options of `biasgrad learn`: {error}") from error
