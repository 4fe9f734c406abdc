"""How long graph weights and their gradient take, on one core.

    OMP_NUM_THREADS=1 python tests/benchmarks/graph_weights.py

The sizes are those of the discussion of the original (AtomGraphs.jl): 1000 pairs of atoms with
themselves, and a crystal of 424 atoms in the box of IRMOF-1 with a cutoff of 8 Å; and 1000 atoms
with Voronoi weights. Rivals, in the same run: the original's loop over pairs with torch scalars,
and SciPy's Qhull alone, which gives no gradient. Prints a Markdown table of medians of the time
that the process had the core, so that others on the machine do not count.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial import Voronoi

from ase_biasgrad.differentiable_graph import voronoi_adjacency, weights_cutoff
from ase_biasgrad.graph import AtomGraph, graph_from_atoms


def main() -> None:
    torch.set_num_threads(1)
    print("| task | ms | rival | ms | rival / ours |\n|---|---|---|---|---|")
    own, distances = torch.arange(1000), torch.arange(1.0, 1001.0, dtype=torch.float64)
    row(
        "1000 pairs, gradient included",
        lambda: gradient_in(distances, lambda d: weights_cutoff(own, own, d)),
        "the original's loop",
        lambda: gradient_in(distances, lambda d: by_loop(own, own, d)),
    )
    atoms = sparse_crystal()
    graph = graph_from_atoms(atoms, 8.0)
    row(
        f"424 atoms, {graph.edge_index.shape[1]} edges: search, weights, gradient",
        lambda: gradient_of_crystal(graph_from_atoms(atoms, 8.0)),
        "the original's loop",
        lambda: gradient_in(
            graph.edge_vectors().norm(dim=1), lambda d: by_loop(*graph.edge_index, d)
        ),
        rival_repeats=1,
    )
    atoms = bulk("Cu", "sc", a=2.3) * (10, 10, 10)
    atoms.rattle(0.2, seed=0)
    graph = graph_from_atoms(atoms, 1.0)
    row(
        "1000 atoms, Voronoi weights, gradient included",
        lambda: gradient_of_cells(graph),
        "Qhull on the 27 cells",
        lambda: Voronoi((atoms * (3, 3, 3)).positions),
        rival_repeats=1,
    )


def row(
    task: str,
    ours: Callable,
    rival: str,
    theirs: Callable,
    repeats: int = 7,
    rival_repeats: int = 3,
) -> None:
    one, two = median_ms(ours, repeats), median_ms(theirs, rival_repeats)
    print(f"| {task} | {one:.1f} | {rival} | {two:.0f} | {two / one:.0f} |", flush=True)


def median_ms(run: Callable, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first warms up
        begin = time.process_time()
        run()
        times.append(1000 * (time.process_time() - begin))
    return float(np.median(times[1:]))


def gradient_in(distances: torch.Tensor, weights: Callable) -> torch.Tensor:
    distances = distances.detach().requires_grad_()
    return torch.autograd.grad(weights(distances).sum(), distances)[0]


def gradient_of_crystal(graph: AtomGraph) -> tuple[torch.Tensor, ...]:
    leaves = (graph.positions.requires_grad_(), graph.cell.requires_grad_())
    weights = weights_cutoff(*graph.edge_index, graph.edge_vectors().norm(dim=1), n_atoms=424)
    return torch.autograd.grad(weights.square().sum(), leaves)


def gradient_of_cells(graph: AtomGraph) -> tuple[torch.Tensor, ...]:
    leaves = (graph.positions.requires_grad_(), graph.cell.requires_grad_())
    return torch.autograd.grad(voronoi_adjacency(graph).values.square().sum(), leaves)


def by_loop(centre: torch.Tensor, neighbour: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """The original's loop over pairs by distance, entry by entry."""
    n = int(centre.max()) + 1
    count, longest = [0] * n, [0.0] * n
    entries: dict[tuple[int, int], torch.Tensor] = {}
    for k in distances.detach().argsort().tolist():
        i, j, d = int(centre[k]), int(neighbour[k]), float(distances[k].detach())
        if count[i] < 12 or abs(longest[i] - d) <= 1.5e-8 * d:
            entries[i, j] = entries.get((i, j), 0.0) + distances[k] ** -2
            count[i], longest[i] = count[i] + 1, d
    weights = torch.zeros(n, n, dtype=torch.float64)
    places = torch.tensor(list(entries)).T
    weights = weights.index_put(tuple(places), torch.stack(list(entries.values())))
    weights = 0.5 * (weights + weights.T)
    return weights / weights.max()


def sparse_crystal() -> Atoms:
    """424 atoms at random in the box of IRMOF-1, none nearer than 1.2 Å to another."""
    random, box = np.random.default_rng(0), 25.832
    positions = np.zeros((0, 3))
    while len(positions) < 424:
        new = random.uniform(0, box, 3)
        apart = (positions - new + box / 2) % box - box / 2
        if len(positions) == 0 or np.linalg.norm(apart, axis=1).min() > 1.2:
            positions = np.vstack([positions, new])
    return Atoms("C424", positions, cell=[box] * 3, pbc=True)


if __name__ == "__main__":
    main()
