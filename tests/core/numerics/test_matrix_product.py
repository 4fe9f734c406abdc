"""Packed products against NumPy's."""

import numpy as np
import pytest

from ase_biasgrad.calculators.engines.cpu.matrix_product import packed, padded, product


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 9, 21, 64])
@pytest.mark.parametrize(("depth", "width"), [(1, 16), (37, 32), (128, 128), (64, 192)])
def test_products(rows, depth, width):
    random = np.random.default_rng(rows)
    a = random.normal(size=(rows, depth)).astype(np.float32)
    b = random.normal(size=(depth, width)).astype(np.float32)
    out = np.full((rows, width), np.nan, np.float32)
    product(a, packed(b), out, 0, rows)
    np.testing.assert_allclose(out, a.astype(float) @ b, atol=2e-6 * depth)


def test_only_the_rows_asked_for_are_written():
    a, b = np.ones((10, 8), np.float32), np.ones((8, 16), np.float32)
    out = np.zeros((10, 16), np.float32)
    product(a, packed(b), out, 3, 7)
    assert (out[3:7] == 8).all()
    assert (out[:3] == 0).all()
    assert (out[7:] == 0).all()


def test_widths_are_padded_to_panels():
    assert [padded(n) for n in (1, 16, 17, 128)] == [16, 16, 32, 128]
