"""The ladder on a small set of molecules: every row runs, and the errors are the right ones."""

import dataclasses

import numpy as np
import pytest
from ase.build import molecule
from helpers import NAMES
from scipy.spatial.distance import cdist

from ase_biasgrad.bias_fits import least_squares
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.dense.coulomb_matrix import coulomb_matrices, norm_order, triangles
from ase_biasgrad.metrics import EV_TO_KCAL_MOL
from ase_biasgrad.training.benchmarks.qm7 import kernel_rows, ladder, potentials
from ase_biasgrad.training.benchmarks.qm7.ladder import Row
from ase_biasgrad.training.benchmarks.qm7.table import by_size, table, write_learning_curves
from ase_biasgrad.training.benchmarks.qm7.task import Answer, molecules_of, task_of_fold
from ase_biasgrad.training.benchmarks.results import Result, Store


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    """80 distorted molecules; energies are those of bonds and atoms, in eV."""
    path, random = tmp_path_factory.mktemp("ladder") / "x.h5", np.random.default_rng(0)
    with DatasetWriter(path) as writer:
        for name in NAMES * 10:
            atoms = molecule(name)
            atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
            distances = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
            energy = -3.0 * np.sum(atoms.numbers**0.5) - 5 * np.sum(np.exp(-distances))
            writer.append(atoms.numbers, atoms.positions, energy=energy)
    return molecules_of(Dataset(path, in_memory=True))


def errors_of(task, answer) -> np.ndarray:
    return (answer.energies - task.molecules.energies[task.test]) * EV_TO_KCAL_MOL


def test_folds_train_on_what_they_do_not_test(molecules):
    for fold in range(5):
        task = task_of_fold(molecules, fold)
        assert not set(task.train) & set(task.test)
        assert sorted([*task.train, *task.test]) == list(range(80))
    some = task_of_fold(molecules, 1, size=20, seed=3)
    assert len(some.train) == 20
    assert set(some.train) <= set(task_of_fold(molecules, 1).train)
    with pytest.raises(ValueError, match="64 training molecules, and 65 are wanted"):
        task_of_fold(molecules, 0, size=65)


def test_crystals_are_refused(tmp_path):
    with DatasetWriter(tmp_path / "x.h5") as writer:
        writer.append(
            np.array([29]), np.zeros((1, 3)), energy=1.0, cell=np.eye(3) * 2.5, pbc=[True] * 3
        )
    with pytest.raises(DataError, match=r"x\.h5: 000000_Cu is periodic"):
        molecules_of(Dataset(tmp_path / "x.h5"))


def test_composition_is_the_bias_of_the_package(molecules):
    task = task_of_fold(molecules, 0)
    elements = [1, 6, 8]
    counts = molecules.counts[:, elements]
    expected = counts @ least_squares(task.train_energies, counts[task.train]).values
    found = ladder.chosen_rows(["composition"])[0].fit(task)
    np.testing.assert_allclose(found.energies, expected[task.test], atol=1e-9)
    mean = ladder.chosen_rows(["mean"])[0].fit(task)
    assert np.abs(errors_of(task, found)).mean() < 0.2 * np.abs(errors_of(task, mean)).mean()


@pytest.mark.parametrize("key", [row.key for row in ladder.rows()])
def test_every_row_runs_and_learns(molecules, key, monkeypatch, tmp_path):
    # enough steps to see that something is learnt, far from enough to be good
    few = dataclasses.replace(potentials.OPTIONS, epochs=3)
    monkeypatch.setattr(potentials, "OPTIONS", few)
    row = ladder.chosen_rows([key])[0]
    store = Store(tmp_path, "qm7")
    result = ladder.run(row, molecules, 0, store, minutes=0.01)
    assert (result.options["row"], result.options["fold"]) == (key, 0)
    figures = result.figures
    assert figures["trained_on"] == 64
    assert 0 < figures["mae"] <= figures["rmse"]
    mean = ladder.run(ladder.chosen_rows(["mean"])[0], molecules, 0, store)
    if key != "mean":
        assert figures["mae"] < 0.8 * mean.figures["mae"]
    assert figures["note"] or key in ("mean", "composition")


def test_kernel_regression_interpolates_its_training_molecules(molecules):
    entries = triangles(matrices := coulomb_matrices(molecules.padded), norm_order(matrices))
    kernel = np.exp(-cdist(entries, entries, "cityblock") / 100.0)
    predicted = kernel_rows._regression(kernel, kernel, molecules.energies, 1e-12)
    np.testing.assert_allclose(predicted, molecules.energies, atol=1e-6)


def test_unknown_rows_and_predictions_that_are_not_finite(molecules, tmp_path):
    with pytest.raises(ValueError, match=r"no rows \['schnat'\]; choose from: mean, composition"):
        ladder.chosen_rows(["schnat"])
    broken = Row("broken", "", lambda task: Answer(np.full(len(task.test), np.nan)))
    with pytest.raises(RuntimeError, match="row broken, fold 2"):
        ladder.run(broken, molecules, 2, Store(tmp_path, "qm7"))
    assert not list(tmp_path.iterdir())


def result_of(fold: int, mae: float, size: int | None = None, row: str = "mean") -> Result:
    options = {"row": row, "fold": fold, "size": size, "minutes": 20.0, "seed": 0}
    figures = {"trained_on": size or 64 - fold, "mae": mae, "rmse": 2 * mae, "seconds": 10.0 + fold}
    return Result("qm7", "d", options, {**figures, "note": "a note", "hardware": "here"})


def test_results_of_other_budgets_and_data_are_kept_apart(molecules, tmp_path):
    store, row = Store(tmp_path, "qm7"), ladder.chosen_rows(["mean"])[0]
    first = ladder.run(row, molecules, 0, store)
    assert ladder.run(row, molecules, 0, store) == first
    ladder.run(row, molecules, 0, store, minutes=1.0)
    assert len(store.results(molecules.digest)) == 2
    lines = table([row], store.results()).splitlines()
    assert {line.split("|")[8].strip() for line in lines[2:]} == {"minutes 20.0", "minutes 1.0"}
    assert store.results("other data") == []


def test_the_table_has_mean_and_deviation_over_the_folds():
    rows = [Row("mean", "mean predictor", lambda task: None, "179"), Row("x", "X", None)]
    results = [result_of(0, 1.0), result_of(1, 3.0), result_of(0, 9.0, size=20)]
    assert by_size(results) == [results[2:], results[:2]]
    lines = table(rows, results).splitlines()
    assert len(lines) == 3  # nothing of X
    assert lines[2] == (
        "| mean predictor | 179 | 2.00 ± 1.41 | 4.00 ± 2.83 | 2 | 10 | a note | – |"
    )
    one = table(rows, [result_of(0, 1.0, row="x")]).splitlines()[2]
    assert one.startswith("| X | – | 1.00 | 2.00 | 1 |")


def test_learning_curves_are_drawn(tmp_path):
    rows = [Row("mean", "", None), Row("x", "", None)]
    results = [result_of(k, 1.0, size) for k in range(2) for size in (20, None)]
    assert write_learning_curves(rows, results, tmp_path / "curves.svg") == ["mean"]
    picture = (tmp_path / "curves.svg").read_text()
    assert "training molecules" in picture or "<svg" in picture
    assert len(picture) < 60_000
