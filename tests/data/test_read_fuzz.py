"""Whatever a file holds, reading it ends in rows and problems that count every line, or in an error of ours."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import LuthierError
from luthier.data.file_types.base import RawRow
from luthier.data.formats.base import FORMATS
from luthier.data.read import read_file
from luthier.rendering.example import RowError
from luthier.rendering.tools import read_calls, read_tools

pytestmark = pytest.mark.slow

READERS = [FORMATS.parse(name) for name in FORMATS.names()]
FOLDER = tempfile.TemporaryDirectory()  # one for the module: a fixture of a test would serve all its examples as well
fuzz = settings(
    derandomize=True, database=None, max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),  # NaN and half characters too
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROW = st.dictionaries(st.sampled_from(["messages", "conversations", "text", "label", "prompt", "output"]), VALUE)
TURN = st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls"]), VALUE)


def outcome(name: str, content: bytes) -> list[RawRow] | None:
    """Rows of a file with this content, or None where it is refused as a whole; any other end fails the test."""
    file = Path(FOLDER.name) / name
    file.write_bytes(content)
    try:
        rows = list(read_file(file))
    except LuthierError as error:
        assert str(file) in str(error) or "zstd" in str(error)
        return None
    assert rows, "a file without rows is refused"
    assert len({row.where for row in rows}) == len(rows), "each row has a place of its own"
    json.dumps([dict(row.values) for row in rows], ensure_ascii=False, default=str).encode()  # refused.jsonl takes all
    return rows


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.arrow", "a.feather", "a.jsonl.gz", "a.csv.zst"],
)
@fuzz
@given(content=st.binary(max_size=200))
def test_random_bytes(name: str, content: bytes) -> None:
    starts = {"a.jsonl.gz": b"\x1f\x8b\x08", "a.csv.zst": b"\x28\xb5\x2f\xfd", "a.feather": b"ARROW1\0\0"}
    outcome(name, content)
    outcome(name, starts.get(name, b"") + content)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@fuzz
@given(texts=st.lists(TEXT, max_size=6))
def test_random_lines_of_json_are_all_counted(encoding: str, texts: list[str]) -> None:
    content = "\n".join(["{}", *texts, '{"a": 1}'])
    rows = outcome("a.jsonl", content.encode(encoding))
    assert rows is not None and len(rows) == sum(bool(line.strip()) for line in content.split("\n"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
@fuzz
@given(rows=st.lists(ROW | VALUE, min_size=1, max_size=5), array=st.booleans(), ascii_only=st.booleans())
def test_random_rows_of_json_are_all_counted(name: str, rows: list[Any], array: bool, ascii_only: bool) -> None:
    text = json.dumps(rows, ensure_ascii=ascii_only) if array else "\n".join(json.dumps(row) for row in rows)
    content = text.encode("utf-8", "surrogatepass")
    found = outcome(name, gzip.compress(content, 1) if name.endswith(".gz") else content)
    if found is None:  # without escapes, half a character makes the file no UTF-8; lines may start like an array
        assert (array and not ascii_only) or (not array and isinstance(rows[0], list))
    elif not (isinstance(rows[0], list) and not array):
        assert len(found) == len(rows)
        for row, meant in zip(found, rows, strict=True):
            assert row.problem or row.values == meant


@fuzz
@given(rows=st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=5), tab=st.booleans())
def test_random_tables_are_all_counted(rows: list[list[str]], tab: bool) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if tab else ",", lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "label"], *rows])
    found = outcome("a.tsv" if tab else "a.csv", text.getvalue().encode())
    assert found is not None and [list(row.values.values()) for row in found] == rows


@fuzz
@given(lines=st.lists(TEXT | st.sampled_from(['a,"b', '"c",d', 'e"f,g', "a,b,c", ",", '"', '""'])))
def test_a_random_csv_is_read_row_by_row_or_refused(lines: list[str]) -> None:
    content = "\n".join(["text,label", *lines])
    found = outcome("a.csv", content.encode())
    if found is not None and '"' not in content and "\r" not in content:
        assert len(found) == sum(line != "" for line in lines)


@fuzz
@given(text=TEXT | st.text(st.sampled_from("ab \r\n"), max_size=30))
def test_random_text_loses_no_line(text: str) -> None:
    found = outcome("a.txt", text.encode())
    kept = "".join(row.values["text"] for row in found or []).replace("\n", "").replace(" ", "")
    assert found is None or kept.replace("\r", "") == text.replace("\n", "").replace(" ", "").replace("\r", "")


TABLE = pa.Table.from_pylist([{"text": f"row {i}", "turns": [{"role": "user", "n": [i, None]}]} for i in range(50)])


def table_bytes(name: str) -> bytes:
    stream = io.BytesIO()
    if name == "a.parquet":
        pq.write_table(TABLE, stream, row_group_size=20, write_page_checksum=True)
    elif name == "a.feather":
        pyarrow.feather.write_feather(TABLE, stream, compression="uncompressed")
    else:
        with pa.ipc.new_stream(stream, TABLE.schema) as writer:
            writer.write_table(TABLE)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
@fuzz
@given(data=st.data())
def test_a_damaged_table_is_refused_or_read_whole(name: str, data: st.DataObject) -> None:
    content = bytearray(table_bytes(name))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content) - 1)) :]
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    outcome(name, bytes(content))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@fuzz
@given(data=st.data())
def test_a_damaged_packed_file_is_refused_or_read_whole(name: str, data: st.DataObject) -> None:
    plain = b"".join(b'{"text": "row %d"}\n' % i for i in range(60))
    checked = name.endswith(".gz")
    packed = gzip.compress(plain, mtime=0) if checked else pyarrow.compress(plain, "zstd", asbytes=True)
    content = bytearray(packed)
    del content[data.draw(st.integers(20, len(content))) :]
    if checked and (place := data.draw(st.integers(0, len(content) - 1))):  # pyarrow's zstd has no checksum
        content[place] = data.draw(st.integers(0, 255))
    found = outcome(name, bytes(content))
    assert found is None or len(found) >= 60 or content[:4] != packed[:4], "what is cut off is not taken for the whole"


@fuzz
@given(row=ROW | st.fixed_dictionaries({"messages": st.lists(TURN), "conversations": st.lists(TURN)}))
def test_a_random_row_is_an_example_or_a_row_error(row: dict[str, Any]) -> None:
    for reader in READERS:
        reader.matches(row)
        try:
            example = reader.read(row)
        except RowError:
            continue
        for text in (example.text, example.pair, example.label or "", *(m.said for m in example.messages)):
            text.encode()


KEYS = st.sampled_from(["type", "function", "id", "name", "arguments", "description", "parameters"])
TOOL = st.dictionaries(KEYS, VALUE | st.dictionaries(KEYS, VALUE) | st.just("function") | st.just("{}"))


@fuzz
@given(value=VALUE | TOOL | st.lists(TOOL | VALUE, max_size=3), packed=st.booleans())
def test_random_tools_and_calls_are_json_or_a_row_error(value: Any, packed: bool) -> None:
    given_value = json.dumps(value) if packed else value
    for reader in (read_tools, read_calls):
        try:
            text = reader(given_value, "here")
        except RowError as error:
            assert "here" in error.reason
            continue
        text.encode()
        for each in json.loads(text or "[]"):
            assert each["type"] == "function" and each["function"]["name"].strip()


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a":' * 10**5, "9" * 5000, '[{"name": "f", "arguments": ' + "9" * 5000]
)
def test_json_that_is_too_deep_or_too_long_is_a_row_error(text: str) -> None:
    for reader in (read_tools, read_calls):
        with pytest.raises(RowError):
            reader(text, "here")
