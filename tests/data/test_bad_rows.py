"""Bad input of every kind that people have: counted and named, or refused with file, place and fix. Never a crash."""

from __future__ import annotations

import gzip
import json
import math
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.core.errors import DataError, LuthierError
from luthier.data.encode import encode
from luthier.data.file_types import arrow, csv, txt
from luthier.data.file_types import base as files
from luthier.data.file_types.base import RawRow, encoding_of
from luthier.data.prepare import load
from luthier.data.prepared import Prepared
from luthier.data.read import read_file, read_rows
from luthier.recipe.config import DataConfig
from luthier.rendering.chat_template import Template
from luthier.tasks.base import TASKS
from tests.conftest import alpaca_rows, build_tokenizer, write_jsonl

GOOD = {"instruction": "Q", "output": "A"}


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def read(file: Path) -> list[RawRow]:
    return list(read_rows(DataConfig(path=str(file))))


def refused(path: Path | str, said: str, fix: str = "") -> None:
    """Reading ends in a DataError that names the file, says `said`, and offers a fix."""
    with pytest.raises(DataError) as caught:
        list(read_rows(DataConfig(path=str(path))))
    assert f"{path}: " in str(caught.value) and said in caught.value.message, str(caught.value)
    assert caught.value.fix and fix in caught.value.fix


def prepared(file: Path, *, task: str | None = None, **fields: Any) -> Prepared:
    config = DataConfig(**{"path": str(file), "validation": "none", **fields})
    data = load(config, TASKS.parse(task) if task else None)
    encode(data, Template(build_tokenizer()), config, 256)
    return data


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit for rows that a test can pass quickly."""
    for module in (files, csv, txt):
        monkeypatch.setattr(module, "LINE_LIMIT", 1000)
    return 1000


def line(text: str) -> str:
    return json.dumps(GOOD) + "\n" + text + "\n" + json.dumps(GOOD) + "\n"


DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
EMPTY_ANSWER = '{"instruction": "Q", "output": "%s"}'
TURNS = '{"messages": [{"role": "user", "content": "Q"}, %s]}'


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the clock would change the names of the tests


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"instruction": "Q", "output', "invalid JSON: Unterminated string starting at character 22"),
        ('{"instruction": "Q", "output": NaN}', "NaN is not a number in JSON"),
        ('{"instruction": "Q", "output": Infinity}', "Infinity is not a number in JSON"),
        ('{"instruction": "Q", "output": -Infinity}', "-Infinity is not a number in JSON"),
        ('{"instruction": "Q", "output": "A", "output": "B"}', "the key 'output' is there twice in one object"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
        (r'{"instruction": "Q", "output": "\ud800"}', "'output' holds half a character (a lone surrogate"),
        (r'{"instruction": "Q", "output": "A", "other": [{"x": "\uDC00"}]}', "'other' holds half a character"),
        (r'{"instruction": "Q", "output": "A", "\udfff": 1}', r"'\udfff' holds half a character"),
        (DEEP, "nested more than 64 deep"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested more than 64 deep"),
        ('{"instruction": "Q", "output": ' + "1" * 5000 + "}", "more digits than Python reads"),
        ('{"instruction": "Q", "output": ' + "1" * 4000 + "}", "output should be text, not int"),
        ('{"instruction": "Q", "output": 1e999}', "output should be text, not float"),
        ('{"instruction": "Q", "output": "a\0b"}', "Invalid control character"),
        ('{"instruction": "Q", "output": "a\\u0000b"}', "output holds a NUL character"),
        ("[1, 2]", "should be an object with columns, not list"),
        ("null", "should be an object with columns, not NoneType"),
        ('"text"', "should be an object with columns, not str"),
        ("{}", "there is no column 'instruction'; the row has none"),
        ('{"question": "Q", "answer": "A"}', "there is no column 'instruction'; the row has question, answer"),
        ('{"instruction": "Q", "output": null}', "output is null"),
        ('{"instruction": null, "output": "A"}', "instruction is null"),
        ('{"instruction": "Q", "output": 7}', "output should be text, not int"),
        ('{"instruction": "Q", "input": 0, "output": "A"}', "input should be text, not int"),
        ('{"instruction": "Q", "output": "A", "system": false}', "system should be text, not bool"),
        ('{"instruction": "Q", "output": {"a": 1}}', "output should be text, not dict"),
        ('{"instruction": "Q", "output": "A", "history": 5}', "history should be a list, not int"),
        ('{"instruction": "Q", "output": "A", "history": [["a"]]}', "history should be pairs"),
        (EMPTY_ANSWER % "", "the assistant message is empty"),
        (EMPTY_ANSWER % " \\n\\t", "the assistant message is empty"),
        ('{"instruction": "", "output": "A"}', "the user message is empty"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_kept(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "a.jsonl", line(text))
    with pytest.raises(DataError) as caught:
        prepared(file)
    assert caught.value.message.startswith(f"{file}: line 2: ") and said in caught.value.message
    data = prepared(file, on_bad_row="skip")
    assert (data.train.read, data.train.refused, data.train.kept) == (3, 1, 2)
    (refusal,) = data.refusals
    assert refusal.where == f"{file}: line 2" and said in refusal.reason
    json.dumps(refusal.row, ensure_ascii=False).encode()  # can be written to refused.jsonl


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ('{"role": "user", "content": "Q"}', "turn 2: two user turns in a row"),
        (
            '{"role": "assistant", "content": "A"}, {"role": "assistant", "content": "A"}',
            "two assistant turns in a row",
        ),
        (
            '{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}',
            "a system message must come first",
        ),
        ('{"role": "critic", "content": "A"}', "unknown role 'critic'"),
        ('{"role": null, "content": "A"}', "unknown role None"),
        ('{"role": "assistant"}', "content of turn 2 is null"),
        ('{"content": "A"}', "turn 2 of messages has no role"),
        ('"A"', "turn 2 of messages has no role"),
        ('{"role": "assistant", "content": [{"type": "image"}]}', "has parts that are not text"),
    ],
)
def test_a_dialogue_that_is_none(tmp_path: Path, turns: str, said: str) -> None:
    good = TURNS % '{"role": "assistant", "content": "A"}'
    file = write(tmp_path / "a.jsonl", "\n".join([good, TURNS % turns, good]))
    data = prepared(file, on_bad_row="skip")
    assert [refusal.where for refusal in data.refusals] == [f"{file}: line 2"]
    assert said in data.refusals[0].reason and data.train.kept == 2


def test_mixed_schemas_are_counted(tmp_path: Path) -> None:
    other = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    file = write_jsonl(tmp_path / "a.jsonl", [GOOD, GOOD, other, {"text": "plain"}, GOOD])
    data = prepared(file, on_bad_row="skip")
    assert data.format.name == "alpaca" and data.train.kept == 3 and data.train.refused == 2
    assert "no column 'instruction'; the row has conversations" in data.refusals[0].reason


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.csv", b"\xef\xbb\xbf", "the file has no header line"),
        ("a.jsonl", b"\xef\xbb\xbf\n", "the file has no rows"),
        ("a.jsonl", packed(b""), "the file has no rows"),
        ("a.json", b'[{"a": 1}, {"a": 2', "invalid JSON array: it ends within row 2, without the closing ]"),
        ("a.json", b'[{"a": "x', "it ends within row 1"),
        ("a.json", b'[{"a": 1}] {"a": 2}', "there is more after the closing ], after row 1"),
        ("a.json", b'[{"a": 1}}]', "a } without its { is after row 1"),
        ("a.json", b"[\n]\n", "the file has no rows"),
        ("a.json", b'{"data": [\n{"a": 1}\n]}', "holds one object, not rows (its keys: 'data')"),
        ("a.jsonl", b'{"a": 1, \n"b": 2}', "holds one object, not rows (its keys: 'a', 'b')"),
        ("a.csv", b'text,label\na,1\n"b,2\nc,3\n', "line 3: a quote opens in the row that begins here and is never"),
        ("a.csv", b'text,label\na,1\n"b"c,2\n', "line 3: ',' expected after '\"'"),
        ("a.csv", b'"text,label\na,1\n', "line 1: a quote opens"),
        ("a.csv", b"text,la\xff\xffbel\na,1\n", "line 1"),
        ("a.parquet", b"PAR1 and then nothing PAR1", "invalid parquet file"),
        ("a.arrow", b"ARROW1 and then nothing", "invalid arrow file"),
        ("a.arrow", b"FEA1 of long ago", "feather version 1"),
        ("a.parquet.gz", b"whatever", "a .parquet file is compressed inside"),
        ("a.csv", b"PAR1....", "this is a parquet file"),
        ("a.jsonl", b"BZh91AY", "compressed with bzip2"),
        ("a.jsonl", b"\xfd7zXZ\x00..", "compressed with xz"),
        ("a.jsonl.gz", packed(packed(b"{}")), "compressed twice"),
        ("a.csv", packed(b"PK\x03\x04"), "a zip or Excel file"),
        ("a.jsonl", '{"a": 1}'.encode("utf-32"), "in UTF-32"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16-le"), "looks like UTF-16 without its mark"),
        ("a.jsonl", packed(b'{"a": 1}\n' * 99)[:-9], "the gzip data is damaged or cut off"),
        ("a.txt", "Un café très agréable à côté.".encode("latin-1"), "line 1 is neither UTF-8 nor GB18030"),
        ("a.txt", "Müller und Söhne: größer, schöner, Bücher".encode("latin-1"), "line 1 is neither UTF-8 nor GB18030"),
        ("a.tar.gz", packed(b"x"), "unknown kind of file '.tar'"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    refused(write(tmp_path / name, content), said)


def test_an_array_goes_on_after_a_bad_item(tmp_path: Path) -> None:
    text = r'[{"a": "},]\"{"}, {"a": NaN}, 3, {"a": tru}, , {"a": [{"b": {}}]}, {"a": 1, "a": 1}, {"a": "\\"},]'
    found = read(write(tmp_path / "a.json", text))
    assert [row.values["a"] for row in found if not row.problem] == ['},]"{', [{"b": {}}], "\\"]
    assert [row.where.rpartition(" ")[2] for row in found if row.problem] == ["2", "3", "4", "5", "7", "9"]
    assert found[1].values == {"raw": '{"a": NaN}'}


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_an_array_may_be_cut_into_blocks_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    made = [{"a": '"\\"\\\\', "b": ["},{", {"c": []}]}, {"水": "漏水 😀", "n": 1.5}, {}]
    file = write(tmp_path / "a.json", json.dumps(made, indent=1, ensure_ascii=False))
    monkeypatch.setattr(files, "BLOCK", block)
    assert [row.values for row in read(file)] == made


def test_json_of_either_layout_under_either_name(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl", "a.ndjson"):
        for text in ('{"a": 1}\r\n\r\n{"a": 2}', '\n [{"a": 1},\n{"a": 2}]\n'):
            assert [row.values for row in read(write(tmp_path / name, text))] == [{"a": 1}, {"a": 2}]


def test_a_last_line_that_is_cut_off_says_so(tmp_path: Path) -> None:
    good, bad = read(write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "x'))
    assert good.values == {"a": 1} and bad.values == {"raw": '{"a": "x'}
    assert bad.problem.endswith("the file ends here, so it may have been cut off")
    text = "第一句话。第二句话。".encode()
    (row,) = read(write(tmp_path / "a.txt", text[:-1]))
    assert row.problem == f"holds bytes that are not UTF-8, the first at byte {len(text) - 2} of the line", (
        "and it is not taken for GB18030"
    )
    assert "第一句话" in row.values["raw"]


def test_damage_costs_one_row_and_does_not_turn_utf_8_into_other_chinese(tmp_path: Path) -> None:
    texts = [json.dumps({"text": f"水壶漏水，已经退货了 {i}"}, ensure_ascii=False).encode() for i in range(9)]
    texts[4] = texts[4].replace("漏".encode(), "漏".encode()[:2])
    for name, content in (("a.jsonl", b"\n".join(texts)), ("a.json", b"[" + b",".join(texts) + b"]")):
        file = write(tmp_path / name, content)
        assert encoding_of(file) == "utf-8"
        found = read(file)
        assert len(found) == 9 and [i for i, row in enumerate(found) if row.problem] == [4]
        assert "not UTF-8" in found[4].problem and "\\xe6\\xbc" in found[4].values["raw"]
    good = "水壶,漏水\n".encode()
    found = read(write(tmp_path / "a.csv", b"text,label\n" + good + good[:8] + b"\n" + good))
    assert [bool(row.problem) for row in found] == [False, True, False] and "not UTF-8" in found[1].problem


def test_half_a_character_of_utf_16(tmp_path: Path) -> None:
    made = [json.dumps({"a": "水"}, ensure_ascii=False), '{"a": "\ud83d"}', '{"a": "b"}']
    file = write(tmp_path / "a.jsonl", "\n".join(made).encode("utf-16", "surrogatepass") + b"\n")
    found = read(file)
    assert [bool(row.problem) for row in found] == [False, True, True], "the last has half a code unit"
    assert "not UTF-16" in found[1].problem


def test_a_row_over_the_limit_is_refused_with_its_length(tmp_path: Path, small: int) -> None:
    long = json.dumps({"a": "x" * 5000})
    found = read(write(tmp_path / "a.jsonl", f'{{"a": 1}}\n{long}\n{{"a": 2}}\n{long}'))
    assert [row.problem for row in found if row.problem] == [
        "is 5,010 characters long, over the limit of 1,000 for one row",
        "is 5,009 characters long, over the limit of 1,000 for one row",
    ]
    assert found[1].where.endswith("line 2") and len(found[1].values["raw"]) == 200 and found[2].values == {"a": 2}
    found = read(write(tmp_path / "a.json", f'[{{"a": 1}},{long},{{"a": 2}}]'))
    assert len(found) == 3 and "is 5,009 characters long" in found[1].problem and len(found[1].values["raw"]) == 200
    found = read(write(tmp_path / "a.txt", "one\n\n" + "two\n" * 1000 + "\nthree"))
    assert len(found) == 3 and "is 4,000 characters long" in found[1].problem and found[2].values == {"text": "three"}
    refused(
        write(tmp_path / "a.csv", f"a,b\n1,2\n{'x' * 2000},3\n"), "line 3: the row that begins here is 2,003 characters"
    )
    refused(write(tmp_path / "b.csv", 'a,b\n1,"2\n' + "3,4\n" * 1000), "line 2: the row that begins here", "not closed")
    whole = '{"a": 1,\n "b": "' + "x" * 2000 + '"}'
    assert all(row.problem for row in read(write(tmp_path / "b.jsonl", whole))), "too long to look at as a whole"


def test_a_line_of_200_megabytes_is_never_loaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_LIMIT", 4 * 2**20)
    file = write(tmp_path / "a.jsonl", '{"a": 1}\n')
    with file.open("r+b") as stream:
        stream.truncate(200 * 10**6)  # sparse: NULs that take no space on the disk
    tracemalloc.start()
    _, long = read(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert long.problem == f"is {200 * 10**6 - 9:,} characters long, over the limit of 4,194,304 for one row"
    assert peak < 20 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zst"])
def test_a_zip_bomb_is_stopped_in_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(files, "BOMB_SIZE", 10 * 2**20)
    zeros = b"0" * (200 * 2**20)
    packed = gzip.compress(zeros, 6) if name.endswith(".gz") else pa.compress(zeros, "zstd", asbytes=True)
    del zeros
    file = write(tmp_path / name, packed)
    tracemalloc.start()
    refused(file, "decompresses to over 10,485,760 bytes and 200 times its own size", "decompress it yourself")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * 2**20


def test_text_that_packs_well_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BOMB_SIZE", 1000)
    plain = "".join(json.dumps({"a": str(i**9)}) + "\n" for i in range(500)).encode()
    assert len(read(write(tmp_path / "a.jsonl.gz", gzip.compress(plain)))) == 500


def test_zstd_that_is_cut_off_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    packed = pa.compress(b'{"a": 1}\n' * 50, "zstd", asbytes=True)
    assert len(read(write(tmp_path / "a.jsonl.zst", packed + packed))) == 100, "files put one after the other"
    for content in (packed[:-2], packed + packed[:9], packed + b"rest"):
        refused(write(tmp_path / "a.jsonl.zst", content), "the zstd data is damaged or cut off")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.parquet", "a.json"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    made = [{"text": f"row {i}"} for i in range(3000)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(made), file)
    elif name == "a.json":
        file.write_text(json.dumps(made))
    else:
        mark = "\n\n" if name == "a.txt" else "\n"
        file.write_text(mark.join(json.dumps(row) if name == "a.jsonl" else row["text"] for row in made))
    source = read_file(file)
    next(source)
    with file.open("ab") as stream:
        stream.write(b'{"broken')
    with pytest.raises(DataError, match="changed while it was read"):
        list(source)


def test_a_file_that_is_cut_down_while_it_is_read_says_that_and_not_its_effect(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", json.dumps([{"a": "x" * 1000}] * 1000))
    source = read_file(file)
    next(source)
    os.truncate(file, 200_000)
    with pytest.raises(DataError, match="changed while it was read"):
        list(source)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    loop, other, dead = tmp_path / "loop.jsonl", tmp_path / "other.jsonl", tmp_path / "dead.jsonl"
    loop.symlink_to(other)
    other.symlink_to(loop)
    dead.symlink_to("nothing.jsonl")
    refused(loop, "a link that leads back to itself")
    refused(dead, "is a link to nothing.jsonl, which is not there")
    (tmp_path / "train.jsonl").symlink_to(loop)
    with pytest.raises(DataError, match=r"train\.jsonl: is a link that leads back to itself"):
        read(tmp_path)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", "{}")
    file.chmod(0)
    if os.access(file, os.R_OK):  # root may read everything

        def barred(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(files.io, "FileIO", barred)
    refused(file, "may not be read: permission denied", "chmod u+r")


def test_a_disk_that_fails_and_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", "{}")

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files.io, "FileIO", failing)
        refused(file, "cannot be read: Input/output error")
    monkeypatch.setattr(Path, "iterdir", failing)
    refused(tmp_path, "cannot be read: Input/output error")


def test_what_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "x.jsonl"
    folder.mkdir()
    refused(folder, "this is a folder with no file for the split 'train'; the folder has no data file")
    with pytest.raises(DataError, match="is a folder, not a file"):
        list(read_file(folder))
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    refused(pipe, "is a pipe or a device, which cannot be read twice")
    refused("x" * 5000 + ".jsonl", "no such file")
    refused("a\0b.jsonl", "no such file")


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError("Dataset 'org/none' doesn't exist on the Hub\nmore"),
            "FileNotFoundError: Dataset 'org/none'",
        ),
        (ConnectionError("[Errno -3] Temporary failure in name resolution"), "ConnectionError: .*name resolution"),
    ],
)
def test_a_hub_that_has_no_such_data_or_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, hub: Any, error: Exception, said: str
) -> None:
    import sys
    import types

    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    there: Any = types.ModuleType("modelscope")
    there.MsDataset = types.SimpleNamespace(load=fail)
    monkeypatch.setitem(sys.modules, "modelscope", there)
    with pytest.raises(DataError, match=f"could not be loaded from the hub: {said}") as caught:
        list(read_rows(DataConfig(path="org/none", hub=hub)))
    assert "check the name and the network" in caught.value.fix
    if hub == "huggingface":
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([GOOD] * 3))
        with pytest.raises(DataError, match="could not be loaded from the hub") as caught:
            load(DataConfig(path="org/none"), None)
        assert "data.validation=NAME" in caught.value.fix
    else:
        there.MsDataset = types.SimpleNamespace(load=lambda *_, **__: [GOOD, ["no row"]])
        good, bad = read_rows(DataConfig(path="org/set", hub="modelscope"))
        assert good.values == GOOD and "should be an object with columns, not list" in bad.problem


def test_a_parquet_file_with_nested_lists_and_cells_that_python_cannot_hold(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    file = tmp_path / "a.parquet"
    made = [{"messages": turns, "tags": [["a", None], []]}, {"messages": turns}, {"messages": None}]
    pq.write_table(pa.Table.from_pylist(made), file)
    data = prepared(file, on_bad_row="skip")
    assert data.format.name == "messages" and data.train.kept == 2
    assert [refusal.reason for refusal in data.refusals] == ["messages should be a list of turns, not NoneType"]
    table = pa.table({"text": ["a", "b", "c"], "at": pa.array([0, 2**62, 1], pa.timestamp("us"))})
    pq.write_table(table, file)
    good, bad, other = read(file)
    assert good.values["text"] == "a" and other.values["text"] == "c"
    assert bad.where == f"{file}: row 2" and "has a cell that cannot be read" in bad.problem
    pq.write_table(pa.table({"text": pa.array(["a\0b", b"\xff"], pa.binary())}), file)
    refusals = prepared(write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}]), validation=str(file), on_bad_row="skip")
    assert [refusal.reason for refusal in refusals.refusals] == ["text should be text, not bytes"] * 2
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xff")])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.schema({"a": pa.string()})) as w:
        w.write_batch(pa.record_batch([broken], names=["a"]))
    refused(tmp_path / "a.arrow", "invalid arrow file: ")


def test_tables_that_lie_about_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, twice.schema) as writer:
        writer.write_table(twice)
    refused(tmp_path / "a.arrow", "two columns have the same name")
    monkeypatch.setattr(arrow.Arrow, "batches", lambda *_: (["a"], pa.table({"a": [1]}).to_batches(), 3))
    refused(tmp_path / "a.arrow", "should have 3 rows and has 1")


def test_a_csv_with_nul_and_ragged_rows(tmp_path: Path) -> None:
    made = [f"text {i},{i % 2}\n" for i in range(5)]
    file = write(
        tmp_path / "a.csv", "\n\ntext,label\n" + "".join(made) + "a\0b,1\nragged\na,b,1\n\n,1\nlabel missing,\n"
    )
    data = prepared(file, on_bad_row="skip")
    assert data.train.read == 10 and data.train.kept == 5
    assert {refusal.where.rpartition(" ")[2]: refusal.reason[:40] for refusal in data.refusals} == {
        "9": "text holds a NUL character, as damaged f",
        "10": "has 1 cells, the header 2: a ',' in a te",
        "11": "has 3 cells, the header 2: a ',' in a te",
        "13": "text is empty",
        "14": "label is empty",
    }


def labelled(file: Path, labels: list[Any]) -> Path:
    return write_jsonl(file, [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])


def test_a_label_that_only_the_validation_rows_have(tmp_path: Path) -> None:
    train = labelled(tmp_path / "t.jsonl", ["good", "bad"] * 5)
    held_out = labelled(tmp_path / "v.jsonl", ["good", "odd", "bad"])
    with pytest.raises(DataError) as caught:
        prepared(train, validation=str(held_out))
    assert f"{held_out}: line 2: label 'odd' is none of the classes bad, good" in caught.value.message
    assert "task.labels" in caught.value.fix
    data = prepared(train, validation=str(held_out), on_bad_row="skip")
    assert (data.validation.read, data.validation.refused, data.validation.kept) == (3, 1, 2)


def test_one_class_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least two labels, the training rows have 1: \['good'\]") as caught:
        prepared(labelled(tmp_path / "t.jsonl", ["good"] * 5))
    assert "data.format.label=COLUMN" in caught.value.fix


def test_labels_of_several_kinds(tmp_path: Path) -> None:
    same = prepared(labelled(tmp_path / "a.jsonl", [0, "1", 1.0, "0", " 1 "]))
    assert same.task.model_dump()["labels"] == ("0", "1"), "the number 1 and the text 1 are one class"
    mixed = labelled(tmp_path / "b.jsonl", [0, 1, "good", "bad", 10, 9])
    with pytest.raises(DataError, match=r"mix numbers \(0, 1, 9, 10\) and words \(bad, good\)") as caught:
        prepared(mixed)
    assert "data.format.names" in caught.value.fix and "task.labels" in caught.value.fix
    config = DataConfig(path=str(mixed), validation="none")
    task = TASKS.parse({"name": "classify", "labels": ["0", "1", "9", "10", "bad", "good"]})
    assert load(config, task).task == task, "who lists them means them"
    scores = prepared(labelled(tmp_path / "c.jsonl", [2.5, 10, "0.5"]))
    assert scores.task.model_dump()["labels"] == ("0.5", "2.5", "10")
    odd = prepared(labelled(tmp_path / "d.jsonl", ["²", "--1", "1" * 5000]))
    assert len(odd.task.model_dump()["labels"]) == 3, "digits that int() does not take are words"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "label is empty"),
        ("  ", "label is empty"),
        ([1], "label should be a text or a number, not list"),
        (math.nan, "label is nan, which is not a class"),
        ("a\0", "label holds a NUL character"),
    ],
)
def test_a_label_that_is_none(tmp_path: Path, value: Any, said: str) -> None:
    file = tmp_path / "a.parquet"
    good = [{"text": "a", "label": 0.0}, {"text": "b", "label": 1.0}] if isinstance(value, float) else None
    if good:
        pq.write_table(pa.Table.from_pylist([*good, {"text": "c", "label": value}]), file)
    else:
        file = labelled(tmp_path / "a.jsonl", ["x", "y", value])
    data = prepared(file, on_bad_row="skip")
    assert [refusal.reason.startswith(said) for refusal in data.refusals] == [True]


def test_a_number_for_a_name_that_is_not_there(tmp_path: Path) -> None:
    from luthier.data.formats.base import FORMATS

    names = FORMATS.parse({"name": "classification", "names": ["bad", "good"]})
    file = labelled(tmp_path / "a.jsonl", [0, 1, "²", "-1", 2, "9" * 5000])
    data = prepared(file, format=names, on_bad_row="skip")
    assert data.train.kept == 2 and all("neither one of bad, good" in refusal.reason for refusal in data.refusals)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "assistant", "content": "A", "tool_calls": [{}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{"}},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "result", "tool_call_id": "1"},
        {"role": "assistant", "content": "A", "tool_calls": "half"},
    ],
)
def test_tool_calls_that_are_half_there(tmp_path: Path, turn: dict[str, Any]) -> None:
    user, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    made = [{"messages": [user, answer]}, {"messages": [user, turn]}, {"messages": [user, answer]}]
    data = prepared(write_jsonl(tmp_path / "a.jsonl", made), on_bad_row="skip")
    (refusal,) = data.refusals
    assert refusal.where.endswith("line 2") and refusal.reason and data.train.kept == 2


def test_rows_are_read_once_and_not_held(tmp_path: Path) -> None:
    rows_of_alpaca = alpaca_rows(300)
    file = write_jsonl(tmp_path / "a.jsonl", [*rows_of_alpaca, {"no": "row"}])
    with pytest.raises(LuthierError, match="line 301: there is no column"):
        load(DataConfig(path=str(file)), None)
    data = load(DataConfig(path=str(file), on_bad_row="skip", validation="none"), None)
    assert len(data.examples) == 300 and data.train.read == 301
    assert [example.where for example in data.examples] == [f"{file}: line {i}" for i in range(1, 301)]
