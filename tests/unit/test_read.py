"""Files: every suffix, every encoding people have, and every row that is none is named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.data.read import read_rows
from luthier.errors import DataError, LuthierError

ROWS = [{"text": 'a, "quoted"\nline', "label": "NA"}, {"text": "水壶；漏水", "label": "007"}]


def read(path: Path, **options: str) -> list[dict[str, object]]:
    return [dict(row.values) for row in read_rows(str(path), hub="huggingface", **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "lines.json", "a.json", "array.jsonl", "a.csv", "semicolon.csv", "a.tsv", "a.parquet"]
)
def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    elif name.endswith((".csv", ".tsv")):
        mark = {"a.csv": ",", "semicolon.csv": ";", "a.tsv": "\t"}[name]
        quoted = [[cell.replace('"', '""') for cell in row.values()] for row in ROWS]
        file.write_text(f"text{mark}label\n" + "".join(f'"{a}"{mark}"{b}"\n' for a, b in quoted), encoding="utf-8")
    else:
        file.write_text(json.dumps(ROWS) if name in ("a.json", "array.jsonl") else lines, encoding="utf-8")
    assert read(file) == ROWS, "texts stay texts: NA is no null and 007 no number"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(ROWS[1], ensure_ascii=False).encode(encoding))
    assert read(file) == [ROWS[1]]


def test_plain_text_is_parted_at_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\n")
    assert read(file) == [{"text": "one\ntwo"}, {"text": "three"}]
    rows = list(read_rows(str(file), hub="huggingface"))
    assert [row.where for row in rows] == [f"{file}: line 1", f"{file}: line 4"]


def test_a_line_that_is_no_json_is_named_and_the_others_come_through(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"a": \n[1]\n{"a": NaN}\n{"a": 2}\n')
    rows = list(read_rows(str(file), hub="huggingface"))
    assert [row.where.rpartition(" ")[2] for row in rows if row.problem] == ["3", "4", "5"]
    assert [row.values for row in rows if not row.problem] == [{"a": 1}, {"a": 2}]


def test_a_ragged_csv_row_is_a_problem_and_not_a_shift(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('text,label\n"two\nlines",1\none, two,3\n')
    good, bad = read_rows(str(file), hub="huggingface")
    assert good.values == {"text": "two\nlines", "label": "1"} and good.where == f"{file}: line 2"
    assert "has 3 cells, the header 2" in bad.problem and bad.where == f"{file}: line 4"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n\n", "the file has no rows"),
        ("a.json", b"[]", "the file has no rows"),
        ("a.json", b'[{"a": 1},', "no valid JSON array"),
        ("a.json", b'{\n "a": 1,\n "b": 2\n}', "holds one object, not rows"),
        ("a.csv", b"text,label\n", "a header and no rows"),
        ("a.csv", b"text,text\n1,2\n", "two columns have the same name"),
        ("a.csv", b"PK\x03\x04rest", "zip or Excel"),
        ("a.parquet", b"no parquet", "no valid parquet"),
        ("a.xyz", b"a", "unknown kind of file"),
        ("a.jsonl", b"{}\n\xff\xff\xff", "line 2 is neither UTF-8 nor GB18030"),
        ("a.txt", b"\n \n", "the file has no text"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(file)
    assert said in str(caught.value) and str(file) in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"no such file \(did you mean 'reviews.jsonl'\?\)"):
        read(tmp_path / "review.jsonl")
    with pytest.raises(DataError, match="no folder"):
        read(tmp_path / "nowhere" / "review.jsonl")


def test_a_folder_has_splits(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "dev.jsonl").write_text('{"a": 2}\n')
    assert read(tmp_path) == [{"a": 1}]
    assert read(tmp_path, split="dev") == [{"a": 2}]
    with pytest.raises(DataError, match=r"no file for the split 'test'"):
        read(tmp_path, split="test")


def test_a_hub_id_that_cannot_be_reached_says_so() -> None:
    with pytest.raises(LuthierError, match="could not be loaded from the hub"):
        read(Path("nobody/nothing"))


def test_a_hub_data_set_brings_its_rows_and_its_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from luthier.config import DataConfig
    from luthier.data.prepare import load

    asked: list[tuple[str, str | None, str]] = []

    def fake(path: str, subset: str | None = None, *, split: str) -> datasets.Dataset:
        asked.append((path, subset, split))
        return datasets.Dataset.from_list([{"prompt": f"{split} {i}", "completion": "A"} for i in range(4)])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path: ["test", "train", "validation"])
    data = load(DataConfig(path="org/set", subset="en"), None)
    assert asked == [("org/set", "en", "train"), ("org/set", "en", "validation")]
    assert len(data.examples) == len(data.validation_examples) == 4
    assert data.examples[1].where == "org/set (train): row 2"
    data = load(DataConfig(path="org/set", validation="test"), None)
    assert data.validation.source == "org/set (test)" and data.validation_examples[0].messages[0].content == "test 0"


def test_modelscope_says_what_to_install_and_is_asked_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(LuthierError, match=r"pip install 'luthier\[modelscope\]'"):
        list(read_rows("org/set", hub="modelscope"))
    there = types.ModuleType("modelscope")

    class MsDataset:
        @staticmethod
        def load(path: str, subset_name: str, split: str) -> list[dict[str, str]]:
            return [{"text": f"{path} {subset_name} {split}"}]

    there.MsDataset = MsDataset  # type: ignore[attr-defined]
    there.snapshot_download = lambda path, revision: f"/cache/{path}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", there)
    (row,) = read_rows("org/set", hub="modelscope")
    assert row.values == {"text": "org/set default train"}
    from luthier.config import ModelConfig
    from luthier.models.load import locate

    assert locate(ModelConfig(path="org/model", hub="modelscope")) == "/cache/org/model"
