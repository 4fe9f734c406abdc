"""The store of results and the table writer of the benchmarks."""

import json

import pytest
from mutations import mutants, outcomes

from ase_biasgrad.training.benchmarks import tables
from ase_biasgrad.training.benchmarks.results import Result, Store, differences


def test_results_are_known_by_data_and_every_option(tmp_path):
    store = Store(tmp_path / "new", "b")
    assert store.results() == []
    first = store.keep("d", {"epochs": 1, "sizes": {"train": 5}}, {"mae": 2.0})
    store.keep("d", {"epochs": 2, "sizes": {"train": 5}}, {"mae": 1.0})
    store.keep("other", {"epochs": 1, "sizes": {"train": 5}}, {"mae": 9.0})
    assert sorted(result.figures["mae"] for result in store.results()) == [1.0, 2.0, 9.0]
    assert sorted(result.figures["mae"] for result in store.results("d")) == [1.0, 2.0]
    assert store.find("d", {"sizes": {"train": 5}, "epochs": 1}) == first
    assert store.find("d", {"sizes": {"train": 6}, "epochs": 1}) is None
    again = store.keep("d", {"epochs": 1, "sizes": {"train": 5}}, {"mae": 7.0})
    assert again.figures == {"mae": 2.0}  # never replaced
    assert Store(tmp_path / "new", "c").results() == []


def test_files_of_older_code_are_not_taken_and_damaged_ones_named(tmp_path):
    store = Store(tmp_path, "b")
    (tmp_path / "mean-fold0-64.json").write_text(json.dumps({"row": "mean", "mae": 1.0}))
    (tmp_path / "study.json").write_text("{}")
    kept = store.keep("d", {"epochs": 1}, {"mae": 2.0})
    assert store.results() == [kept]
    path = store.path("d", {"epochs": 1})
    path.write_text(path.read_text().replace('"epochs": 1', '"epochs": 3'))
    with pytest.raises(ValueError, match=f"{path.name}: is not a result of the options it names"):
        store.results()
    path.write_text('{"row": "mean"}')
    with pytest.raises(ValueError, match=f"{path.name}: is not a result of this benchmark"):
        store.results()


def test_differences_name_what_is_not_the_same():
    options = [{"a": 1, "net": {"layers": 2}, "c": 0}, {"a": 1, "net": {"layers": 3}, "c": 0}]
    assert differences(options) == ["layers 2", "layers 3"]
    assert differences(options[:1]) == [""]
    assert Result("b", "d", options[0], {}).key != Result("b", "d", options[1], {}).key


def test_tables():
    text = tables.table(("name", "MAE"), [("a", tables.spread([1.0, 3.0], 2)), ("b", None)])
    assert text.splitlines() == ["| name | MAE |", "|---|---|", "| a | 2.00 ± 1.41 |", "| b | – |"]
    assert tables.spread([1.0], 1) == "1.0"


def test_mutated_results_are_refused_or_right(tmp_path):
    store = Store(tmp_path, "b")
    right = store.keep("d", {"epochs": 1}, {"mae": 2.125, "note": "", "each": [1, 2.5]})
    (path,) = tmp_path.glob("*.json")

    def judge(_) -> str:
        assert store.find("d", {"epochs": 1}) == right
        return "right"

    said = outcomes(mutants(path.read_bytes(), 400, 0), path, judge)
    assert said["refused"] > 300
