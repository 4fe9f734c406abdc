"""A band whose images are evaluated together is ASE's band."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc100
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.mep import NEB, NEBTools
from ase.optimize import BFGS, FIRE
from conftest import ethanol, small_potential

from ase_biasgrad.calculators import BatchNEB, BiasGradCalculator

METHODS = [
    {"method": "improvedtangent"},
    {"method": "improvedtangent", "climb": True, "k": [0.1, 0.2, 0.3, 0.1]},
    {"method": "aseneb"},
    {"method": "eb"},
    {"method": "spline"},
    {"method": "string", "precon": "Exp"},
]


def hop() -> list:
    """An adatom on copper (100) on its way to the next site, the slab held."""
    ends = []
    for offset in ((0, 0), (1, 0)):
        slab = fcc100("Cu", (2, 2, 1), vacuum=4)
        add_adsorbate(slab, "Cu", 1.8, "hollow", offset=offset)
        slab.set_constraint(FixAtoms([0, 1]))
        ends.append(slab)
    return [ends[0], *(ends[0].copy() for _ in range(3)), ends[1]]


def turned() -> list:
    """Ethanol at both ends, the second moved, turned and shifted."""
    first, second = ethanol(), ethanol(1)
    second.rotate(40, "z")
    second.translate([0.4, 0.1, 0.0])
    return [first, *(first.copy() for _ in range(3)), second]


def calculator() -> BiasGradCalculator:
    return BiasGradCalculator(small_potential("schnet"), device="cpu", dtype="float64")


@pytest.mark.parametrize("arguments", METHODS, ids=lambda a: "-".join(map(str, a.values())))
def test_forces_and_paths_are_those_of_ase(arguments):
    shared = calculator()
    ours = BatchNEB(hop(), shared, **arguments)
    theirs = NEB(hop(), allow_shared_calculator=True, **arguments)
    for image in theirs.images:
        image.calc = shared
    for band in (ours, theirs):
        band.interpolate(mic=True, apply_constraint=False)
        FIRE(band, logfile=None).run(fmax=1e-3, steps=5)
    np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), atol=1e-8)
    for one, two in zip(ours.images, theirs.images, strict=True):
        np.testing.assert_allclose(one.positions, two.positions, atol=1e-8)
    barriers = [NEBTools(band.images).get_barrier() for band in (ours, theirs)]
    np.testing.assert_allclose(*barriers, atol=1e-8)


def test_images_are_evaluated_once_a_step_and_together(monkeypatch):
    band, calls = BatchNEB(turned(), calculator(), method="improvedtangent"), []
    many = BiasGradCalculator.evaluate_many

    def counted(self, structures, *arguments):
        calls.append(len(structures))
        return many(self, structures, *arguments)

    def never(*_):
        raise AssertionError("an image was evaluated alone")

    monkeypatch.setattr(BiasGradCalculator, "evaluate_many", counted)
    monkeypatch.setattr(BiasGradCalculator, "evaluated", never)
    band.interpolate()
    search = BFGS(band, logfile=None)
    search.run(fmax=1e-6, steps=4)
    assert [count for count in calls if count] == [5, 3, 3, 3, 3]  # the ends stay where they are


def test_turned_images_are_turned_back_and_evaluated_together(monkeypatch):
    shared = calculator()
    options = {"remove_rotation_and_translation": True, "method": "improvedtangent"}
    ours = BatchNEB(turned(), shared, **options)
    theirs = NEB(turned(), allow_shared_calculator=True, **options)
    for image in theirs.images:
        image.calc = shared
    for band in (ours, theirs):
        band.interpolate()
        band.images[2].rotate(20, "x")
    expected = theirs.get_forces()
    evaluated = []
    monkeypatch.setattr(BiasGradCalculator, "evaluated", lambda *a: evaluated.append(a))
    np.testing.assert_allclose(ours.get_forces(), expected, atol=1e-8)
    assert ours.remove_rotation_and_translation
    assert not evaluated


def test_what_a_band_does_not_take():
    for name in ("parallel", "allow_shared_calculator"):
        with pytest.raises(ValueError, match=f"{name} has no use here"):
            BatchNEB(hop(), calculator(), method="eb", **{name: True})
    with pytest.raises(TypeError, match="not EMT"):
        BatchNEB(hop(), EMT(), method="eb")
