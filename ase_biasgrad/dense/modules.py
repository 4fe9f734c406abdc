"""Layers of a dense network: `forward`, and derivatives written by hand.

A module keeps what its last `forward` was given, so that `backward` can follow; a network is
therefore used by one thread at a time. All derivatives are exact ones of what `forward` computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np


class Module(ABC):
    """One step of a network; `from_state` makes it again from the arrays of `state()`."""

    ARRAYS: ClassVar[tuple[str, ...]] = ()  # attributes that the constructor takes

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Output for a batch, the first axis of `x`."""

    @abstractmethod
    def backward(self, gradient: Any) -> Any:
        """Derivative by the input of `forward`, from the one by its output; same shapes."""

    @abstractmethod
    def update(self, rate: float) -> None:
        """One step of gradient descent with what the last `backward` was given."""

    @abstractmethod
    def average(self, other: Self, a: float) -> None:
        """Weights become (1 − a) · own + a · other's; `other` has the same shape."""

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that make this module again."""
        return {name: np.array(getattr(self, name)) for name in self.ARRAYS}

    @classmethod
    def from_state(cls, **state: np.ndarray) -> Self:
        """The module that had this state; where not said otherwise, its constructor's arguments."""
        return cls(**state)


class FixedModule(Module):
    """A module with nothing to learn."""

    def update(self, rate: float) -> None:
        """Nothing."""

    def average(self, other: Self, a: float) -> None:
        """Nothing."""


class Linear(Module):
    """y = x W + B, for x `(b, m)`, W `(m, n)`, B `(n,)`; learns 1/√m times as fast as it is told.

    With m inputs of order one, the factor `lr` keeps the change of y by one step independent of m
    (Montavon et al. 2012, NeurIPS 25, 440). W begins as N(0, 1/√m), drawn from `random` or else
    from NumPy's global state (`np.random.seed`), and B as zero.
    """

    def __init__(
        self, m: int, n: int, random: np.random.Generator | None = None, dtype: type = np.float64
    ) -> None:
        normal = np.random.normal if random is None else random.normal
        self.W: np.ndarray = normal(0.0, 1 / np.sqrt(m), (m, n)).astype(dtype)
        self.B: np.ndarray = np.zeros(n, dtype)
        self.lr = 1 / np.sqrt(m)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._x = x.astype(self.W.dtype, copy=False)
        return self._x @ self.W + self.B  # (b, n)

    def receive(self, gradient: np.ndarray) -> None:
        """Keep dE/dy `(b, n)` for `update`; all of `backward` that learning needs here."""
        self._gradient = gradient.astype(self.W.dtype, copy=False)

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        self.receive(gradient)
        return self._gradient @ self.W.T  # (b, m)

    @property
    def DW(self) -> np.ndarray:
        """dE/dW `(m, n)` after `backward`."""
        return self._x.T @ self._gradient

    @property
    def DB(self) -> np.ndarray:
        """dE/dB `(n,)` after `backward`."""
        return self._gradient.sum(axis=0)

    def update(self, rate: float) -> None:
        # the step enters through the small factor: weights are read and written once
        step = self.W.dtype.type(rate * self.lr) * self._gradient  # (b, n)
        self.W -= self._x.T @ step
        self.B -= step.sum(axis=0)

    def average(self, other: Self, a: float) -> None:
        self.W += a * (other.W - self.W)
        self.B += a * (other.B - self.B)

    def state(self) -> dict[str, np.ndarray]:
        return {"weights": self.W, "bias": self.B}

    @classmethod
    def from_state(cls, **state: np.ndarray) -> Self:
        m, n = state["weights"].shape
        layer = cls(m, n, np.random.default_rng(0))
        layer.W, layer.B = np.array(state["weights"]), np.array(state["bias"])
        return layer


class Tanh(FixedModule):
    """y = tanh x, for any shape."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._y = np.tanh(x)
        return self._y

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        return gradient * (1 - self._y**2)


class Standardise(FixedModule):
    """y = (x − mean) / std, for x `(b, m)`, mean `(m,)`, std `(m,)` or one number `()`."""

    ARRAYS = ("mean", "std")

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean, self.std = np.asarray(mean), np.asarray(std)

    @classmethod
    def of(cls, x: np.ndarray, common: bool = False) -> Standardise:
        """Mean and standard deviation of the columns of x `(k, m)`; constant columns keep theirs.

        With `common`, one standard deviation is taken over all entries.
        """
        mean = x.mean(axis=0)
        std = np.sqrt(((x - mean) ** 2).mean(axis=None if common else 0))
        # rounding gives a constant column some 1e-16 of its size
        return cls(mean, np.where(std > 1e-9 * np.abs(x).max(), std, 1.0).astype(x.dtype))

    def forward(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / self.std

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        return gradient / self.std


class Output(FixedModule):
    """Energies `(b,)` float64 = mean + std · x, for x `(b, 1)`.

    Mean and standard deviation (1 if they are all the same) are those of the energies `(k,)` to
    be learnt.
    """

    num_in, ARRAYS = 1, ("mean", "std")

    def __init__(self, energies: np.ndarray) -> None:
        self.mean, self.std = float(np.mean(energies)), float(np.std(energies)) or 1.0

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.mean + self.std * x[:, 0].astype(np.float64)

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        return self.std * gradient[:, None]  # (b, 1)

    @classmethod
    def from_state(cls, **state: np.ndarray) -> Self:
        output = cls(state["mean"])
        output.std = float(state["std"])
        return output


class Sequential(Module):
    """Modules one after another."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = list(modules)

    def forward(self, x: Any) -> Any:
        for module in self.modules:
            x = module.forward(x)
        return x

    def backward(self, gradient: Any) -> Any:
        for module in reversed(self.modules):
            gradient = module.backward(gradient)
        return gradient

    def backward_to_weights(self, gradient: Any) -> None:
        """All of `backward` that `update` needs: it ends at the first layer with weights."""
        first = next(k for k, module in enumerate(self.modules) if isinstance(module, Linear))
        gradient = Sequential(self.modules[first + 1 :]).backward(gradient)
        layer = self.modules[first]
        assert isinstance(layer, Linear)
        layer.receive(gradient)

    def update(self, rate: float) -> None:
        for module in self.modules:
            module.update(rate)

    def average(self, other: Self, a: float) -> None:
        for module, its in zip(self.modules, other.modules, strict=True):
            module.average(its, a)
