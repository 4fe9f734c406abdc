"""Store of results: one JSON file each, known by its data and all of its options.

A file's name ends in the digest of benchmark, data and options, so that no result replaces another
and none is taken for one of other data or options. Other files in the folder are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ase_biasgrad.files import write_whole

FORMAT = "ase-biasgrad benchmark result"


@dataclass(frozen=True)
class Result:
    """Figures of one measurement, and its identity: digest of the data, and every option."""

    benchmark: str
    data: str
    options: dict[str, Any]
    figures: dict[str, Any]

    @property
    def key(self) -> str:
        """Digest of the identity, 16 hexadecimal digits."""
        identity = json.dumps([self.benchmark, self.data, self.options], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """Results of one benchmark in a folder, which is made with the first of them."""

    folder: Path
    benchmark: str

    def path(self, data: str, options: dict[str, Any], suffix: str = ".json") -> Path:
        """File of a result, or of what belongs to it, such as its network."""
        key = Result(self.benchmark, data, options, {}).key
        return self.folder / f"{self.benchmark}-{key}{suffix}"

    def find(self, data: str, options: dict[str, Any]) -> Result | None:
        """The result of just these data and options, if there is one."""
        path = self.path(data, options)
        return self._read(path) if path.exists() else None

    def keep(self, data: str, options: dict[str, Any], figures: dict[str, Any]) -> Result:
        """Write a result; one that is there already stays and is returned."""
        if found := self.find(data, options):
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(data, options)
        record = {"format": FORMAT, **asdict(Result(self.benchmark, data, options, figures))}
        record["sha256"] = _digest(record)
        write_whole(path, json.dumps(record, indent=1) + "\n")
        return self._read(path)

    def results(self, data: str | None = None) -> list[Result]:
        """All results, or those of some data."""
        pattern = f"{self.benchmark}-{'[0-9a-f]' * 16}.json"
        found = [self._read(path) for path in sorted(self.folder.glob(pattern))]
        return [result for result in found if data in (None, result.data)]

    def _read(self, path: Path) -> Result:
        """Raise `ValueError` if the file is damaged, or was edited so that its name is wrong."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            digest = record.pop("sha256", None)  # older ones have none
            changed = digest not in (None, _digest(record))
            if record.pop("format") != FORMAT:
                raise KeyError("format")
            result = Result(**record)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is not a result of this benchmark ({error})") from error
        if not path.stem.endswith(result.key):
            raise ValueError(
                f"{path}: is not a result of the options it names; delete or restore it"
            )
        if changed:
            raise ValueError(f"{path}: its content was changed; delete or restore it")
        return result


def differences(options: Sequence[dict[str, Any]]) -> list[str]:
    """Names and values of the options that are not the same in all, for each."""

    def flat(values: dict[str, Any]) -> dict[str, Any]:
        parts = [flat(v) if isinstance(v, dict) else {k: v} for k, v in values.items()]
        return {key: value for part in parts for key, value in part.items()}

    every = [flat(values) for values in options]
    names = dict.fromkeys(name for values in every for name in values)
    differ = [n for n in names if any(v.get(n) != every[0].get(n) for v in every)]
    return [", ".join(f"{n} {values[n]}" for n in differ if n in values) for values in every]
