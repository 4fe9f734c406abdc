"""Standard errors of the bias against repeated draws, brute force and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script
from test_bias import METHANE, PEROXIDE, WATER, counts_of, value

from ase_biasgrad import bias_errors
from ase_biasgrad.bias import N_ELEMENTS, Bias
from ase_biasgrad.composition_fit import Anchors

CHO = (1, 6, 8)
TRUE = np.array([-13.0, -1030.0, -2040.0])
MISFIT, NOISE = 0.3, 0.5


def rows_of(k: int, seed: int = 0) -> np.ndarray:
    """Different compositions of H, C and O, `(k, N_ELEMENTS)`."""
    random = np.random.default_rng(seed)
    found = np.unique(random.integers(1, 9, (3 * k, 3)), axis=0)
    counts = np.zeros((k, N_ELEMENTS), np.int64)
    counts[:, CHO] = random.permutation(found)[:k]
    return counts


def drawn(rows, frames, random, misfit=MISFIT, noise=NOISE):
    """Residuals of frames of these rows, their counts, and the true means of the rows."""
    means = rows[:, CHO] @ TRUE + misfit * random.normal(size=len(rows))
    residuals = np.repeat(means, frames) + noise * random.normal(size=frames * len(rows))
    return residuals, np.repeat(rows, frames, axis=0), means


def fitted(residuals, counts, method="least-squares", **options) -> Bias:
    bias = Bias()
    bias.fit(residuals, counts, method, **options)
    return bias


@pytest.mark.parametrize("method", ["least-squares", "huber", "least-absolute-deviation", "ridge"])
def test_standard_errors_are_those_of_repeated_draws(method):
    random = np.random.default_rng(5)
    rows, asked = rows_of(25), counts_of({1: 2, 6: 20, 8: 9}, {1: 9, 6: 1, 8: 2})
    repeats = 120 if method != "least-absolute-deviation" else 60
    values, covariances, told, off, misfits = [], [], [], [], []
    for _ in range(repeats):
        residuals, counts, means = drawn(rows, 8, random)
        bias = fitted(residuals, counts, method)
        values.append(bias.per_element.numpy()[list(CHO)])
        covariances.append(bias.covariance.numpy()[np.ix_(CHO, CHO)])
        new = asked[:, CHO] @ TRUE + MISFIT * random.normal(size=2)
        everything = np.concatenate([rows, asked])
        told.append(bias.standard_error(everything).numpy())
        b = everything @ bias.per_element.numpy()
        off.append(b - np.append(means, new))
        misfits.append(float(bias.misfit))
    found, expected = np.cov(np.array(values).T), np.mean(covariances, axis=0)
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=0.5)
    assert np.sqrt(np.mean(np.square(misfits))) == pytest.approx(MISFIT, rel=0.15)
    scaled = np.array(off) / np.array(told)  # rows of the fit, and new compositions
    assert np.sqrt(np.mean(scaled[:, :-2] ** 2)) == pytest.approx(1.0, abs=0.12)
    assert np.sqrt(np.mean(scaled[:, -2:] ** 2)) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("method", ["least-squares", "ridge"])
def test_leave_one_composition_out_is_that_of_fits_without_it(method):
    rows = rows_of(12)
    residuals, counts, _ = drawn(rows, 3, np.random.default_rng(1))
    row_of, means = np.repeat(np.arange(12), 3), residuals.reshape(12, 3).mean(axis=1)
    x = rows[:, CHO].astype(float)
    if method == "least-squares":
        by_row = bias_errors.row_means(residuals, row_of)
        values = np.linalg.lstsq(x, means, rcond=None)[0]
        left_out = bias_errors.element_errors(x, by_row, values, np.eye(3)).left_out
    else:
        from ase_biasgrad import bias_fits

        variances, prior = np.linspace(0.1, 0.4, 12), (np.eye(3), TRUE - 1.0, np.full(3, 0.5))
        left_out = bias_fits.ridge(means, x, variances, *prior).left_out
    for k in range(12):
        others = np.arange(12) != k
        if method == "least-squares":
            without = fitted(residuals[row_of != k], counts[row_of != k]).per_element.numpy()
            without = without[list(CHO)]
        else:
            without = bias_fits.ridge(means[others], x[others], variances[others], *prior).values
        assert left_out[k] == pytest.approx(means[k] - x[k] @ without, abs=1e-7)


def test_the_report_has_the_error_of_each_number():
    rows = rows_of(12)
    residuals, counts, _ = drawn(rows, 3, np.random.default_rng(1))
    bias = fitted(residuals, counts)
    report = bias.fit_report
    assert set(report["standard_errors"]) == {"H", "C", "O"}
    assert report["standard_errors"]["C"] == pytest.approx(math.sqrt(bias.covariance[6, 6]))
    assert report["spare_compositions"] == 9
    assert report["noise"] == pytest.approx(NOISE, rel=0.3)
    assert report["misfit"] == pytest.approx(MISFIT, rel=0.5)
    out = report["leave_one_composition_out"]
    assert out["compositions"] == 12
    assert out["rmse"] > np.sqrt(np.mean(np.square(bias.residuals.numpy())))


@pytest.mark.parametrize("method", ["mean", "median", "least-squares", "huber"])
def test_one_composition_has_the_error_of_its_mean(method):
    random = np.random.default_rng(2)
    bias = fitted(random.normal(-5.0, 0.2, 400), np.repeat(counts_of(WATER), 400, axis=0), method)
    expected = 0.2 / 20 * {"median": math.sqrt(math.pi / 2)}.get(method, 1.0)
    errors = bias.standard_error(np.concatenate([counts_of(WATER), 8 * counts_of(WATER)])).numpy()
    assert errors[0] == pytest.approx(expected, rel=0.5 if method == "median" else 0.2)
    assert errors[1] == pytest.approx(8 * errors[0])
    assert np.isnan(bias.standard_error(counts_of(METHANE, {1: 1})).numpy()).all()
    assert bias.fit_report["standard_errors"] == {"H": None, "O": None}
    assert bias.fit_report["misfit"] is None


def test_an_error_that_the_data_does_not_show_is_nan():
    once = fitted(np.array([-5.0]), counts_of(WATER))
    assert np.isnan(once.standard_error(counts_of(WATER)).numpy()).all()
    assert np.isnan(Bias().standard_error(counts_of(WATER)).numpy()).all()
    # two compositions, two elements: none is left to tell the misfit of a third
    pair = fitted(np.array([-5.0, -5.1, -8.0, -8.2]), counts_of(WATER, WATER, PEROXIDE, PEROXIDE))
    assert pair.knows(counts_of({8: 1})[0])
    assert np.isnan(pair.standard_error(counts_of({8: 1})).numpy()).all()
    assert (pair.standard_error(counts_of(WATER, PEROXIDE)) > 0).all()


def test_larger_compositions_than_those_of_the_fit_vary_as_independent_parts():
    rows = rows_of(20)
    residuals, counts, _ = drawn(rows, 5, np.random.default_rng(1))
    bias = fitted(residuals, counts)
    asked = counts_of({1: 70, 6: 51, 8: 11})
    n = asked[0].astype(float)
    largest = rows.sum(axis=1).max()
    expected = n @ bias.covariance.numpy() @ n + float(bias.misfit) ** 2 * 132 / largest
    assert float(bias.standard_error(asked)[0]) == pytest.approx(math.sqrt(expected))


def test_reactions_have_the_error_of_their_compositions():
    rows = rows_of(30)
    residuals, counts, _ = drawn(rows, 5, np.random.default_rng(3))
    bias = fitted(residuals, counts)
    ethanol, oxygen, dioxide, water = counts_of(
        {6: 2, 1: 6, 8: 1}, {8: 2}, {6: 1, 8: 2}, {1: 2, 8: 1}
    )
    species, nu = np.stack([ethanol, oxygen, dioxide, water]), np.array([-1, -3, 2, 3])
    energy, error = bias.reaction(species, nu)
    # balanced: energies per element leave nothing, each composition has its misfit
    assert energy == pytest.approx(0.0, abs=1e-9)
    new = [not (rows == n).all(axis=1).any() for n in species]
    assert new[1:] == [True, True, True]
    assert error == pytest.approx(float(bias.misfit) * math.sqrt(22 + new[0]), rel=0.1)
    # isomers share a composition
    assert bias.reaction(np.stack([ethanol, ethanol]), np.array([-1, 1])) == (0.0, 0.0)
    energy, error = bias.reaction(ethanol - 2 * water)
    difference = (ethanol - 2 * water).astype(float)
    assert energy == pytest.approx(difference @ bias.per_element.numpy())
    assert error == pytest.approx(math.sqrt(difference @ bias.covariance.numpy() @ difference))


def test_reactions_outside_the_data_are_refused():
    bias = fitted(np.array([-5.0, -8.0]), counts_of(WATER, PEROXIDE), "mean")
    with pytest.raises(ValueError, match="H4C1 is not determined by the data"):
        bias.reaction(counts_of(WATER, METHANE), np.array([1, -1]))
    with pytest.raises(ValueError, match="H-2C1 is not determined by the data"):
        bias.reaction(counts_of({6: 1})[0] - 2 * counts_of({1: 1})[0])
    with pytest.raises(ValueError, match="not determined"):
        Bias().reaction(counts_of(WATER)[0])


def test_offsets_of_compositions_have_errors_of_their_own():
    rows = rows_of(10)
    residuals, counts, means = drawn(rows, 50, np.random.default_rng(3), misfit=2.0)
    bias = fitted(residuals, counts, "mean")
    assert bias.zero == "per-composition"
    assert bias.fit_report["standard_errors"] == {"H": None, "C": None, "O": None}
    np.testing.assert_allclose(bias.standard_error(rows), NOISE / math.sqrt(50), rtol=0.3)
    energy, error = bias.reaction(rows[:2], np.array([-1, 1]))
    assert energy == pytest.approx(means[1] - means[0], abs=4 * error)
    assert error == pytest.approx(NOISE / 5, rel=0.3)


@pytest.mark.parametrize("method", ["least-squares", "huber", "least-absolute-deviation", "ridge"])
def test_exact_anchors_are_kept(method):
    rows = rows_of(15)
    residuals, counts, _ = drawn(rows, 4, np.random.default_rng(3))
    anchors = Anchors.of_elements({6: -1031.0, 7: -1480.0})
    bias = fitted(residuals, counts, method, anchors=anchors)
    assert bias.per_element[[6, 7]].numpy() == pytest.approx([-1031.0, -1480.0])
    assert float(bias.covariance[6, 6]) == pytest.approx(0.0, abs=1e-12)
    free = fitted(residuals + 1031.0 * counts[:, 6], counts * (np.arange(N_ELEMENTS) != 6), method)
    close = {"huber": 1e-6, "ridge": 0.1}.get(method, 1e-5)
    np.testing.assert_allclose(bias.per_element[[1, 8]], free.per_element[[1, 8]], atol=close)
    assert bias.knows(counts_of({7: 1, 1: 3})[0])  # ammonia by the anchor of nitrogen
    assert bias.standard_error(counts_of({7: 1, 1: 3}))[0] > 0.1
    assert bias.fit_report["anchors"] == 2
    with pytest.raises(ValueError, match="contradict each other"):
        twice = Anchors(np.eye(N_ELEMENTS, dtype=int)[[6, 6]], np.array([0.0, 1.0]), np.zeros(2))
        fitted(residuals, counts, method, anchors=twice)


def test_a_prior_moves_the_fit_as_far_as_the_data_leaves_it_open():
    # CH4 and C2H8 … one direction of two elements
    counts = np.repeat(counts_of(METHANE, {6: 2, 1: 8}), 20, axis=0)
    residuals = counts[:, [1, 6]] @ [-3.0, -7.0] + np.random.default_rng(0).normal(0, 0.02, 40)
    prior = Anchors.of_elements({1: -3.2, 6: -7.0, 7: -9.0}, deviation=0.5)
    for method in ("least-squares", "ridge"):
        bias = fitted(residuals, counts, method, anchors=prior)
        assert value(bias, counts[0]) == pytest.approx(-19.0, abs=0.03)
        # the residual 0.8 eV of CH4 is shared as 4 : 1 by H and C
        expected = [-3.2 + 4 / 17 * 0.8, -7.0 + 1 / 17 * 0.8, -9.0]
        assert bias.per_element[[1, 6, 7]].numpy() == pytest.approx(expected, abs=0.01)
        errors = np.sqrt(bias.covariance.diagonal()[[1, 6, 7]].numpy())
        spread = [0.5 * math.sqrt(1 - 16 / 17), 0.5 * math.sqrt(1 - 1 / 17), 0.5]
        assert errors == pytest.approx(spread, rel=0.05)
        # as unsure as that, nitrogen is not called known
        assert not bias.knows(counts_of({7: 1})[0])
        assert bias.knows(counts_of(METHANE)[0])
    sure = Anchors.of_elements({7: -9.0}, deviation=0.05)
    assert fitted(residuals, counts, anchors=sure).knows(counts_of({7: 1})[0])


def test_ridge_weighs_data_and_prior_by_their_variances():
    rows = rows_of(6)
    residuals, counts, _ = drawn(rows, 4, np.random.default_rng(3), misfit=0.5)
    wide, narrow = (
        fitted(
            residuals,
            counts,
            "ridge",
            anchors=Anchors.of_elements(dict(zip(CHO, TRUE + 1.0, strict=True)), width),
        )
        for width in (1e3, 1e-3)
    )
    chosen = list(CHO)
    np.testing.assert_allclose(narrow.per_element[chosen], TRUE + 1.0, atol=0.01)
    assert np.abs(wide.per_element.numpy()[chosen] - TRUE).max() < 0.5
    assert (narrow.covariance.diagonal()[chosen] < wide.covariance.diagonal()[chosen]).all()


def test_ridge_without_a_prior_predicts_left_out_compositions_no_worse():
    random, better = np.random.default_rng(0), []
    for _ in range(20):
        rows = np.zeros((8, N_ELEMENTS), np.int64)
        rows[:, CHO] = np.array([5, 5, 5]) + random.integers(0, 2, (8, 3))
        residuals, counts, _ = drawn(np.unique(rows, axis=0), 3, random)
        residuals = residuals - counts[:, CHO] @ TRUE  # a small correction of a good model
        errors = [
            fitted(residuals, counts, m).fit_report["leave_one_composition_out"]["rmse"]
            for m in ("ridge", "least-squares")
        ]
        better.append(errors[0] <= errors[1] * 1.05)
    assert np.mean(better) > 0.9


def test_robust_fits_and_their_errors_ignore_outliers():
    rows = rows_of(25)
    random = np.random.default_rng(3)
    residuals, counts, _ = drawn(rows, 8, random)
    spoilt = residuals.copy()
    spoilt[random.permutation(200)[:10]] += 200.0
    for method in ("huber", "least-absolute-deviation"):
        clean, robust = fitted(residuals, counts, method), fitted(spoilt, counts, method)
        far = np.abs((clean.per_element - robust.per_element).numpy())[list(CHO)]
        assert (far < 1.5 * np.sqrt(clean.covariance.diagonal().numpy()[list(CHO)])).all()
        assert float(robust.covariance[6, 6]) < 3 * float(clean.covariance[6, 6])
        assert robust.fit_report["noise"] < 1.0
    assert fitted(spoilt, counts).fit_report["noise"] > 10.0


def test_isolated_atoms_report_the_dissociation_limit():
    rows = rows_of(15)
    residuals, counts, _ = drawn(rows, 4, np.random.default_rng(3))
    atoms = counts_of({1: 1}, {8: 1})
    bias = fitted(
        np.append(residuals, [-13.0 + 2.5, -2040.0]),
        np.concatenate([counts, atoms]),
        isolated=np.arange(62) >= 60,
    )
    assert bias.fit_report["dissociation"]["H"] == pytest.approx(2.5, abs=0.3)
    assert set(bias.fit_report["dissociation"]) == {"H", "O"}


def test_anchors_need_numbers_that_can_be():
    with pytest.raises(ValueError, match="not negative"):
        Anchors.of_elements({1: 0.0}, deviation=-1.0)
    with pytest.raises(ValueError, match="finite"):
        Anchors.of_elements({1: math.nan})
    with pytest.raises(ValueError, match="shapes"):
        Anchors(np.zeros((1, 3)), np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="composition"):
        Anchors(np.zeros((1, N_ELEMENTS), int), np.zeros(1), np.zeros(1))


def test_long_tails_widen_the_misfit_until_left_out_compositions_are_held():
    random = np.random.default_rng(0)
    covered = {}
    for name, tails in (("normal", random.normal(size=150)), ("long", random.standard_t(2, 150))):
        rows = rows_of(150)
        residuals = np.repeat(rows[:, CHO] @ TRUE + 0.3 * tails, 4) + random.normal(0, 0.05, 600)
        bias = fitted(residuals, np.repeat(rows, 4, axis=0), "huber")
        new = rows_of(400, seed=9)
        drawn_new = random.normal(size=400) if name == "normal" else random.standard_t(2, 400)
        off = new[:, CHO] @ TRUE + 0.3 * drawn_new - new @ bias.per_element.numpy()
        seen = (new[:, None] == rows[None]).all(axis=2).any(axis=1)
        errors = bias.standard_error(new).numpy()
        covered[name] = np.mean(np.abs(off[~seen]) < 1.96 * errors[~seen])
    assert covered["normal"] == pytest.approx(0.95, abs=0.04)
    assert covered["long"] == pytest.approx(0.95, abs=0.04)


def test_the_conformal_quantile_raises_the_misfit_alone():
    left_out, rest = np.linspace(-2.0, 2.0, 101), np.full(101, 0.01)
    raised = bias_errors.calibrated_misfit2(0.0, left_out, rest)
    held = np.abs(left_out) <= 1.96 * np.sqrt(raised + rest) + 1e-9
    assert held.sum() == 97  # the smallest number of them from 0.95 · 102 on
    assert bias_errors.calibrated_misfit2(9.0, left_out, rest) == 9.0
    assert bias_errors.calibrated_misfit2(0.0, left_out[:59], rest[:59]) == 0.0


def test_wrong_frames_and_compositions_are_brought_near_and_others_left():
    random = np.random.default_rng(0)
    row_of = np.repeat(np.arange(20), 5)
    left = random.normal(0, 0.1, 100) + np.repeat(random.normal(0, 0.2, 20), 5)
    assert bias_errors.without_outliers(left, row_of) == pytest.approx(left)
    wrong = left.copy()
    wrong[7] += 100.0
    wrong[50:55] -= 300.0
    found = bias_errors.without_outliers(wrong, row_of)
    others = ~np.isin(np.arange(100), [7, *range(50, 55)])
    assert found[others] == pytest.approx(left[others])
    assert abs(found[7]) < 1.5
    assert np.abs(found[50:55]).max() < 3.0


@pytest.mark.slow
def test_intervals_hold_left_out_compositions_of_qm7(shared_data, tmp_path):
    # in a process of its own: on Python 3.11 tblite does not load after torch
    script = Path(__file__).parents[1] / "benchmarks" / "bias_intervals.py"
    data = shared_data / "qm7" / "qm7_7101.npz"
    options = ("--methods", "least-squares", "--frames", "1000")
    said = run_script(tmp_path, script, "--qm7", str(data), *options)
    lines = [line.split("|") for line in said.splitlines() if "| least-squares |" in line]
    found = {line[1].strip(): [float(x) for x in line[3:8]] for line in lines[:2]}
    for model, most in (("composition alone", 16.0), ("GFN2-xTB", 8.0)):
        _, mae, held_out, one, groups = found[model]
        assert mae < most  # kcal/mol
        assert held_out == 176
        assert 0.93 <= one <= 0.97
        assert 0.93 <= groups <= 0.97
