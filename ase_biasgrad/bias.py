"""The bias: a term of the energy that depends on composition alone.

b(composition) never sees positions, so ∂b/∂R = 0: whatever is done to it, forces, stress and
Hessian of the potential stay the same, bit for bit. It is kept and added in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ase_biasgrad import bias_fits

N_ELEMENTS = 119  # columns of a composition, by atomic number; column 0 stays empty

EnergyZero = Literal["none", "scalar", "per-element", "per-composition"]
BiasMethod = Literal[
    "mean", "median", "efwt", "gradient", "least-squares", "least-absolute-deviation"
]
ELEMENT_METHODS = ("least-squares", "least-absolute-deviation")


class Bias(nn.Module):
    """b = constant + Σ_elements count·per_element + offset of this composition, in eV.

    `zero` says what has been fitted: `none` (nothing: energies have an arbitrary zero),
    `scalar` (one number, known for the compositions it was fitted to), `per-element`, or
    `per-composition` (one number for each composition). `fit_report` holds how, as JSON values.
    """

    constant: Tensor  # () float64
    per_element: Tensor  # (N_ELEMENTS,) float64
    compositions: Tensor  # (k, N_ELEMENTS) int64, what it was fitted to
    offsets: Tensor  # (k,) float64

    def __init__(self) -> None:
        super().__init__()
        self.zero: EnergyZero = "none"
        self.fit_report: dict[str, Any] = {}
        self.register_buffer("constant", torch.zeros((), dtype=torch.float64))
        self.register_buffer("per_element", torch.zeros(N_ELEMENTS, dtype=torch.float64))
        self._set_compositions(np.zeros((0, N_ELEMENTS), np.int64), np.zeros(0))

    def forward(self, numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
        """b of each structure `(b,)` float64 eV; numbers `(n,)`, batch `(n,)`."""
        counts = composition_counts(numbers, batch, n_structures)  # (b, N_ELEMENTS)
        return counts.to(torch.float64) @ self.per_element + self._not_atomic(counts)

    def per_atom(self, numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
        """b split over the atoms, `(n,)` float64 eV: elements on their atoms, the rest evenly."""
        counts = composition_counts(numbers, batch, n_structures)
        spread = self._not_atomic(counts) / counts.sum(dim=1).clamp(min=1)
        return self.per_element[numbers] + spread[batch]

    def _not_atomic(self, counts: Tensor) -> Tensor:
        total = self.constant.expand(len(counts))
        if self.zero != "per-composition":
            return total
        same = (counts[:, None, :] == self.compositions).all(dim=2)  # (b, k)
        return total + same.to(torch.float64) @ self.offsets

    def knows(self, counts: np.ndarray) -> bool:
        """Whether b of a composition `(N_ELEMENTS,)` follows from the data it was fitted to.

        A scalar or per-composition bias knows the compositions of its fit; a per-element bias
        knows every linear combination of them.
        """
        if self.zero == "none" or len(self.compositions) == 0:
            return False
        fitted = self.compositions.cpu().numpy()
        if self.zero != "per-element":
            return bool((fitted == counts).all(axis=1).any())
        combination = np.linalg.lstsq(fitted.T.astype(float), counts.astype(float), rcond=None)[0]
        return bool(np.abs(combination @ fitted - counts).max() < 1e-6)

    def fit(
        self,
        residuals: np.ndarray,
        counts: np.ndarray,
        method: BiasMethod = "mean",
        forces_within: np.ndarray | None = None,
    ) -> None:
        """Fit to r = E_ref − E_model, where E_model is the energy *without* this bias.

        Parameters
        ----------
        residuals
            `(m,)` eV.
        counts
            Compositions of the frames, `(m, N_ELEMENTS)`.
        method
            `mean`, `median`, `efwt` and `gradient` give one number to each composition (`scalar`
            if there is only one, else `per-composition`); `least-squares` and
            `least-absolute-deviation` give one number to each element.
        forces_within
            `(m,)` bool for `efwt`: frames with every force component within 0.03 eV/Å.

        Raises
        ------
        ValueError
            On empty or non-finite residuals, or an unknown method.
        """
        residuals, counts = np.asarray(residuals, np.float64), np.asarray(counts, np.int64)
        if method not in get_args(BiasMethod):
            raise ValueError(f"bias method {method!r} is unknown; use {get_args(BiasMethod)}")
        if counts.shape != (len(residuals), N_ELEMENTS):
            raise ValueError(
                f"{len(residuals)} residuals need compositions of shape "
                f"({len(residuals)}, {N_ELEMENTS}), not {counts.shape}"
            )
        if method in ELEMENT_METHODS:
            self._fit_elements(residuals, counts, method)
        else:
            self._fit_compositions(residuals, counts, method, forces_within)

    def _fit_elements(self, residuals: np.ndarray, counts: np.ndarray, method: str) -> None:
        elements = np.flatnonzero(counts.sum(axis=0))
        solve = (
            bias_fits.least_squares
            if method == "least-squares"
            else bias_fits.least_absolute_deviation
        )
        fit = solve(residuals, counts[:, elements])
        compositions = np.unique(counts, axis=0)
        self._clear()
        self.per_element[torch.from_numpy(elements)] = torch.from_numpy(fit.values).to(
            self.per_element.device
        )
        self._set_compositions(compositions, np.zeros(len(compositions)))
        self.zero = "per-element"
        self._report(residuals, method, rank=fit.rank, elements=len(elements))

    def _fit_compositions(
        self,
        residuals: np.ndarray,
        counts: np.ndarray,
        method: str,
        forces_within: np.ndarray | None,
    ) -> None:
        compositions, frame_of = np.unique(counts, axis=0, return_inverse=True)
        frame_of = frame_of.ravel()
        solve: dict[str, Callable[[np.ndarray], float]] = {
            "mean": lambda frames: bias_fits.mean(residuals[frames]),
            "median": lambda frames: bias_fits.median(residuals[frames]),
            "gradient": lambda frames: bias_fits.gradient_descent(
                residuals[frames], start=bias_fits.mean(residuals[frames])
            ),
            "efwt": lambda frames: bias_fits.efwt_window(
                residuals[frames], None if forces_within is None else forces_within[frames]
            ),
        }
        if len(residuals) == 0:
            bias_fits.mean(residuals)  # raises
        values = np.array([solve[method](frame_of == k) for k in range(len(compositions))])
        self._clear()
        if len(compositions) == 1:
            self.zero = "scalar"
            self.constant.fill_(float(values[0]))
            values = np.zeros(1)
        else:
            self.zero = "per-composition"
        self._set_compositions(compositions, values)
        self._report(residuals, method)

    def add_per_element(self, energies: dict[int, float]) -> None:
        """Add fixed energies per atom (eV, by atomic number), such as atomic references.

        Known for every composition of these elements, so this sets `zero` to `per-element`
        where nothing was fitted yet.
        """
        for number, energy in energies.items():
            self.per_element[number] += energy
        if self.zero == "none":
            self.zero = "per-element"
            rows = np.eye(N_ELEMENTS, dtype=np.int64)[sorted(energies)]
            self._set_compositions(rows, np.zeros(len(rows)))

    def _clear(self) -> None:
        self.constant.zero_()
        self.per_element.zero_()

    def _set_compositions(self, compositions: np.ndarray, offsets: np.ndarray) -> None:
        device = self.constant.device
        self.register_buffer("compositions", torch.from_numpy(compositions).to(device))
        self.register_buffer("offsets", torch.from_numpy(offsets).to(device))

    def _report(self, residuals: np.ndarray, method: str, **more: Any) -> None:
        self.fit_report = {
            "method": method,
            "frames": len(residuals),
            "compositions": len(self.compositions),
            **more,
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bias:
        """Move between devices, but stay float64 under `.float()` or `.to(torch.float32)`."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def composition_counts(numbers: Tensor, batch: Tensor, n_structures: int | None = None) -> Tensor:
    """Atoms of each element in each structure, `(b, N_ELEMENTS)` int64."""
    if n_structures is None:
        n_structures = int(batch.max()) + 1 if len(batch) else 0
    counts = torch.zeros(n_structures * N_ELEMENTS, dtype=torch.int64, device=numbers.device)
    counts.index_add_(0, batch * N_ELEMENTS + numbers, torch.ones_like(numbers))
    return counts.reshape(n_structures, N_ELEMENTS)
