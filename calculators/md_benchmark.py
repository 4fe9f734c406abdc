"""Times of whole MD steps beside SchNetPack's calculator, autograd and GFN2-xTB, in one run.

All calculators of a comparison have the same random weights and take turns in short runs of
ASE's VelocityVerlet; the fastest run of each counts, which other work on the machine disturbs
least. Absolute times depend on the machine, ratios much less.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_biasgrad.backbones import Backbone, build_backbone
from ase_biasgrad.backbones.schnetpack import SchNetPackBackbone
from ase_biasgrad.calculators.calculator import BiasGradCalculator
from ase_biasgrad.calculators.start_benchmark import seconds_and_memory
from ase_biasgrad.convert import schnetpack_model
from ase_biasgrad.graph import graph_from_atoms, pairs_within
from ase_biasgrad.neighbours import Structure
from ase_biasgrad.potential import Potential

SIZES: dict[str, dict[str, Any]] = {
    "schnet": {"features": 128, "interactions": 6, "cutoff": 5.0, "radial_functions": 50},
    "painn": {"features": 128, "interactions": 3, "cutoff": 5.0, "radial_functions": 20},
    "tensornet": {"features": 64, "interactions": 2, "cutoff": 5.0},
}
LARGE = {"schnet": {"interactions": 3}}  # other sizes for a thousand atoms and more
SCALES = {"schnet": 0.1, "painn": 0.3, "tensornet": 0.3}
# a frame of rMD17's aspirin (Christensen and von Lilienfeld 2020), rounded to 0.01 Å
ASPIRIN = Atoms(
    "C7O3C2OH8",
    [
        [2.01, -1.18, -0.02], [1.21, 1.29, -0.66], [2.95, -0.43, -0.74], [2.45, 0.73, -1.20],
        [-2.80, 2.46, 0.40], [0.64, -0.82, 0.29], [0.34, 0.52, 0.01], [-1.38, -1.62, 1.39],
        [-1.68, 1.39, -1.46], [0.21, -3.05, 0.52], [-0.29, -1.79, 0.86], [-1.72, 1.66, -0.31],
        [-0.82, 1.12, 0.60], [-0.18, -3.73, 1.05], [2.37, -2.09, 0.44], [0.93, 2.30, -0.92],
        [3.91, -0.87, -0.97], [3.13, 1.49, -1.68], [-2.62, 3.47, 0.55], [-3.76, 2.57, -0.16],
        [-2.77, 1.96, 1.42],
    ],
)  # fmt: skip


TWO_EVALUATIONS = """
from ase_biasgrad.calculators.md_benchmark import LARGE, calculator, fluid, random_backbone
atoms = fluid({atoms})
backbone = random_backbone({name!r}, **LARGE.get({name!r}, {{}}))
atoms.calc = calculator(backbone, engine={engine!r})
atoms.get_forces()
atoms.rattle(0.3)
atoms.get_forces()
"""


@dataclass(frozen=True)
class Row:
    """One comparison: ms per step, or Hessian, of ours and of the rival."""

    what: str
    rival: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def molecules() -> dict[str, Atoms]:
    """Ethanol and aspirin."""
    return {"ethanol": molecule("CH3CH2OH"), "aspirin": ASPIRIN.copy()}


def fluid(atoms: int, density: float = 0.1, seed: int = 0) -> Atoms:
    """H, C and O scattered about a cubic grid, periodic, with `density` atoms per Å³."""
    random = np.random.default_rng(seed)
    side, points = (atoms / density) ** (1 / 3), int(np.ceil(atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(points)] * 3), -1).reshape(-1, 3)
    chosen = grid[random.permutation(len(grid))[:atoms]] * (side / points)
    return Atoms(
        random.choice([1, 6, 8], atoms),
        chosen + random.normal(0, 0.15, (atoms, 3)),
        cell=[side] * 3,
        pbc=True,
    )


def random_backbone(name: str, **arguments: Any) -> Backbone:
    """A backbone with random weights, whose forces are of the order of 0.1 eV/Å."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_backbone(name, {**SIZES[name], "scale": SCALES[name], **arguments})


def calculator(backbone: Backbone, **arguments: Any) -> BiasGradCalculator:
    """Ours, at this package's defaults."""
    return BiasGradCalculator(potential(backbone), **{"device": "cpu", **arguments})


def potential(backbone: Backbone) -> Potential:
    """The potential of a backbone, without a bias."""
    return Potential(backbone, elements=[1, 6, 8])


def rival(
    backbone: Backbone, device: str = "cpu", dtype: str = "float32"
) -> tuple[str, Calculator]:
    """SchNetPack's calculator where it has such a network (in float32), else autograd."""
    if dtype == "float32" and isinstance(backbone, SchNetPackBackbone):
        return "SpkCalculator", schnetpack_calculator(backbone, device)
    return "autograd", calculator(backbone, device=device, dtype=dtype, engine="reference")


def schnetpack_calculator(backbone: Backbone, device: str = "cpu") -> Calculator:
    """SchNetPack's `SpkCalculator` with the same weights, energies in eV."""
    assert isinstance(backbone, SchNetPackBackbone)
    model = schnetpack_model(backbone)
    from schnetpack.interfaces import SpkCalculator
    from schnetpack.transform import MatScipyNeighborList

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch.save(model, path)
        return SpkCalculator(
            str(path),  # `model_file` in SchNetPack 2.1, `model` in 2.2
            neighbor_list=MatScipyNeighborList(cutoff=backbone.cutoff),
            energy_unit="eV",
            device=device,
        )


def compared(
    what: str, atoms: Atoms, ours: Calculator, rival: tuple[str, Calculator], seconds: float = 6.0
) -> Row:
    """Both calculators take turns in MD of `atoms` for about `seconds` altogether.

    Runs of ours are so long that they hold several neighbour searches, if there are any.
    """
    runs = [dynamics(atoms, calc) for calc in (ours, rival[1])]
    best = [np.inf, np.inf]
    lengths = [
        _length(run, seconds / 40, fewest) for run, fewest in zip(runs, (50, 2), strict=True)
    ]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for k, (run, length) in enumerate(zip(runs, lengths, strict=True)):
            best[k] = min(best[k], _time_per_step(run, length))
    return Row(what, rival[0], 1e3 * best[0], 1e3 * best[1])


def hessians(what: str, atoms: Atoms, backbone: Backbone, rounds: int = 5) -> Row:
    """Exact Hessians beside central differences by the same engine, in float64, by turns."""
    calc = calculator(backbone, dtype="float64", engine="cpu")
    runs = [lambda _: calc.get_hessian(atoms), lambda _: differences(atoms, calc)]
    for run in runs:
        run(1)  # compilation
    times = [[_time_per_step(run, 1) for run in runs] for _ in range(rounds)]
    ours, theirs = 1000 * np.min(times, axis=0)
    return Row(what, "central differences", float(ours), float(theirs))


def differences(atoms: Atoms, calc: Calculator, step: float = 1e-4) -> np.ndarray:
    """Hessian `(3n, 3n)` in eV/Å² by central differences of forces, of steps in Å."""
    own, rows = atoms.copy(), []
    own.calc = calc
    for k in range(3 * len(atoms)):
        forces = []
        for sign in (1, -1):
            own.positions = atoms.positions
            own.positions.flat[k] += sign * step
            forces.append(own.get_forces().ravel())
        rows.append((forces[1] - forces[0]) / (2 * step))
    return np.array(rows)


def dynamics(atoms: Atoms, calc: Calculator) -> Callable[[int], Any]:
    """Something that runs a number of steps of 0.5 fs, from velocities of 300 K."""
    own = atoms.copy()
    own.calc = calc
    thermalize_momenta(own, 300, rng=np.random.default_rng(0))
    return VelocityVerlet(own, 0.5 * units.fs).run


def _length(run: Callable[[int], Any], seconds: float, fewest: int) -> int:
    """Steps that take about `seconds`, compilation over: `fewest` to 50."""
    run(2)
    return int(np.clip(seconds / _time_per_step(run, 3), fewest, 50))


def _time_per_step(run: Callable[[int], Any], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def before_each(calc: BiasGradCalculator, action: Callable[[], Any]) -> BiasGradCalculator:
    """The same calculator, with an action before every evaluation."""
    evaluate = calc._engine.evaluate

    def prepared(structure: Any, derivatives: bool) -> Any:
        action()
        return evaluate(structure, derivatives)

    calc._engine.evaluate = prepared  # type: ignore[method-assign]
    return calc


def with_fresh_lists(calc: BiasGradCalculator) -> BiasGradCalculator:
    """The same calculator, which searches its neighbours anew at every step."""
    return before_each(calc, calc._engine.reset)


def on_threads(calc: BiasGradCalculator, count: int) -> BiasGradCalculator:
    """The same calculator, on so many threads."""
    return before_each(calc, lambda: torch.set_num_threads(count))


def force_errors(backbone: Backbone, structures: Sequence[Atoms]) -> tuple[float, float]:
    """Largest differences (eV/Å) to autograd in float64: ours, and the rival's in float32."""
    reference = calculator(backbone, dtype="float64", engine="reference")
    both = [calculator(backbone), rival(backbone)[1]]
    worst = [0.0, 0.0]
    for atoms in structures:
        exact = _forces(atoms, reference)
        for k, calc in enumerate(both):
            worst[k] = max(worst[k], float(np.abs(_forces(atoms, calc) - exact).max()))
    return worst[0], worst[1]


def _forces(atoms: Atoms, calc: Calculator) -> np.ndarray:
    own = atoms.copy()
    own.calc = calc
    return own.get_forces()


def floor(backbone: Backbone, atoms: Atoms) -> float:
    """ms that the floating-point operations of SchNet or TensorNet take at sgemm speed here.

    Filters are cubic tables: 3 fused multiply-adds for a value, 2 more for its slope.
    """
    count = {"schnet": _operations_of_schnet, "tensornet": _operations_of_tensornet}[backbone.name]
    pairs, *_ = pairs_within(graph_from_atoms(atoms, backbone.cutoff), backbone.cutoff)
    layers, width = backbone.arguments["interactions"], backbone.arguments["features"]
    return 1e3 * 2 * count(layers, width, len(atoms), len(pairs)) / sgemm_speed()


def _operations_of_schnet(layers: int, width: int, atoms: int, pairs: int) -> int:
    """Fused multiply-adds, forward and backward pass.

    3 L − 1 products with F × F weights each way (the first follows from the element, and nothing
    depends on its derivative); for each pair and feature 5 forward and 10 backward, 5 in the first
    interaction.
    """
    of_pairs = pairs * width * (5 * layers + 10 * (layers - 1) + 5)
    return 2 * (3 * layers - 1) * atoms * width**2 + of_pairs


def _operations_of_tensornet(layers: int, width: int, atoms: int, pairs: int) -> int:
    """Fused multiply-adds, forward and backward pass.

    Products with F × F weights, each way: 9 for the tensors of the embedding, 8 for its scalars,
    18 for each interaction, 3½ for the readout. Products of 3 × 3 matrices, of 27 each: for each
    interaction 3 forward and 6 backward. For each pair and feature 36 forward and 53 backward in
    the embedding (filters 9 and 15, tensors 9 and 17, messages or adjoints 18, slopes 3), 27 and
    54 in each interaction (filters 9 and 15, messages or adjoints 18, slopes 21).
    """
    dense = (41 + 36 * layers) * atoms * width**2
    of_pairs = pairs * width * (36 + 53 + (27 + 54) * layers)
    return dense + 9 * 27 * layers * atoms * width + of_pairs


def sgemm_speed() -> float:
    """Floating-point operations per second of a square float32 product on torch's threads."""
    size = 768
    a, b = torch.rand(2, size, size)
    best = np.inf
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def engine_time(backbone: Backbone, atoms: Atoms, seconds: float = 3.0) -> float:
    """ms of the model alone: one evaluation with forces, without ASE."""
    engine = calculator(backbone)._engine
    numbers = atoms.numbers.astype(np.int64)
    structure = Structure(numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    best, end = np.inf, time.perf_counter() + seconds
    engine.evaluate(structure, True)
    while time.perf_counter() < end:
        start = time.perf_counter()
        engine.evaluate(structure, True)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def peak_memory(name: str, atoms: int, engine: str = "cpu") -> float:
    """Largest memory (MB) of a process that evaluates a fluid, once more with new neighbours."""
    return seconds_and_memory(TWO_EVALUATIONS.format(name=name, atoms=atoms, engine=engine))[1]
