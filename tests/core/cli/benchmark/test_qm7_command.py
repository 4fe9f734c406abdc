"""`biasgrad data qm7` and `biasgrad benchmark qm7` as a user types them."""

import json

import numpy as np
import pytest
from ase.io import read, write
from helpers import write_qm7
from typer.testing import CliRunner

from ase_biasgrad.cli import app
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.metrics import EV_TO_KCAL_MOL


def biasgrad(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qm7")
    write_qm7(folder / "x.npz", 40)
    said = biasgrad(
        "data", "qm7", "--from", folder / "x.npz", "-o", folder / "x.h5",
        "--energy-unit", "kcal/mol", "--length-unit", "Angstrom",
    )  # fmt: skip
    assert "5 folds: sorted by energy" in said
    assert "x.h5: 40 frames" in said
    assert Dataset(folder / "x.h5").has("fold")
    return folder / "x.h5"


def test_runs_add_up_to_one_table(data, tmp_path):
    out = tmp_path / "results"
    biasgrad("benchmark", "qm7", data, "-o", out, "--row", "mean")
    said = biasgrad(
        "benchmark", "qm7", data, "-o", out, "--row", "composition", "--row", "dense-standardised",
        "--fold", 0, "--fold", 1, "--size", 10, "--size", 32, "--minutes", 0.01,
    )  # fmt: skip
    assert "composition, fold 1, 10 molecules: MAE" in said
    lines = (out / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "mean predictor", "composition: the bias, no backbone", "… standardised",
    ]  # fmt: skip
    assert [line.split("|")[5].strip() for line in lines[2:]] == ["5", "2", "2"]
    maes = [float(line.split("|")[3].split("±")[0]) for line in lines[2:]]
    assert maes[1] < 2 < 100 < maes[0]
    assert "<svg" in (out / "learning_curves.svg").read_text()
    assert len(list(out.glob("*.json"))) == 5 + 4 + 4


@pytest.mark.parametrize("row", ["dense-standardised", "dense-sorted", "bias+schnet"])
def test_the_network_that_is_kept_has_the_errors_of_its_row(data, tmp_path, row):
    biasgrad(
        "benchmark", "qm7", data, "-o", tmp_path, "--row", row, "--fold", 0, "--minutes", 0.02,
        "--device", "cpu",
    )  # fmt: skip
    frames = [frame for frame in Dataset(data) if frame.labels["fold"] == 0]
    write(tmp_path / "test.extxyz", [frame.atoms() for frame in frames])
    (network,) = tmp_path.glob("*.safetensors")
    predict = (network, tmp_path / "test.extxyz", "-o", tmp_path / "p.extxyz", "--device", "cpu")
    biasgrad("predict", *predict)
    found = [atoms.info["predicted_energy"] for atoms in read(tmp_path / "p.extxyz", ":")]
    mae = np.abs(np.array(found) - [frame.energy for frame in frames]).mean() * EV_TO_KCAL_MOL
    (result,) = tmp_path.glob("*.json")
    assert mae == pytest.approx(json.loads(result.read_text())["figures"]["mae"], rel=1e-3)
    assert not list(tmp_path.glob("*.state"))


def test_more_folds_than_there_are(data, tmp_path):
    biasgrad("benchmark", "qm7", data, "-o", tmp_path / "r", "--fold", 5, code=2)
    with pytest.raises(ValueError, match="there are no rows"):
        biasgrad("benchmark", "qm7", data, "-o", tmp_path / "r", "--row", "best")
    assert not (tmp_path / "r").exists()
