"""95 % intervals of the bias against compositions and frames that it was not fitted to.

    python tests/benchmarks/bias_intervals.py --qm7 qm7_7101.npz --multi train.xyz test.xyz

QM7: atomization energies by composition alone, and on top of GFN2-xTB (tblite). Each composition
is left out of a fit to all others, and the interval b ± t·√(error² + that of the mean²) is asked to
hold the mean of its frames; then a fifth of the compositions at a time. `--multi`: two
compositions in extended XYZ; fits to 25 random frames of each are asked for the mean of the rest.
Prints Markdown tables, and the time of fits to 100 000 made-up frames.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import read
from scipy.stats import t as student
from tblite.ase import TBLite  # before torch: on Python 3.11 it does not load after it

from ase_biasgrad.bias import N_ELEMENTS, Bias
from ase_biasgrad.bias_errors import RowMeans, row_means

KCAL = units.kcal / units.mol
METHODS = ("least-squares", "huber", "ridge", "least-absolute-deviation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qm7", type=Path)
    parser.add_argument("--multi", type=Path, nargs="*")
    parser.add_argument("--every", type=int, default=1, help="take each so many-th molecule of QM7")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--draws", type=int, default=400, help="of frames of --multi")
    parser.add_argument("--frames", type=int, default=100_000, help="of the timed fits")
    options = parser.parse_args()
    if options.qm7:
        qm7(options.qm7, options.every, options.methods)
    if options.multi:
        multi([atoms for path in options.multi for atoms in read(path, ":")], options.draws)
    timed(options.frames)


def qm7(path: Path, every: int, methods: Sequence[str]) -> None:
    stored = np.load(path)
    numbers, positions = stored["Z"][::every].astype(int), stored["R"][::every]
    energies = stored["T"][::every] * KCAL
    molecules = [Atoms(z[z > 0], r[z > 0]) for z, r in zip(numbers, positions, strict=True)]
    counts = np.stack([np.bincount(z[z > 0], minlength=N_ELEMENTS) for z in numbers])
    models = {"composition alone": 0.0 * energies, "GFN2-xTB": gfn2(molecules)}
    print("\n| model | method | before | MAE, kcal/mol | held out | covered, one | a fifth |")
    print("|---|---|---|---|---|---|---|")
    for model, known in models.items():
        before = atomization(known, counts) if known.any() else known
        for method in methods:
            residuals, bias = energies - known, Bias()
            bias.fit(residuals, counts, method)
            mae = np.abs(residuals - counts @ bias.per_element.numpy()).mean() / KCAL
            one, groups = coverage(residuals, counts, method)
            print(
                f"| {model} | {method} | {np.abs(energies - before).mean() / KCAL:.1f} | {mae:.2f} "
                f"| {len(one)} | {share(one)} | {share(groups)} |",
                flush=True,
            )


def share(held: list[bool]) -> str:
    return f"{np.mean(held):.3f}" if held else "–"


def gfn2(molecules: list[Atoms]) -> np.ndarray:
    """Energies in eV, `(m,)`."""
    energies = []
    for molecule in molecules:
        molecule.calc = TBLite(method="GFN2-xTB", verbosity=0)
        energies.append(molecule.get_potential_energy())
    return np.array(energies)


def atomization(energies: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Energies less those of GFN2-xTB's own isolated atoms."""
    used = np.flatnonzero(counts.any(axis=0))
    return energies - counts[:, used] @ gfn2([Atoms([z]) for z in used])


def coverage(
    residuals: np.ndarray, counts: np.ndarray, method: str, splits: int = 10
) -> tuple[list[bool], list[bool]]:
    """For held-out compositions, True where the interval holds the mean: one, and a fifth."""
    rows, row_of = np.unique(counts, axis=0, return_inverse=True)
    row_of = row_of.ravel()
    means = row_means(residuals, row_of)
    one = []
    if method != "least-absolute-deviation":  # a linear programme for each would take minutes
        for k in range(len(rows)):
            one += held(residuals, counts, row_of, means, np.array([k]), method)
    groups, random = [], np.random.default_rng(0)
    for _ in range(splits if method != "least-absolute-deviation" else 2):
        for out in np.array_split(random.permutation(len(rows)), 5):
            groups += held(residuals, counts, row_of, means, out, method)
    return one, groups


def held(
    residuals: np.ndarray,
    counts: np.ndarray,
    row_of: np.ndarray,
    means: RowMeans,
    out: np.ndarray,
    method: str,
) -> list[bool]:
    """Coverage of compositions left out of a fit, those that it determines."""
    within = np.isin(row_of, out)
    bias, found = Bias(), []
    bias.fit(residuals[~within], counts[~within], method)
    reach = student.ppf(0.975, bias.fit_report["spare_compositions"])
    for k in out:
        n = counts[row_of == k][:1]
        error = float(bias.standard_error(n)[0])
        if np.isfinite(error):
            b = float((n @ bias.per_element.numpy())[0])
            total = np.hypot(error, np.sqrt(means.of_means[k]))
            found.append(bool(abs(means.means[k] - b) <= reach * total))
    return found


def multi(frames: list[Atoms], draws: int) -> None:
    energies = np.array([atoms.get_potential_energy() for atoms in frames])
    counts = np.stack([np.bincount(atoms.numbers, minlength=N_ELEMENTS) for atoms in frames])
    kinds, kind_of = np.unique(counts, axis=0, return_inverse=True)
    kind_of, random = kind_of.ravel(), np.random.default_rng(0)
    models = {"composition alone": 0.0 * energies, "GFN2-xTB": gfn2(frames)}
    print("\n| model | method | composition | frames | covered |")
    print("|---|---|---|---|---|")
    for model, known in models.items():
        for method in ("mean", "median", "least-squares", "huber"):
            hit = np.zeros(len(kinds))
            for _ in range(draws):
                chosen = [random.permutation(np.flatnonzero(kind_of == k)) for k in (0, 1)]
                used = np.concatenate([c[:25] for c in chosen])
                bias = Bias()
                bias.fit((energies - known)[used], counts[used], method)
                for k, c in enumerate(chosen):
                    error = float(bias.standard_error(kinds[k : k + 1])[0])
                    total = error * np.sqrt(1 + 25 / (len(c) - 25))
                    b = float(bias._of(bias.compositions.new_tensor(kinds[k : k + 1]))[0])
                    rest = (energies - known)[c[25:]].mean()
                    hit[k] += abs(rest - b) <= student.ppf(0.975, 24) * total
            for k, row in enumerate(kinds):
                formula = Atoms(np.repeat(np.arange(N_ELEMENTS), row)).get_chemical_formula()
                print(f"| {model} | {method} | {formula} | 25 | {hit[k] / draws:.3f} |", flush=True)
    for k in (0, 1):
        bias = Bias()
        bias.fit(energies[kind_of != k], counts[kind_of != k], "mean")
        error = float(bias.standard_error(kinds[k : k + 1])[0])
        print(f"held out altogether: known {bias.knows(kinds[k])}, standard error {error}")


def timed(frames: int) -> None:
    random = np.random.default_rng(0)
    rows = np.zeros((2000, N_ELEMENTS), np.int64)
    used = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]
    rows[:, used] = random.integers(0, 12, (2000, 10)) * (random.random((2000, 10)) < 0.5)
    rows[:, 1] += 1
    counts = rows[random.integers(0, 2000, frames)]
    residuals = counts[:, used] @ random.normal(-500, 300, 10) + random.standard_t(3, frames)
    print(f"\n| fit to {frames} frames of 2000 compositions | s |\n|---|---|")
    for method in (*METHODS, "mean", "median"):
        start, bias = time.perf_counter(), Bias()
        bias.fit(residuals, counts, method)
        print(f"| {method} | {time.perf_counter() - start:.1f} |", flush=True)


if __name__ == "__main__":
    main()
