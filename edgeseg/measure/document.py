"""Result documents: plain JSON from dataclasses, written beside and then renamed."""

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.files import new_file, write_text


def plain(value: Any) -> Any:
    """Dataclasses, tuples, paths and NumPy values as what JSON knows; NaN and infinity become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def one_line(document: Any) -> str:
    """`document` as one line of JSON."""
    return json.dumps(plain(document), allow_nan=False, ensure_ascii=False)


def check_out(out: Path | None) -> None:
    """Raise EdgesegError when `out`, or what is above it, is no folder: to be called before the work, not after it."""
    there = next((p for p in (out, *out.parents) if p.exists()), None) if out else None
    if there is not None and not there.is_dir():
        raise EdgesegError(f"{there}: is a file, --out takes a folder: choose another")


def write_json(path: Path, document: Any) -> Path:
    return write_text(path, json.dumps(plain(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Iterable[Any], fields: Sequence[str]) -> Path:
    """One line for each dataclass or dict in `rows`; a NaN is an empty cell."""
    with new_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(plain(row) for row in rows)
    return path
