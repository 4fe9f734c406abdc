"""A driver of i-PI that evaluates all structures at hand, beads of a ring polymer, in one call.

i-PI moves the atoms and asks drivers for energies, forces and virials through sockets. Since 3.3 it
can send several structures in one message (`<batch_size>` of `<ffsocket>`); to older versions we
open several sockets, and what comes in on all of them is evaluated together.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.stress import voigt_6_to_full_3x3_stress

if TYPE_CHECKING:
    from ase_biasgrad.calculators.calculator import BiasGradCalculator

Address = tuple[str, int] | str  # host and port, or name of a UNIX socket
HEADER = 12  # bytes
PREFIX = "/tmp/ipi_"  # of UNIX sockets, in i-PI and in ASE
PATIENCE = 2e-3  # s that the first structure waits for those on other sockets
STALLED = 60.0  # s in which the rest of a message must come
BONDED = 1.2  # times the covalent radii


@dataclass
class Served:
    """Work that was done: evaluations of structures, and calls of the potential."""

    structures: int = 0
    calls: int = 0


@dataclass
class Connection:
    """One socket, and where it stands in the protocol."""

    socket: socket.socket
    atoms: Atoms  # the structure whose positions come
    batch: int = 0  # structures of a message, announced in INIT
    waiting: list[Atoms] = field(default_factory=list)
    results: list[tuple[bytes, bytes, bytes, bytes]] = field(default_factory=list)
    open: bool = True

    def receive(self, count: int) -> bytes:
        """`count` bytes of a message that has begun.

        Raises `ConnectionError` if they do not come.
        """
        parts: list[bytes] = []
        left = count
        while left:
            try:
                part = self.socket.recv(left)
            except TimeoutError as error:
                raise ConnectionError(
                    f"i-PI's message stops {left} bytes before its end: <ffsocket> must be of mode "
                    "'inet' or 'unix', not 'shm'"
                ) from error
            if not part:
                raise ConnectionError("i-PI closed the connection in the middle of a message")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def numbers(self, shape: tuple[int, ...], kind: type = np.float64) -> np.ndarray:
        """An array of a message."""
        size = np.dtype(kind).itemsize * int(np.prod(shape))
        return np.frombuffer(self.receive(size), kind).reshape(shape)

    def handle(self) -> None:
        """Read one message and answer what can be answered at once."""
        first = self.socket.recv(1)
        header = (first + self.receive(HEADER - 1)).decode().strip() if first else "EXIT"
        if header == "STATUS":
            state = "HAVEDATA" if self.results else "READY" if self.batch else "NEEDINIT"
            self.socket.sendall(_header(state))
        elif header == "INIT":
            _bead, length = self.numbers((2,), np.int32)
            self.batch = _announced(self.receive(int(length)).decode(errors="replace"))
        elif header == "POSDATA":
            self.batch = self.batch or 1
            self.waiting = self._structures()
        elif header == "GETFORCE":
            self._send_forces()
        elif header == "EXIT":
            self.open = False
        else:
            raise ConnectionError(f"what answers is not i-PI: it sent {header!r}")

    def _structures(self) -> list[Atoms]:
        """Copies of the structure in the cells and with the positions of a message."""
        if self.batch == 1:
            cells = self.numbers((1, 2, 3, 3))  # and their inverses
            count = int(self.numbers((1,), np.int32)[0])
        else:
            count = int(self.numbers((1,), np.int32)[0])
            cells = self.numbers((self.batch, 2, 3, 3))
        if count != len(self.atoms):
            raise ValueError(
                f"i-PI sends {count} atoms, the structure given has {len(self.atoms)} "
                f"({self.atoms.get_chemical_formula()}): give the one that i-PI's input begins "
                "with, its atoms in the same order"
            )
        positions = self.numbers((self.batch, count, 3))
        found = []
        for cell, place in zip(cells[:, 0], positions, strict=True):
            atoms = self.atoms.copy()
            atoms.set_cell(cell.T * units.Bohr)  # i-PI has the vectors in columns
            atoms.positions = place * units.Bohr
            found.append(atoms)
        return found

    def _send_forces(self) -> None:
        """Send the results, in one piece."""
        energies, forces, virials, extras = zip(*self.results, strict=True)
        count = np.int32(len(self.atoms)).tobytes()
        body = [*energies, count, *forces, *virials, *extras]
        self.socket.sendall(b"".join([_header("FORCEREADY"), *body]))
        self.results = []


def connect(address: Address, wait: float = 10.0) -> socket.socket:
    """A socket to i-PI, which may still be starting for `wait` seconds.

    Raises `ConnectionError` if nobody answers; the message says what to do.
    """
    end = time.monotonic() + wait
    while True:
        try:
            return _opened(address)
        except OSError as error:
            if time.monotonic() >= end:
                where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
                raise ConnectionError(
                    f"no i-PI answers at {where} ({error.strerror or error}): start `i-pi "
                    "input.xml` first, and give the address and port, or the name of the UNIX "
                    "socket, that stand in <ffsocket> there"
                ) from error
            time.sleep(min(0.1, wait))


def _opened(address: Address) -> socket.socket:
    unix = isinstance(address, str)
    own = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if isinstance(address, str):
            own.connect(address if "/" in address else PREFIX + address)
        else:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages
            own.connect(address)
    except OSError:
        own.close()
        raise
    own.settimeout(STALLED)
    return own


def run_driver(
    # the potential. It evaluates all structures that wait in one call of `evaluate_many`
    calc: BiasGradCalculator,
    # elements, in i-PI's order of the atoms, and periodicity; i-PI sends neither. Positions and
    # cell come from i-PI
    atoms: Atoms,
    address: Address,  # host and port, or the name of a UNIX socket
    # connections to open: as many as there are beads, unless i-PI sends them in batches
    sockets: int = 1,
    wait: float = 10.0,  # seconds in which i-PI may still be starting
) -> Served:
    """Serve i-PI until it says that it has ended.

    Raises `InputError` if the potential does not know an element of `atoms`, before it connects,
    and `ConnectionError` if i-PI does not answer, or not to the end, and `ValueError` if i-PI has
    another number of atoms, or tears a molecule apart by wrapping it.
    """
    calc.check(atoms)
    served, bonds = Served(), _bonds(atoms)
    connections: list[Connection] = []
    try:
        for _ in range(sockets):
            connections.append(Connection(connect(address, wait), atoms))
        while any(c.open for c in connections):
            _next(calc, [c for c in connections if c.open], bonds, served)
    finally:
        for connection in connections:
            connection.socket.close()
    return served


def _next(
    calc: BiasGradCalculator, connections: list[Connection], bonds: np.ndarray, served: Served
) -> None:
    """Read what has come; where nothing more comes, evaluate what waits."""
    waiting = [c for c in connections if c.waiting]
    others = {c.socket: c for c in connections if not c.waiting}
    if others:
        readable, _, _ = select.select([*others], [], [], PATIENCE if waiting else None)
        for own in readable:
            others[own].handle()
        if readable:
            return
    structures, places = _different([c.waiting for c in waiting])
    for atoms in structures:
        _check_whole(atoms, bonds)
    results = [
        _encoded(*pair) for pair in zip(structures, calc.evaluate_many(structures), strict=True)
    ]
    for connection, place in zip(waiting, places, strict=True):
        connection.results = [results[k] for k in place]
        served.structures += len(connection.waiting)
        connection.waiting = []
    served.calls += 1


def _different(groups: Sequence[Sequence[Atoms]]) -> tuple[list[Atoms], list[list[int]]]:
    """The structures without repetitions of the one before, and where each of a group is found.

    i-PI fills batches up with the last structure.
    """
    found: list[Atoms] = []
    places: list[list[int]] = []
    for group in groups:
        place: list[int] = []
        for atoms in group:
            if not (place and _same(found[-1], atoms)):
                found.append(atoms)
            place.append(len(found) - 1)
        places.append(place)
    return found, places


def _same(one: Atoms, other: Atoms) -> bool:
    return np.array_equal(one.positions, other.positions) and np.array_equal(one.cell, other.cell)


def _bonds(atoms: Atoms) -> np.ndarray:
    """Pairs of atoms `(b, 2)` of a molecule that are bonded where it begins."""
    if atoms.pbc.any():
        return np.zeros((0, 2), int)
    return np.stack(neighbor_list("ij", atoms, natural_cutoffs(atoms, BONDED)), axis=1)


def _check_whole(atoms: Atoms, bonds: np.ndarray) -> None:
    """Refuse a molecule whose atoms were wrapped into i-PI's cell."""
    if not len(bonds) or atoms.cell.rank != 3:
        return
    half = 0.5 / float(np.linalg.norm(atoms.cell.reciprocal(), axis=1).max())
    i, j = bonds.T
    lengths = np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)
    if lengths.max() > half:
        k = int(lengths.argmax())
        raise ValueError(
            f"atoms {i[k]} and {j[k]}, bonded where the structure begins, are {lengths[k]:.1f} Å "
            "apart, more than half of i-PI's cell: i-PI wraps them into it. Say pbc='False' in "
            "<ffsocket>, or give a structure that is periodic"
        )


def _encoded(atoms: Atoms, results: dict[str, Any]) -> tuple[bytes, bytes, bytes, bytes]:
    """Energy, forces, virial and further results in i-PI's units and bytes."""
    virial = np.zeros((3, 3))
    if "stress" in results:
        virial = -atoms.get_volume() * voigt_6_to_full_3x3_stress(results["stress"])
    extra = ""
    if "energy_std" in results:  # of a committee, in eV
        extra = json.dumps({"energy_std": results["energy_std"]})
    return (
        np.float64(results["energy"] / units.Ha).tobytes(),
        (results["forces"] / (units.Ha / units.Bohr)).tobytes(),
        (virial / units.Ha).tobytes(),
        np.int32(len(extra)).tobytes() + extra.encode(),
    )


def _announced(parameters: str) -> int:
    """Structures of each message, of `… , batch_size:8` in INIT."""
    for parameter in parameters.split(","):
        name, _, value = parameter.partition(":")
        if name.strip() == "batch_size":
            return int(value)
    return 1


def _header(text: str) -> bytes:
    return text.ljust(HEADER).encode()
