"""The bias of any calculator, fitted to its energies of labelled frames."""

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.lj import LennardJones

from ase_biasgrad import BiasedCalculator
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training import fit_calculator_bias

NAMES = ("H2O", "CH4", "CH3OH", "CH3CH2OH", "C2H4", "C2H6", "H2CO", "CO2")
SHIFT = {1: -13.25, 6: -1030.5, 8: -2043.125}


class Moody(LennardJones):
    """Fails for a molecule that it does not like, and has no energy of another."""

    def __init__(self, dislikes: str = "", blank: str = ""):
        super().__init__(sigma=1.1, rc=3.0, smooth=True)
        self.dislikes, self.blank = dislikes, blank

    def calculate(self, atoms, properties, system_changes):
        formula = atoms.get_chemical_formula()
        if self.dislikes and formula.startswith(self.dislikes):
            raise RuntimeError("no convergence")
        super().calculate(atoms, properties, system_changes)
        if formula == self.blank:
            self.results["energy"] = np.nan


@pytest.fixture
def dataset(tmp_path):
    random = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for k in range(32):
            atoms = molecule(NAMES[k % 8])
            atoms.positions += random.normal(0, 0.03, atoms.positions.shape)
            atoms.calc = Moody()
            shift = sum(SHIFT[z] for z in atoms.numbers)
            energy = None if k == 5 else atoms.get_potential_energy() + shift
            forces = atoms.get_forces() + 0.1 * (k % 2)
            writer.append(atoms.numbers, atoms.positions, energy=energy, forces=forces)
    return Dataset(tmp_path / "x.h5")


def test_the_labels_are_reached_by_the_biased_calculator(dataset):
    fit = fit_calculator_bias(Moody(), dataset)
    assert fit.failed == {}
    assert len(fit.left) == 31
    assert np.abs(fit.left).max() < 1e-9
    for z, energy in SHIFT.items():
        assert float(fit.bias.per_element[z]) == pytest.approx(energy, abs=1e-9)
    calc = BiasedCalculator(Moody(), fit.bias, strict=True)
    frame = dataset[7]
    assert calc.get_potential_energy(frame.atoms()) == pytest.approx(frame.energy, abs=1e-9)
    report = fit.bias.fit_report
    assert report["calculator"]["class"].endswith("test_calculator_bias.Moody")
    assert report["data"]["file"] == "x.h5"
    assert report["data"]["frames"] == 31
    assert report["method"] == "least-squares"


def test_frames_that_fail_are_named_and_left_out(dataset, caplog):
    fit = fit_calculator_bias(Moody("CO2", blank="CH4"), dataset, range(16))
    assert set(fit.failed) == {1, 7, 9, 15}
    assert "no convergence" in fit.failed[7]
    assert "energy is nan" in fit.failed[9]
    assert len(caplog.messages) == 4
    assert "x.h5: frame 7 (CO2) is left out: RuntimeError: no convergence" in caplog.text
    assert len(fit.left) == 11


def test_too_many_failures_stop_it(dataset):
    with pytest.raises(ValueError, match=r"failed on 6 of 6 frames, the last .* \(Runtime"):
        fit_calculator_bias(Moody("C"), dataset, [1, 2, 3, 4, 6, 7, 9, 10])
    with pytest.raises(ValueError, match="the calculator failed on all 2"):
        fit_calculator_bias(Moody("C"), dataset, [1, 2])
    with pytest.raises(ValueError, match="the data has none"):
        fit_calculator_bias(Moody(), dataset, [5])
    with pytest.raises(ValueError, match="bias method 'best' is unknown"):
        fit_calculator_bias(Moody(), dataset, [1], "best")


def test_efwt_takes_frames_with_right_forces(dataset):
    """At even frames forces are right, and there a window is chosen."""
    fit = fit_calculator_bias(Moody(), dataset, [0, 8, 16, 24], "efwt")
    assert np.abs(fit.left).max() < 0.044
    assert fit.bias.fit_report["method"] == "efwt"
