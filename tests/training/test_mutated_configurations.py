"""Configurations with every kind of fault: options of the package, or an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import options, write_clusters
from mutations import mutants, outcomes

from ase_biasgrad.training import ConfigError, config_from, load_config, resume, train
from ase_biasgrad.training.config import TrainConfig

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}, *a{k}]\n" for k in range(40))


def loaded(path: Path) -> str:
    return type(load_config(path)).__name__


@pytest.mark.parametrize("count", [400, pytest.param(50_000, marks=pytest.mark.slow)])
def test_mutated_configurations_are_refused_or_options(tmp_path, count):
    text = yaml.safe_dump(options("x.h5"), sort_keys=False).encode()
    said = outcomes(mutants(text, count, 0), tmp_path / "x.yaml", loaded)
    assert set(said) == {"refused", TrainConfig.__name__}
    assert said["refused"] > 0.5 * count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {path: x.h5, path: y.h5}", "path: occurs twice"),
        ("data: {path: x.h5}\nseed: 1\nseed: 2", "seed: occurs twice"),
        ("1: 2", "1: occurs twice, or is not text"),
        ("? [a]\n: b", "is not text"),
        ("[" * 10**5, "characters; options take|nested more than 16 deep"),
        ("{a: " * 10**4, "nested more than 16 deep"),
        ("- " * 10**4, "nested more than 16 deep"),
        (BOMB, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: !!python/object/apply:os.system ['touch harm']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: \x00", "special characters are not allowed"),
        ("x" * 10**6, "1000000 characters; options take 100000"),
        ("", "is not a mapping of options"),
        ("data: {path: x.h5}\nforce_stage: {learning_rate: .inf}", "force_stage.learning_rate"),
        ("data: {path: x.h5}\nforce_stage: {learning_rate: .nan}", "force_stage.learning_rate"),
        ("data: {path: x.h5}\nbackbone: {name: [painn]}", "backbone.name"),
        ("data: {path: x.h5}\nbackbone: {features: {a: 1}}", "features="),
        ("data: [x.h5]", "data: "),
    ],
)
def test_configurations_that_lie_are_refused(tmp_path, text, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)

    def judge(path: Path) -> str:
        with pytest.raises(ConfigError, match=rf"x\.yaml: (.|\n)*({message})") as error:
            load_config(path)
        raise error.value

    assert outcomes([(message, text.encode())], tmp_path / "x.yaml", judge) == {"refused": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("value", ["[", "{a: 1, a: 2}", "&a [*a]", "2020-99-99"])
def test_overrides_that_are_no_values_are_named(tmp_path, value):
    (tmp_path / "x.yaml").write_text("data: {path: x.h5}")
    with pytest.raises(ConfigError, match=r"override 'seed=.*': cannot be read as YAML"):
        load_config(tmp_path / "x.yaml", [f"seed={value}"])


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "split.json"])
def test_run_folders_that_lie_are_refused(tmp_path, name):
    path = write_clusters(tmp_path / "x.h5")
    train(config_from(options(path, epochs=1)), tmp_path / "run")
    file = tmp_path / "run" / name
    for content in (b"", b"[]", b"{}", b"\xff", b"[" * 10**5, b'{"train": [999]}', b"{", b"3"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name}: |has changed since"):
            resume(tmp_path / "run")
