"""Safetensors files with a digest: a header of JSON, bytes of tensors, SHA-256 of both.

The digest stands in the header's metadata under `sha256`, and is of everything else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from ase_biasgrad.files import whole_file

MAX_HEADER = 2**24  # bytes
MAX_DEPTH = 64  # of nested JSON


def write_tensors(
    path: str | Path,
    save: Callable[[Any, dict[str, str]], bytes],
    tensors: Mapping[str, Any],
    metadata: dict[str, Any],
) -> None:
    """Write tensors by `save` of safetensors, and JSON values beside them, whole or not at all."""
    stored = {"ase_biasgrad": json.dumps(metadata)}
    digest = file_digest(*split_file(save(tensors, stored)))
    with whole_file(path) as temporary:
        temporary.write_bytes(save(tensors, {**stored, "sha256": digest}))


def checked_metadata(content: bytes, kind: str, newest: int) -> dict[str, Any]:
    """JSON values of a file of the format `kind`, in a version up to `newest`, digest compared.

    Raises `ValueError` if it is something else, damaged, or of a newer version.
    """
    header, data = split_file(content)
    metadata = parsed_json(header.get("__metadata__", {}).get("ase_biasgrad", "{}"))
    if metadata.get("format") != kind:
        raise ValueError(
            f"a safetensors file, but no {kind}: its format is {metadata.get('format')!r}"
        )
    version = metadata.get("version", 1)
    if version > newest:
        raise ValueError(f"has version {version}, this package reads {newest}; update it")
    check_digest(header, data, version)
    return metadata


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    try:
        if not 2 <= length <= min(MAX_HEADER, len(content) - 8):
            raise ValueError(f"its header is said to have {length} bytes")
        header = parsed_json(content[8 : 8 + length].decode())
    except ValueError as error:
        raise ValueError(
            f"not a safetensors file, or damaged ({error}); models of SchNetPack come in through "
            "`biasgrad convert`"
        ) from error
    return header, content[8 + length :]


def parsed_json(text: str) -> dict[str, Any]:
    """One JSON object, neither nested deeply nor with a key twice."""
    brackets = re.findall(r"[\[\]{}]", re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"', "", text))
    if max(accumulate(1 if b in "[{" else -1 for b in brackets), default=0) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    value = json.loads(text, object_pairs_hook=_without_duplicates)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(unique := dict(pairs)) < len(pairs):
        raise ValueError(f"a key occurs twice among {[key for key, _ in pairs][:20]}")
    return unique


def file_digest(header: dict[str, Any], data: bytes) -> str:
    """SHA-256, hexadecimal, of tensor bytes and header, the digest in the header left out."""
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "sha256"}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(text.encode() + data).hexdigest()


def check_digest(header: dict[str, Any], data: bytes, version: int) -> None:
    """Raise `ValueError` on other content than was written; files of version 1 have no digest."""
    stored = header["__metadata__"].get("sha256")
    if (version > 1 or stored is not None) and stored != file_digest(header, data):
        raise ValueError("sha256: the content is not what was written; get the file anew")
