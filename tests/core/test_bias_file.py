"""A bias as a file: what goes in comes out, and nothing else comes in."""

import json
import math

import numpy as np
import pytest
import torch
from test_bias import METHANE, WATER, counts_of

from ase_biasgrad.bias import Bias
from ase_biasgrad.bias_file import BiasFileError, load_bias, save_bias


def fitted(method: str = "least-squares") -> Bias:
    random = np.random.default_rng(0)
    kinds = counts_of(WATER, METHANE, {1: 4, 6: 1, 8: 1}, {1: 6, 6: 2, 8: 1}, {1: 2, 6: 1, 8: 1})
    counts = np.concatenate([np.repeat(kinds, 6, axis=0), counts_of({1: 1})])
    residuals = counts[:, [1, 6, 8]] @ [-13.0, -1030.0, -2040.0]
    residuals = residuals + np.append(random.normal(0, 0.1, 30), 0.5)
    bias = Bias()
    bias.fit(residuals, counts, method, isolated=np.arange(31) == 30)
    return bias


@pytest.mark.parametrize("make", [fitted, lambda: fitted("median"), Bias])
def test_round_trip_is_exact(tmp_path, make):
    bias = make()
    save_bias(tmp_path / "zero.json", bias)
    loaded = load_bias(tmp_path / "zero.json")
    assert loaded.zero == bias.zero
    assert loaded.fit_report == bias.fit_report
    for name, tensor in bias.state_dict().items():
        other = loaded.state_dict()[name]
        assert tensor.dtype == other.dtype, name
        assert torch.equal(tensor.nan_to_num(-1.0), other.nan_to_num(-1.0)), name


def test_energies_without_a_fit_are_kept(tmp_path):
    bias = Bias()
    bias.add_per_element({1: -13.6, 8: -2000.0})
    save_bias(tmp_path / "zero.json", bias)
    loaded = load_bias(tmp_path / "zero.json")
    assert loaded.per_element[[1, 8]].tolist() == [-13.6, -2000.0]
    assert loaded.knows(counts_of(WATER)[0])
    assert math.isnan(float(loaded.standard_error(counts_of(WATER))))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format="x"), "no bias of ase-biasgrad"),
        (lambda c: c.update(version=2), "version: 2, this package reads 1"),
        (lambda c: c.update(version=True), "version: True"),
        (lambda c: c.update(units={"energy": "Ha"}), "units: "),
        (lambda c: c.update(zero="some"), "zero: 'some' is none of"),
        (lambda c: c.update(elements=["H", "C", "Xx"]), "elements: 'Xx' is no element"),
        (lambda c: c.update(elements=["C", "H", "O"]), "elements: must be in the order"),
        (lambda c: c.update(elements=["H", "C", "N"]), "compositions: hold an element that is not"),
        (lambda c: c["energies"].pop(), "energies: .* shape"),
        (lambda c: c["energies"].__setitem__(0, 1e300), "energies: .* beyond"),
        (lambda c: c["energies"].__setitem__(0, None), "energies: "),
        (lambda c: c["energies"].__setitem__(0, "1"), "energies: .* must be numbers"),
        (lambda c: c["covariance"][0].__setitem__(1, 5.0), "covariance: is not symmetric"),
        (lambda c: c["covariance"][0].__setitem__(0, -5.0), "covariance: has a negative"),
        (lambda c: c["covariance"][0].__setitem__(0, None), "covariance: some numbers are null"),
        (lambda c: c.update(misfit=-1.0), "misfit: -1.0"),
        (lambda c: c["compositions"][1]["counts"].update(H=-1), r"compositions\[1\].counts.H: -1"),
        (lambda c: c["compositions"][1].update(error=-1), r"compositions\[1\].error"),
        (lambda c: c["compositions"][1].pop("offset"), r"compositions\[1\].offset"),
        (lambda c: c["compositions"][1].update(kind=1), r"compositions\[1\].kind"),
        (lambda c: c.pop("fit"), "fit: missing"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(tmp_path, edit, message):
    save_bias(tmp_path / "zero.json", fitted())
    content = json.loads((tmp_path / "zero.json").read_text())
    edit(content)
    (tmp_path / "zero.json").write_text(json.dumps(content))
    with pytest.raises(BiasFileError, match=r"zero\.json: " + message):
        load_bias(tmp_path / "zero.json")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such bias"):
        load_bias(tmp_path / "zero.json")
    for text in ("{", "[" * 100_000, "[]", "\udcff".encode("utf-8", "surrogateescape")):
        path = tmp_path / "zero.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(BiasFileError, match=r"zero\.json: "):
            load_bias(path)
