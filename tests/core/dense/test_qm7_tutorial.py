"""The tutorial on QM7: its cells run as a reader types them, and say what the page claims."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

DOCS = Path(__file__).resolve().parents[3] / "docs"
CELLS = re.findall(
    r"^```\{code-cell\}\n(?::tags:[^\n]*\n)?(.*?)^```",
    (DOCS / "qm7_tutorial.md").read_text(),
    re.M | re.S,
)


def outputs(capsys) -> list[float]:
    """Numbers that the cells print, in order."""
    names: dict[str, object] = {}
    for number, cell in enumerate(CELLS[1:]):
        exec(compile(cell, f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    print(said)
    found = {
        "mean": r"predicting the mean: (\S+)",
        "raw": r"averaged: (\S+)",
        "raw, turned": r"test molecules, turned: (\S+)",
        "reversed": r"energies change by (\S+)",
        "bias": r"the bias alone: (\S+)",
        "bias and network": r"bias and network: (\S+)",
    }
    values = {name: float(re.search(pattern, said)[1]) for name, pattern in found.items()}
    pairs = re.findall(r"^test: (\S+), turned: (\S+) kcal", said, re.M)
    assert len(pairs) == 2
    for name, (error, turned) in zip(("standardised", "centred"), pairs, strict=True):
        values |= {name: float(error), f"{name}, turned": float(turned)}
    by_hand, numerical = re.search(r"^(-?\d+\.\d{6}) (-?\d+\.\d{6})$", said, re.M).groups()
    assert float(by_hand) == pytest.approx(float(numerical), rel=1e-4)
    assert "92 (2, 92)" in said
    assert "(92, 400) (400,)" in said
    return values


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """The functions that write files of the layout of qm7.mat."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS)
    import qm7_sample

    yield qm7_sample
    sys.modules.pop("qm7_sample")


def holds_what_the_page_says(values) -> None:
    assert values["mean"] == pytest.approx(178, abs=2)
    assert 20 < values["standardised"] < 1.1 * values["raw"]
    assert values["reversed"] > 100
    assert values["raw, turned"] > 1.2 * values["raw"]
    assert values["centred, turned"] == pytest.approx(values["centred"], rel=0.15)
    assert values["bias"] == pytest.approx(14.7, abs=1)
    assert values["bias and network"] < values["bias"] < values["centred"]


def test_on_the_sample(sample, capsys):
    exec(CELLS[0], {})
    arrays = loadmat("qm7.mat")
    assert arrays["R"].shape == (720, 23, 3)
    assert sorted(arrays["P"].ravel()) == list(range(720))
    assert set(np.unique(arrays["Z"])) == {0, 1, 6, 7, 8}
    holds_what_the_page_says(outputs(capsys))


def test_on_the_molecules_of_qm7(sample, shared_data, capsys):
    arrays = np.load(shared_data / "qm7" / "qm7_7101.npz")
    sample.write_like_qm7("qm7.mat", *(arrays[name][:7100] for name in ("R", "Z", "T")))
    holds_what_the_page_says(outputs(capsys))
