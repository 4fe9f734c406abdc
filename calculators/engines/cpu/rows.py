"""Steps that act on rows, one for each atom: sums, products, readout. All arrays are float32."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.calculators.engines.cpu.matrix_product import product
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.simd import WIDTH, load, splat, store, total
from ase_biasgrad.numerics.simd_activations import silu

# rows that pass through the dense layers together: their intermediates stay in the cache
CHUNK = 192


@compiled()
def add_up(parts, first, last):  # type: ignore[no-untyped-def]
    """parts[0] = Σ_b parts[b] for rows first to last; parts `(blocks, n, width)`."""
    blocks, n, width = parts.shape
    for b in range(1, blocks):
        for k in range(first * width, last * width, WIDTH):
            store(parts, k, load(parts, k) + load(parts, b * n * width + k))


@compiled()
def add_rows(out, other, bias, first, last):  # type: ignore[no-untyped-def]
    """out += other + bias, for rows first to last."""
    width = out.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            k = i * width + f
            store(out, k, load(out, k) + load(other, k) + load(bias, f))


@compiled()
def add_bias(out, bias, first, last):  # type: ignore[no-untyped-def]
    """out += bias, for rows first to last."""
    width = out.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            store(out, i * width + f, load(out, i * width + f) + load(bias, f))


@compiled()
def multiply_rows(out, other, first, last):  # type: ignore[no-untyped-def]
    """out *= other, for rows first to last."""
    width = out.shape[1]
    for k in range(first * width, last * width, WIDTH):
        store(out, k, load(out, k) * load(other, k))


@compiled()
def embed(numbers, table, out, first, last):  # type: ignore[no-untyped-def]
    """out_i = table[numbers_i], for rows first to last."""
    width = out.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            store(out, i * width + f, load(table, numbers[i] * width + f))


@compiled()
def add_to(out, other, first, last):  # type: ignore[no-untyped-def]
    """out += other, for rows first to last."""
    width = out.shape[1]
    for k in range(first * width, last * width, WIDTH):
        store(out, k, load(out, k) + load(other, k))


@compiled()
def read_out(  # type: ignore[no-untyped-def]
    x,
    panels,
    hidden,
    hidden_t,
    hidden_bias,
    last_weight,
    last_bias,
    spare,
    derivatives,
    energies,
    adjoint,
    first,
    last,
):
    """Energies of rows first to last, and adjoint = ∂E/∂x.

    Hidden layers `(layers, …)` use the first panels[k] panels of their weights only.
    """
    layers, width = len(panels), x.shape[1]
    for i in range(first, last):
        for f in range(0, width, WIDTH):
            store(spare[0], i * width + f, load(x, i * width + f))
    for k in range(layers):
        spare[1, first:last] = 0
        product(spare[0], hidden[k, : panels[k]], spare[1], first, last)
        silu(spare[1], hidden_bias[k], derivatives[k], first, last)
        spare[0, first:last] = spare[1, first:last]
    for i in range(first, last):
        energy = splat(np.float32(0))
        for f in range(0, width, WIDTH):
            energy = energy + load(spare[0], i * width + f) * load(last_weight, f)
            store(adjoint, i * width + f, load(last_weight, f))
        energies[i] = np.float64(total(energy)) + last_bias
    for k in range(layers - 1, -1, -1):
        multiply_rows(adjoint, derivatives[k], first, last)
        spare[0, first:last] = adjoint[first:last]
        product(spare[0], hidden_t[k], adjoint, first, last)
