"""Rows in memory: every form gives the same file, and what JSON cannot hold is named with its row and column."""

from __future__ import annotations

import json
import math
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest

import luthier
from luthier.api.rows import data_settings
from luthier.data import cache
from tests.conftest import alpaca_rows

ROWS = alpaca_rows(3)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        tuple(ROWS),
        (row for row in ROWS),
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
        pandas.DataFrame(ROWS),
    ],
    ids=["list", "tuple", "generator", "Dataset", "IterableDataset", "DataFrame"],
)
def test_every_form_of_rows_is_the_same_file(rows: Any) -> None:
    place = Path(data_settings(rows))
    assert place == Path(data_settings(ROWS)), "the name follows from the content"
    assert [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()] == ROWS
    assert not list(place.parent.parent.glob(".*.staging"))


def test_splits_and_blocks_become_paths() -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    found = data_settings(datasets.DatasetDict({"train": dataset, "validation": dataset.select([0])}))
    assert found == {"path": str(data_settings(ROWS)), "validation": str(data_settings(ROWS[:1]))}
    assert data_settings({"path": ROWS, "validation": 0.5, "seed": 1})["validation"] == 0.5
    assert data_settings({"path": "a.jsonl", "test": ROWS})["test"] == data_settings(ROWS)
    assert data_settings("me/rows") == "me/rows" and data_settings(Path("a.csv")) == Path("a.csv")
    with pytest.raises(luthier.InputError, match="a split is called 'heldout'"):
        data_settings(datasets.DatasetDict({"heldout": dataset}))


def test_values_of_other_libraries_are_kept_as_json_has_them() -> None:
    row = {"text": "里程碑 😀", "label": np.int64(3), "score": np.float32(0.5), "list": np.array([1, 2]), "none": None}
    (line,) = Path(data_settings([row])).read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"text": "里程碑 😀", "label": 3, "score": 0.5, "list": [1, 2], "none": None}
    assert "里程碑" in line
    frame = pandas.DataFrame({"text": ["a", None], "label": [1.0, math.nan]})
    lines = Path(data_settings(frame)).read_text(encoding="utf-8").splitlines()
    assert [json.loads(each) for each in lines] == [{"text": "a", "label": 1.0}, {"text": None, "label": None}]


def test_a_row_that_no_file_can_hold_is_named_with_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    itself: dict[str, Any] = {}
    itself["a"] = itself
    for value, said in [
        (math.nan, "row 2, column 'a': nan is no number in JSON"),
        (object(), "row 2, column 'a': a object is no text"),
        (date(2026, 1, 1), "row 2, column 'a': a date is no text"),
        (b"bytes", "row 2, column 'a': a bytes is no text"),
        ({1: "x"}, "row 2, column 'a': the key 1 is not text"),
        ("\ud800", "row 2, column 'a': half a character"),
        (itself, "row 2, column 'a': it is nested too deep"),
    ]:
        with pytest.raises(luthier.InputError) as caught:
            data_settings([{"a": "fine"}, {"a": value}])
        assert said in str(caught.value) and caught.value.fix


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "data holds no rows"),
        ([{"a": 1}, "text"], "data: row 2 is a str, not a dict of columns"),
        ([{7: 1}], "data: row 1: the column name 7 is not text"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "two columns called 'a'"),
        ({"path": []}, "data.path holds no rows"),
        (object(), "data is a object, which holds no rows"),
    ],
)
def test_what_is_no_rows_is_refused(rows: Any, said: str) -> None:
    with pytest.raises(luthier.InputError) as caught:
        data_settings(rows)
    assert said in str(caught.value)


def test_luthier_cache_shows_and_clears_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    place = Path(data_settings(ROWS))
    assert [folder for folder, _, _ in cache.entries()] == [place.parent]
    size = place.stat().st_size
    assert cache.clear() == size and not place.exists() and not cache.entries()
