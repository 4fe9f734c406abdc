"""The force of a potential in LAMMPS: what `fix external` calls at every step."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import CalculationFailed
from ase.data import chemical_symbols

from ase_biasgrad.calculators.engines.base import Structure
from ase_biasgrad.calculators.engines.cpu.arrangement import ARRANGED_FROM, arranged, z_order
from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine
from ase_biasgrad.calculators.engines.cpu.subdomain import SubDomain
from ase_biasgrad.calculators.extrapolation import ADVICE, ExtrapolationWarning
from ase_biasgrad.calculators.lammps.domain_range import DomainRange
from ase_biasgrad.calculators.lammps.halo import agreed, offered
from ase_biasgrad.calculators.lammps.launch import box
from ase_biasgrad.calculators.spread import expected_errors, off_by
from ase_biasgrad.neighbours import Edges, pairs_within

if TYPE_CHECKING:
    from ase_biasgrad.calculators.calculator import BiasGradCalculator

ROUNDING = 1e-9  # Å, in the bound on displacements
HOLDS, STALE, LOST = range(3)


class LammpsError(RuntimeError):
    """A run of LAMMPS that cannot go on, for a reason that all of its processes know."""


class LammpsForce:
    """Energies, forces and virial of a potential, or the mean of a committee, in one LAMMPS.

    Each process evaluates its own atoms; rows of their neighbours come from the processes that
    evaluate those (`calculators.engines.cpu.subdomain`). Energies are in eV, forces in eV/Å. The
    fix has a vector of two numbers, of a committee: the standard deviation of the energy (ddof=1)
    in eV, and the largest of a component of a force in eV/Å, calibrated where a scale is known.

    A run ends with the first structure outside of the training range if `stop_outside` is set, and
    where the force on an atom is expected to be off by more than `stop_spread` eV/Å. `stop_reason`
    then says why.
    """

    def __init__(
        self,
        lmp: Any,
        fix: str,  # name of its `fix external`
        calculator: BiasGradCalculator,
        elements: Sequence[int],  # atomic number of each type
        skin: float,  # Å beyond the cutoff that neighbour lists reach
    ) -> None:
        from mpi4py import MPI

        engine = calculator._engine
        assert isinstance(engine, CpuEngine)
        self.mpi = MPI
        self.lmp, self.fix, self.calculator, self.skin = lmp, fix, calculator, skin
        self.comm = lmp.get_mpi_comm().Dup()
        self.numbers = np.array([0, *elements], np.int64)  # by type, from 1
        self.engine = engine
        self.cutoff, self.members = self.engine.cutoff, len(self.engine.networks)
        self.domain: SubDomain | None = None
        self.energy, self.strain_gradient = math.nan, np.empty((self.members, 3, 3))
        self.counts: np.ndarray | None = None  # of each type
        self.range: DomainRange | None = None
        self.outside: str | None = None
        self.told = self.stop_outside = False
        self.stop_spread: float | None = None
        self.stop_reason: str | None = None
        self.error: Exception | None = None

    def __call__(
        self, _: Any, step: int, count: int, tags: np.ndarray, x: np.ndarray, forces: np.ndarray
    ) -> None:
        """Write the forces `(n, 3)` of own atoms, and set energy and virial."""
        try:
            self._call(step, count, forces)
        except LammpsError as error:
            self._stop(error, forces)
        except Exception as error:
            if self.comm.size > 1:  # the others wait for this one
                traceback.print_exc()
                self.comm.Abort(1)
            self._stop(error, forces)

    def total_strain_gradient(self) -> np.ndarray:
        """∂E/∂ε of the last step `(3, 3)` in eV, symmetric; every process must ask."""
        total = self.strain_gradient.mean(axis=0)  # of the committee
        self.comm.Allreduce(self.mpi.IN_PLACE, total)
        return (total + total.T) / 2

    def _stop(self, error: Exception, forces: np.ndarray | None) -> None:
        """End the run without another step; the command that runs raises the error."""
        self.error = error
        if forces is not None:
            forces[:] = 0.0
        self.lmp.force_timeout()

    def raise_error(self) -> None:
        """Raise what a run ended with, if so."""
        if self.error is not None:
            error, self.error, self.domain = self.error, None, None
            self.lmp.command("timer timeout off")
            raise error

    def _call(self, step: int, count: int, forces: np.ndarray) -> None:
        x = _array(self.lmp, "x", np.empty((count, 3)))
        cell, origin, pbc = box(self.lmp)
        x = x - origin
        if 0 < step == self.lmp.extract_global("vflag_atom"):
            raise LammpsError(
                f"step {step}: virials by atom are asked for (`compute stress/atom` or the like), "
                "which the potential does not give"
            )
        state = np.array(self._state(x, cell))
        self.comm.Allreduce(self.mpi.IN_PLACE, state, op=self.mpi.MAX)
        if state == LOST:
            raise LammpsError(f"step {step}: positions of atoms are not finite")
        if state == STALE:
            self._arrange(x, cell, pbc)
        assert self.domain is not None
        found, outside = self.domain.evaluate(x[self.order], cell, self.halo), None
        if self.range is not None:
            found, outside = self.range.applied(self.domain.positions, cell, found)
        assert found.forces is not None
        assert found.strain_gradient is not None
        energies = found.energies + self.bias  # (members, n)
        broken = not (np.isfinite(found.forces).all() and np.isfinite(energies).all())
        sums = np.array([*energies.sum(axis=1), broken, outside is not None], float)
        self.comm.Allreduce(self.mpi.IN_PLACE, sums)
        if sums[-2]:
            raise CalculationFailed(
                f"step {step}: energies or forces came out as NaN or infinity: "
                f"{self.calculator.advice}"
            )
        self._say(outside, bool(sums[-1]))
        self.energy = float(sums[: self.members].mean())
        self.strain_gradient = found.strain_gradient
        self._give(sums[: self.members], energies, found, count, forces)

    def _say(self, outside: str | None, anywhere: bool) -> None:
        """Tell once, on the first process, how the structure is outside of the training range."""
        self.outside = self.stop_reason = None
        if anywhere and not (self.told and not self.stop_outside):
            messages = [message for message in self.comm.allgather(outside) if message]
            self.outside = messages[0]
            if not self.told and self.comm.rank == 0:
                warnings.warn(f"{messages[0]}. {ADVICE}", ExtrapolationWarning, stacklevel=2)
            self.told = True
        if self.outside and self.stop_outside:
            self._end(self.outside)

    def _end(self, reason: str) -> None:
        """End the run with this step, for a reason that all processes know."""
        self.stop_reason = reason
        self.lmp.force_timeout()

    def _state(self, x: np.ndarray, cell: np.ndarray) -> int:
        if not (np.isfinite(x).all() and np.isfinite(cell).all()):
            return LOST
        # LAMMPS has just moved atoms between processes, or a list does not hold any longer
        moved = self.domain is None or self.lmp.extract_setting("neigh_ago") == 0
        return STALE if moved or not self._holds(x, cell) else HOLDS

    def _give(
        self, total: np.ndarray, energies: np.ndarray, found: Any, count: int, forces: np.ndarray
    ) -> None:
        lmp, mean = self.lmp, found.forces.mean(axis=0)
        if count:
            forces[self.order] = mean
            by_atom = np.empty(count)
            by_atom[self.order] = energies.mean(axis=0)
            lmp.numpy.fix_external_set_energy_peratom(self.fix, by_atom)
        lmp.fix_external_set_energy_global(self.fix, float(total.mean()))
        s = -found.strain_gradient.mean(axis=0) * self.comm.size  # LAMMPS takes the mean
        s = (s + s.T) / 2
        virial = [s[0, 0], s[1, 1], s[2, 2], s[0, 1], s[0, 2], s[1, 2]]
        lmp.fix_external_set_virial_global(self.fix, virial)
        if self.members > 1:
            forces_std = found.forces.std(axis=0, ddof=1)
            self._give_spreads({"energy_std": float(total.std(ddof=1)), "forces_std": forces_std})

    def _give_spreads(self, results: dict[str, Any]) -> None:
        """Tell spreads over the members, of the energy and of the forces on own atoms."""
        numbers, tags = self.own
        if self.calculator.calibration is not None:
            self.calculator.calibration.calibrate(results, numbers)
        forces = results["forces_std"]  # (n, 3)
        largest = np.array([forces.max(initial=0.0)])
        self.comm.Allreduce(self.mpi.IN_PLACE, largest, op=self.mpi.MAX)
        self.lmp.fix_external_set_vector(self.fix, 1, results["energy_std"])
        self.lmp.fix_external_set_vector(self.fix, 2, float(largest[0]))
        if self.stop_spread is not None:
            errors = expected_errors(forces)
            furthest = [int(errors.argmax())] if len(errors) else []
            here = [(float(errors[k]), int(tags[k]) - 1, int(numbers[k])) for k in furthest]
            error, atom, number = max(chain.from_iterable(self.comm.allgather(here)))
            if error > self.stop_spread:
                self._end(off_by(atom, number, error, self.stop_spread))

    # --- once for each neighbour list ---------------------------------------------------------

    def _arrange(self, x: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        """Find the atoms of other processes that are near, and the edges."""
        n, reach = len(x), self.cutoff + self.skin
        types, tags = (_array(self.lmp, name, np.empty(n, np.int32)) for name in ("type", "id"))
        self._count(types, cell, pbc)
        labels = np.stack([self.numbers[types], tags], axis=1)  # (n, 2)
        structure = Structure(labels[:, 0], x, cell, pbc)
        self.order = z_order(structure) if n >= ARRANGED_FROM else np.arange(n)
        positions, labels = x[self.order], labels[self.order]
        known = offered(self.comm, positions, labels, cell, pbc, reach)
        everyone = np.concatenate([positions, known.positions])
        edges = pairs_within(everyone, cell, pbc, reach)
        edges = edges.select(edges.centre < n)
        needed = np.unique(edges.neighbour[edges.neighbour >= n])
        row = np.arange(len(everyone))
        row[needed] = n + np.arange(len(needed))
        self.halo = agreed(self.comm, known, needed - n, n)
        numbers, tags = np.concatenate([labels, known.labels[needed - n]]).T.copy()
        edges = Edges(edges.centre, row[edges.neighbour], edges.shift)
        candidates = arranged(edges.centre, edges.neighbour, edges.shift, n)
        self.domain = SubDomain(self.engine.networks, numbers, candidates)
        self.own = numbers[:n], tags[:n]
        self.bias = self.bias_by_number[:, numbers[:n]]
        if (check := self.calculator._range) is not None:
            rows = np.concatenate([positions, known.positions[needed - n]])
            structure = Structure(numbers, rows, cell, pbc)
            repels = self.calculator.repulsion
            self.range = DomainRange(check, structure, tags, edges, n, self.skin, repels)
        self.listed = x, cell

    def _count(self, types: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        """Find the bias of each element in this composition, and refuse to lose atoms."""
        counts = np.bincount(types, minlength=len(self.numbers))  # by type
        self.comm.Allreduce(self.mpi.IN_PLACE, counts)
        total = int(self.lmp.get_natoms())
        if counts.sum() != total:
            raise LammpsError(f"{total - counts.sum()} of {total} atoms were lost")
        if self.counts is not None and np.array_equal(self.counts, counts):
            return
        smallest = counts // max(1, np.gcd.reduce(counts))  # a bias is proportional to its size
        if smallest.sum() == 1 < total:
            smallest *= 2  # one atom alone would be isolated
        numbers = np.repeat(self.numbers, smallest)
        structure = Structure(numbers, np.zeros((len(numbers), 3)), cell, pbc)
        with warnings.catch_warnings():
            if self.comm.rank:
                warnings.simplefilter("ignore")  # once is enough
            bias = self.calculator._bias_per_atom(structure)[0]  # (members, n)
        self.bias_by_number = np.zeros((self.members, len(chemical_symbols)))
        self.bias_by_number[:, numbers] = bias
        self.counts = counts

    def _holds(self, x: np.ndarray, cell: np.ndarray) -> bool:
        """True if no two atoms can have come within the cutoff that the list does not have.

        As in `VerletList`, but atoms of other processes may have moved as far as those here.
        """
        old, old_cell = self.listed
        if len(old) != len(x):
            return False
        stretch = 1.0
        if not np.array_equal(cell, old_cell):
            deformation = np.linalg.solve(old_cell, cell)
            old = old @ deformation
            stretch = np.linalg.svd(deformation, compute_uv=False).min()
        moved = x - old
        furthest = math.sqrt(np.einsum("nk,nk->n", moved, moved).max(initial=0.0))
        return bool(stretch * (self.cutoff + self.skin) - 2 * furthest >= self.cutoff + ROUNDING)


def _array(lmp: Any, name: str, like: np.ndarray) -> np.ndarray:
    """Data of own atoms as LAMMPS holds them; without atoms it holds none."""
    return lmp.numpy.extract_atom(name, nelem=len(like)) if len(like) else like  # type: ignore[no-any-return]
