import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgeseg.measure.document import one_line, plain, write_csv, write_json


@dataclass
class Cell:
    name: str
    value: float


def test_nan_becomes_null_and_numpy_plain():
    found = plain({"a": np.float32(0.5), "b": float("nan"), "c": (Cell("x", np.inf),), "d": np.arange(2),
                   "e": Path("p")})
    assert found == {"a": 0.5, "b": None, "c": [{"name": "x", "value": None}], "d": [0, 1], "e": "p"}


def test_one_line_is_one_line_of_json():
    line = one_line({"note": "two\nlines", "x": float("inf")})
    assert "\n" not in line
    assert json.loads(line) == {"note": "two\nlines", "x": None}


def test_an_undefined_value_is_an_empty_cell(tmp_path):
    path = write_csv(tmp_path / "deep" / "rows.csv", [Cell("a", 1.5), Cell("b", float("nan"))], ["name", "value"])
    with path.open() as file:
        assert list(csv.DictReader(file)) == [{"name": "a", "value": "1.5"}, {"name": "b", "value": ""}]


def test_a_document_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = write_json(tmp_path / "result.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
