"""The driver of i-PI: its protocol against ASE's server, batches, errors, and the real i-PI."""

import shutil
import socket
import subprocess
import sys
import threading
import uuid

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import InputError
from ase.calculators.socketio import SocketIOCalculator
from conftest import copper, ethanol, small_potential

from ase_biasgrad import BiasGradCalculator, save_checkpoint
from ase_biasgrad.calculators.ipi import connect, run_driver

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)


@pytest.fixture(scope="module")
def calc():
    """Calculator by autograd: nothing has to be compiled while a server waits."""
    return reference(small_potential("schnet"))


def reference(potential):
    return BiasGradCalculator(potential, dtype="float64", device="cpu", engine="reference")


@pytest.fixture
def name():
    return f"biasgrad_test_{uuid.uuid4().hex[:12]}"


def in_a_thread(function, *args, **keywords):
    """Start; `result()` waits for what comes, an exception too."""
    found = {}

    def run():
        try:
            found["value"] = function(*args, **keywords)
        except Exception as error:
            found["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(120)
        if "error" in found:
            raise found["error"]
        return found["value"]

    return result


class Server:
    """i-PI's side, as version 3.3 sends it: POSDATA and GETFORCE in one piece."""

    def __init__(self, path, connections=1, batch=1):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(connections)
        self.batch, self.count, self.sockets = batch, connections, []

    def accept(self, parameters=""):
        for _ in range(self.count):
            own, _ = self.listener.accept()
            own.settimeout(120)
            self.sockets.append(own)
            text = (parameters + f", batch_size:{self.batch}" * (self.batch > 1)).encode()
            assert self.status(own) == b"NEEDINIT"
            own.sendall(b"INIT".ljust(12) + np.array([0, len(text)], np.int32).tobytes() + text)
            assert self.status(own) == b"READY"

    def status(self, own):
        own.sendall(b"STATUS".ljust(12))
        return self.take(own, 12).strip()

    def take(self, own, count):
        data = own.recv(count, socket.MSG_WAITALL)
        assert len(data) == count
        return data

    def send(self, own, frames):
        cells = b"".join(
            (atoms.cell.array.T / units.Bohr).tobytes() + np.zeros(9).tobytes() for atoms in frames
        )
        count = np.int32(len(frames[0])).tobytes()
        positions = b"".join((atoms.positions / units.Bohr).tobytes() for atoms in frames)
        first = cells + count if self.batch == 1 else count + cells
        own.sendall(b"POSDATA".ljust(12) + first + positions + b"GETFORCE".ljust(12))

    def receive(self, own, n):
        """Energies (eV), forces (eV/Å), virials (eV), extra texts."""
        assert self.take(own, 12).strip() == b"FORCEREADY"
        b = self.batch
        energies = np.frombuffer(self.take(own, 8 * b))
        assert np.frombuffer(self.take(own, 4), np.int32) == n
        forces = np.frombuffer(self.take(own, 24 * n * b)).reshape(b, n, 3)
        virials = np.frombuffer(self.take(own, 72 * b)).reshape(b, 3, 3)
        extras = []
        for _ in range(b):
            length = int(np.frombuffer(self.take(own, 4), np.int32)[0])
            extras.append(self.take(own, length).decode() if length else "")
        return energies * units.Ha, forces * units.Ha / units.Bohr, virials * units.Ha, extras

    def close(self):
        for own in self.sockets:
            own.sendall(b"EXIT".ljust(12))
            own.close()
        self.listener.close()


def beads(count, start=copper):
    frames = [start() for _ in range(count)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=k)
        if not atoms.pbc.any():
            atoms.center(8)
    return frames


def virial(atoms):
    return -atoms.get_volume() * atoms.get_stress(voigt=False)


def test_serves_ase(calc, name):
    """ASE's server speaks the older protocol: one message at a time."""
    atoms = copper()
    wanted = atoms.copy()
    wanted.calc = calc.copy()
    with SocketIOCalculator(unixsocket=name, timeout=120) as server:
        result = in_a_thread(run_driver, calc, copper(seed=3), name)
        atoms.calc = server
        for _ in range(3):
            atoms.rattle(0.02, seed=1)
            wanted.positions = atoms.positions
            np.testing.assert_allclose(atoms.get_forces(), wanted.get_forces(), atol=1e-9)
            np.testing.assert_allclose(atoms.get_stress(), wanted.get_stress(), atol=1e-10)
            assert atoms.get_potential_energy() == pytest.approx(wanted.get_potential_energy())
    assert result().structures == 3


@pytest.mark.parametrize("start", [copper, ethanol])
@pytest.mark.parametrize(("connections", "batch"), [(1, 4), (4, 1), (2, 3), (1, 1)])
def test_beads_are_evaluated_together(calc, tmp_path, start, connections, batch):
    path = str(tmp_path / "socket")
    server = Server(path, connections, batch)
    template = start(seed=5)
    result = in_a_thread(run_driver, calc, template, path, sockets=connections)
    server.accept("weight: 1.0")
    groups = [beads(batch, start) for _ in range(connections)]
    for step in range(2):
        for own, frames in zip(server.sockets, groups, strict=True):
            frames[0].rattle(0.01, seed=step)
            server.send(own, frames)
        for own, frames in zip(server.sockets, groups, strict=True):
            energies, forces, virials, extras = server.receive(own, len(template))
            for k, atoms in enumerate(frames):
                atoms.calc = calc.copy()
                assert energies[k] == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
                np.testing.assert_allclose(forces[k], atoms.get_forces(), atol=1e-8)
                np.testing.assert_allclose(virials[k], virial(atoms), atol=1e-8)
            assert extras == [""] * batch
    server.close()
    served = result()
    assert served.structures == 2 * connections * batch
    if connections == 1:
        assert served.calls == 2
    else:
        assert served.calls <= 2 * connections  # a busy machine may let some come late


def test_padding_is_not_evaluated(calc, tmp_path, monkeypatch):
    sizes = []
    many = calc.evaluate_many
    monkeypatch.setattr(calc, "evaluate_many", lambda s: (sizes.append(len(s)), many(s))[1])
    server = Server(str(tmp_path / "socket"), batch=4)
    result = in_a_thread(run_driver, calc, copper(), str(tmp_path / "socket"))
    server.accept()
    first, last = beads(2)
    server.send(server.sockets[0], [first, last, last, last])
    energies, *_ = server.receive(server.sockets[0], 4)
    assert energies[1] == energies[2] == energies[3] != energies[0]
    server.close()
    result()
    assert sizes == [2]


def test_a_committee_tells_its_spread(tmp_path):
    members = [small_potential("schnet", seed) for seed in range(2)]
    committee = reference(members)
    server = Server(str(tmp_path / "socket"))
    result = in_a_thread(run_driver, committee, copper(), str(tmp_path / "socket"))
    server.accept()
    (atoms,) = beads(1)
    server.send(server.sockets[0], [atoms])
    *_, extras = server.receive(server.sockets[0], 4)
    server.close()
    result()
    atoms.calc = committee
    atoms.get_potential_energy()
    spread = float(extras[0].partition(":")[2].strip(" }"))
    assert spread == pytest.approx(atoms.calc.results["energy_std"], rel=1e-6)


def test_another_number_of_atoms_is_refused(calc, tmp_path):
    server = Server(str(tmp_path / "socket"))
    result = in_a_thread(run_driver, calc, ethanol(), str(tmp_path / "socket"))
    server.accept()
    server.send(server.sockets[0], beads(1))
    with pytest.raises(ValueError, match=r"sends 4 atoms, the structure given has 9 \(C2H6O\)"):
        result()


def test_a_wrapped_molecule_is_refused(calc, tmp_path):
    server = Server(str(tmp_path / "socket"))
    result = in_a_thread(run_driver, calc, ethanol(), str(tmp_path / "socket"))
    server.accept()
    (atoms,) = beads(1, ethanol)
    atoms.positions[3] += atoms.cell[0]
    server.send(server.sockets[0], [atoms])
    with pytest.raises(ValueError, match=r"more than half of i-PI's cell.*pbc='False'"):
        result()


def test_an_unknown_element_is_refused_before_connecting(calc):
    with pytest.raises(InputError, match=r"does not know \['Au'\]"):
        run_driver(calc, Atoms("Au"), "nobody", wait=0)


def test_nobody_answers(name):
    with pytest.raises(ConnectionError, match=rf"no i-PI answers at {name}.*start `i-pi"):
        connect(name, wait=0)
    with socket.socket() as own:
        own.bind(("localhost", 0))
        port = own.getsockname()[1]
    with pytest.raises(ConnectionError, match=rf"no i-PI answers at localhost:{port}"):
        connect(("localhost", port), wait=0)
    with pytest.raises(ConnectionError, match=r"no i-PI answers at no\.such\.host"):
        connect(("no.such.host.invalid", 1), wait=0)


def test_it_waits_for_a_server_that_starts_late(calc, tmp_path):
    path = str(tmp_path / "socket")
    result = in_a_thread(run_driver, calc, copper(), path, wait=30)
    server = Server(path)
    server.accept()
    server.close()
    assert result().calls == 0


def test_others_than_ipi_are_named(calc, tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    result = in_a_thread(run_driver, calc, copper(), str(tmp_path / "socket"))
    other, _ = listener.accept()
    other.sendall(b"HTTP/1.1 400 Bad Request")
    with pytest.raises(ConnectionError, match="not i-PI: it sent 'HTTP"):
        result()


def test_a_server_that_dies_is_named(calc, tmp_path):
    server = Server(str(tmp_path / "socket"))
    result = in_a_thread(run_driver, calc, copper(), str(tmp_path / "socket"))
    server.accept()
    server.sockets[0].sendall(b"POSDATA".ljust(12) + bytes(20))
    server.sockets[0].close()
    with pytest.raises(ConnectionError, match="in the middle of a message"):
        result()


INPUT = """
<simulation verbosity='low'>
  <output prefix='x'>
    <properties stride='1' filename='out'> [step, conserved{{electronvolt}},
      potential{{electronvolt}}] </properties>
  </output>
  <total_steps> 20 </total_steps>
  <ffsocket name='f' mode='{mode}'> <address> {address} </address> {more} </ffsocket>
  <system>
    <initialize nbeads='4'>
      <file mode='xyz'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 100 </velocities>
    </initialize>
    <forces> <force forcefield='f'/> </forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'> <timestep units='femtosecond'> 0.1 </timestep> </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> 100 </temperature> </ensemble>
  </system>
</simulation>
"""


@pytest.mark.skipif(shutil.which("i-pi") is None, reason="i-PI is not installed (pip install ipi)")
@pytest.mark.parametrize(
    ("mode", "batch", "sockets"), [("unix", 4, 1), ("unix", 1, 4), ("inet", 4, 1)]
)
def test_the_real_ipi(tmp_path, name, mode, batch, sockets):
    """Path integrals keep their conserved quantity, and i-PI's potential is ours."""
    atoms = ethanol()
    atoms.center(8)
    cell = "CELL(abcABC): {} {} {} 90 90 90".format(*atoms.cell.lengths())
    atoms.write(tmp_path / "start.xyz", comment=f"# {cell} positions{{angstrom}} cell{{angstrom}}")
    save_checkpoint(tmp_path / "p.safetensors", small_potential("schnet"))
    more = f"<batch_size> {batch} </batch_size>" if batch > 1 else ""
    where = ["--unix", name]
    if mode == "inet":
        with socket.socket() as own:
            own.bind(("localhost", 0))
            port = own.getsockname()[1]
        more += f"<port> {port} </port>"
        where = ["--address", "localhost", "--port", str(port)]
    address = name if mode == "unix" else "localhost"
    (tmp_path / "input.xml").write_text(INPUT.format(mode=mode, address=address, more=more))
    server = subprocess.Popen(["i-pi", "input.xml"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        command = [sys.executable, "-m", "ase_biasgrad.cli", "ipi", "start.xyz"]
        command += ["-c", "p.safetensors", "--dtype", "float64", "--wait", "60", *where]
        done = subprocess.run(
            [*command, "--sockets", str(sockets)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert server.wait(60) == 0
    finally:
        server.kill()
    assert "84 structures in" in done.stdout
    conserved, potential = np.loadtxt(tmp_path / "x.out")[:, 1:].T
    assert np.ptp(conserved) < 0.02 * np.ptp(potential)
    atoms.calc = BiasGradCalculator(tmp_path / "p.safetensors", dtype="float64", device="cpu")
    assert potential[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
