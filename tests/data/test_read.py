"""Files: every suffix, every encoding people have, and every row that is none is named."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from luthier.builtin import BASE
from luthier.core.errors import DataError, LuthierError, MissingExtra
from luthier.data.file_types.base import encoding_of
from luthier.data.read import read_rows, validation_split
from luthier.recipe.config import DataConfig

ROWS = [{"text": 'a, "quoted"\nline', "label": "NA"}, {"text": "水壶；漏水", "label": "007"}]


def read(path: Path, **options: Any) -> list[dict[str, object]]:
    return [dict(row.values) for row in read_rows(DataConfig(path=str(path), **options))]


TEXTUAL = ["a.jsonl", "lines.json", "a.json", "array.jsonl", "a.csv", "semicolon.csv", "a.tsv", "old_mac.csv"]


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)  # type: ignore[no-any-return]


def textual(name: str) -> str:
    if name.endswith((".csv", ".tsv")):
        mark = {"semicolon.csv": ";", "a.tsv": "\t"}.get(name, ",")
        end = "\r" if name == "old_mac.csv" else "\n"
        quoted = [[cell.replace('"', '""') for cell in row.values()] for row in ROWS]
        return f"text{mark}label{end}" + "".join(f'"{a}"{mark}"{b}"{end}' for a, b in quoted)
    if name in ("a.json", "array.jsonl"):
        return json.dumps(ROWS, ensure_ascii=False)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("name", TEXTUAL)
def test_the_same_rows_come_out_of_every_kind_of_text(tmp_path: Path, name: str, encoding: str, packed: str) -> None:
    file = tmp_path / (name + packed)
    text = textual(name)
    content = ("\ufeff" + text if encoding == "utf-16-be" else text).encode(encoding)
    file.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed](content))
    assert read(file) == ROWS, "texts stay texts: NA is no null and 007 no number"
    assert encoding_of(file) == encoding.removesuffix("-be"), "and the report can say it"
    places = [row.where.rpartition(" ")[2] for row in read_rows(DataConfig(path=str(file)))]
    assert places == (["1", "2"] if "csv" not in name and "tsv" not in name else ["2", "4"])


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow", "a.feather", "a.ipc"])
def test_the_same_rows_come_out_of_every_kind_of_table(tmp_path: Path, name: str) -> None:
    file, table = tmp_path / name, pa.Table.from_pylist(ROWS)
    if name == "a.parquet":
        pq.write_table(table, file)
    elif name == "a.feather":
        pyarrow.feather.write_feather(table, file)
    else:
        made = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
        with pa.OSFile(str(file), "wb") as sink, made(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    assert read(file) == ROWS
    assert [row.where for row in read_rows(DataConfig(path=str(file)))] == [f"{file}: row 1", f"{file}: row 2"]
    empty = tmp_path / f"empty-{name}"
    (pq.write_table if name == "a.parquet" else pyarrow.feather.write_feather)(table.slice(0, 0), empty)
    with pytest.raises(DataError, match="the file has no rows"):
        read(empty)


def test_a_packed_file_is_known_by_its_bytes_and_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"a": 1}'))
    (tmp_path / "b.jsonl.gz").write_bytes(b'{"a": 1}')
    (tmp_path / "C.JSONL.GZ").write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}'))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.jsonl.gz") == [{"a": 1}]
    assert read(tmp_path / "C.JSONL.GZ") == [{"a": 1}, {"a": 2}], "files put one after the other"


def test_a_text_over_the_limit_of_the_csv_library(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f'text,label\n"{"long, " * 50_000}",1\n')
    assert len(str(read(file)[0]["text"])) == 300_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.jsonl.zst", "gb18030.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        made = [{"text": f"row {i} " + "漏水 " * 20} for i in range(count)]
        texts = [row["text"] for row in made] if name == "a.csv" else [json.dumps(r, ensure_ascii=False) for r in made]
        text = f"[{','.join(texts)}]" if name == "a.json" else ("\n\n" if name == "a.txt" else "\n").join(texts)
        content = ("text\n" + text if name == "a.csv" else text).encode("gb18030" if "gb" in name else "utf-8")
        pack = gzip.compress if name.endswith(".gz") else zstd if name.endswith(".zst") else bytes
        file = tmp_path / name
        file.write_bytes(pack(content))
        del made, texts, text, content
        tracemalloc.start()
        assert sum(1 for _ in read_rows(DataConfig(path=str(file)))) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(24_000) < 1.2 * peak(8_000) + 100_000  # 2.2 MB and 0.7 MB of text


def test_plain_text_is_parted_at_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\n")
    assert read(file) == [{"text": "one\ntwo"}, {"text": "three"}]
    rows = list(read_rows(DataConfig(path=str(file))))
    assert [row.where for row in rows] == [f"{file}: line 1", f"{file}: line 4"]


def test_a_line_that_is_no_json_is_named_and_the_others_come_through(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"a": \n[1]\n{"a": NaN}\n{"a": 2}\n')
    rows = list(read_rows(DataConfig(path=str(file))))
    assert [row.where.rpartition(" ")[2] for row in rows if row.problem] == ["3", "4", "5"]
    assert [row.values for row in rows if not row.problem] == [{"a": 1}, {"a": 2}]


def test_a_ragged_csv_row_is_a_problem_and_not_a_shift(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('text,label\n"two\nlines",1\none, two,3\n')
    good, bad = read_rows(DataConfig(path=str(file)))
    assert good.values == {"text": "two\nlines", "label": "1"} and good.where == f"{file}: line 2"
    assert "has 3 cells, the header 2" in bad.problem and bad.where == f"{file}: line 4"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n\n", "the file has no rows"),
        ("a.json", b"[]", "the file has no rows"),
        ("a.json", b'[{"a": 1},', "invalid JSON array"),
        ("a.json", b'{\n "a": 1,\n "b": 2\n}', "holds one object, not rows"),
        ("a.csv", b"text,label\n", "a header and no rows"),
        ("a.csv", b"text,text\n1,2\n", "two columns have the same name"),
        ("a.csv", b"PK\x03\x04rest", "zip or Excel"),
        ("a.parquet", b"no parquet", "invalid parquet"),
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


def test_rows_of_a_table_without_a_header_line_begin_with_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    rows = list(read_rows(DataConfig(path=str(tmp_path / "a.csv"), columns=("x", "y"))))
    assert [(row.where.rpartition(" ")[2], row.values["y"]) for row in rows] == [("1", "2"), ("2", "4")]


def test_a_folder_has_splits(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "dev.jsonl").write_text('{"a": 2}\n')
    assert read(tmp_path) == [{"a": 1}]
    assert read(tmp_path, split="dev") == [{"a": 2}]
    with pytest.raises(DataError, match=r"no file for the split 'test'"):
        read(tmp_path, split="test")


def test_shards_of_a_split_are_read_in_order(tmp_path: Path) -> None:
    for i in range(11):
        (tmp_path / f"train_{i}.jsonl").write_text(f'{{"a": {i}}}\n')
    for i in range(2):
        name = f"validation-0000{i}-of-00002-0123456789abcdef.parquet"
        pq.write_table(pa.Table.from_pylist([{"a": i}]), tmp_path / name)
    (tmp_path / "test.part-1.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    assert [row["a"] for row in read(tmp_path)] == list(range(11)), "10 comes after 9"
    assert read(tmp_path, split="validation") == [{"a": 0}, {"a": 1}]
    assert read(tmp_path, split="test") == [{"a": "1"}]
    assert validation_split(str(tmp_path), "huggingface") == "validation"
    places = [row.where for row in read_rows(DataConfig(path=str(tmp_path), split="validation"))]
    assert places[1] == f"{tmp_path}/validation-00001-of-00002-0123456789abcdef.parquet: row 1"
    (tmp_path / "train.jsonl").write_text('{"a": "whole"}\n')
    assert read(tmp_path) == [{"a": "whole"}], "a file of just this name is the split"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-0-of-3.csv", "train-2-of-3.csv"], "2 of the 3 shards of 'train' are there: numbers 0, 2"),
        (["train_1.csv", "train_01.csv"], "shard 1 of 'train' is there twice: train_01.csv, train_1.csv"),
        (["train.csv", "train.jsonl"], "the split 'train' is there 2 times: train.csv, train.jsonl"),
        (["tran.csv"], "no file for the split 'train' (did you mean 'tran'?); the folder has tran.csv"),
    ],
)
def test_a_folder_that_would_lose_or_double_rows(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).write_text("a\n1\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert said in caught.value.message and caught.value.fix


def test_a_hub_id_that_cannot_be_reached_says_so() -> None:
    with pytest.raises(LuthierError, match="could not be loaded from the hub"):
        read(Path("nobody/nothing"))


def test_a_hub_id_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r"not a local file[^\n]*\n  fix: check the path, or .*pip install 'datasets>=4.0'"
    ):
        read(Path("nobody/nothing"))
    with pytest.raises(MissingExtra, match="not a local file"):
        validation_split("nobody/nothing", "huggingface")


def test_a_hub_data_set_brings_its_rows_and_its_validation_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from luthier.data.prepare import load

    asked: list[tuple[str, str | None, str]] = []

    def fake(path: str, subset: str | None = None, *, split: str, streaming: bool) -> datasets.Dataset:
        assert not streaming
        asked.append((path, subset, split))
        return datasets.Dataset.from_list([{"prompt": f"{split} {i}", "completion": "A"} for i in range(4)])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, subset: ["test", "train", "validation"])
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
    with pytest.raises(LuthierError, match=r"pip install 'modelscope>=1.20'"):
        list(read_rows(DataConfig(path="org/set", hub="modelscope")))
    there = types.ModuleType("modelscope")

    class MsDataset:
        @staticmethod
        def load(path: str, subset_name: str, split: str, use_streaming: bool) -> list[dict[str, str]]:
            assert not use_streaming
            return [{"text": f"{path} {subset_name} {split}"}]

    there.MsDataset = MsDataset  # type: ignore[attr-defined]
    there.snapshot_download = lambda path, revision: str(BASE)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", there)
    (row,) = read_rows(DataConfig(path="org/set", hub="modelscope"))
    assert row.values == {"text": "org/set default train"}
    from luthier.models.load import locate
    from luthier.models.settings import ModelConfig

    assert locate(ModelConfig(path="org/model", hub="modelscope")) == str(BASE)
