"""Rows on disk, in processes and in the cache: the same as in memory, in one process and without one."""

from __future__ import annotations

import json
import os
import signal
from array import array
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, InputError
from luthier.data import cache
from luthier.data.encode import encode, encode_piece, pieces
from luthier.data.parallel import in_order
from luthier.data.prepare import load
from luthier.data.prepared import Prepared
from luthier.data.store import Examples, Refusal, Refusals, content_record, example_digest
from luthier.recipe.config import DataConfig
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, Message, RowError
from luthier.rendering.row import Row
from luthier.tasks.chat import Chat
from tests.conftest import alpaca_rows, build_tokenizer, luthier, write_jsonl
from tests.processes import Command

ODD = [
    Example(
        messages=(Message("user", "a\nb\t你好 🙂"), Message("assistant", "\u2028 c", learn=True)), where="f: line 1"
    ),
    Example(text="lone \ud800 half", label="", where="x\udcff: line 2", group="g"),
    Example(text="", pair="p", label="0", rejected=(Message("user", ""),), where=": row 3"),
]


@pytest.fixture(autouse=True)
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SMALLEST", 1)
    monkeypatch.setattr("luthier.data.encode.CACHED_FROM", 1)
    return tmp_path / "cache"


def prepared(path: Path, tokenizer: Any = None, max_length: int = 64, **fields: Any) -> Prepared:
    config = DataConfig(path=str(path), **fields)
    data = load(config, None)
    encode(data, Template(tokenizer or build_tokenizer()), config, max_length)
    return data


def everything(data: Prepared) -> dict[str, Any]:
    made: dict[str, Any] = {"account": data.account(), "refusals": list(data.refusals), "why": data.format_why}
    for name in ("train", "validation", "test"):
        side = data.side(name)
        made[name] = (list(side.examples), list(side.rows), list(side.rows.owner), list(side.rows.learned))
        made[name] += (side.examples.labels, side.examples.groups, side.examples.digests)
    return made


def mixed(count: int) -> list[dict[str, Any]]:
    rows = alpaca_rows(count)
    for at in range(3, count, 7):
        rows[at] = {**rows[at], "output": "fox " * 100}  # too long
    for at in range(5, count, 11):
        rows[at] = {**rows[at], "output": " "}  # empty
    return rows


POLICIES: dict[str, Any] = {"on_bad_row": "skip", "on_long_row": "skip", "validation": 0.2, "test": 0.1}


def test_examples_come_back_as_they_went_in() -> None:
    stored = Examples.of(ODD)
    assert list(stored) == ODD and stored[-1] == ODD[-1] and list(stored[1:]) == ODD[1:]
    assert [stored.where(i) for i in range(3)] == [example.where for example in ODD]
    assert stored.labels == [None, "", "0"] and stored.groups == ["", "g", ""]
    assert list(stored.store.files) == ["f", "x\udcff", ""]
    moved = Examples.of([Example(text="a", where="1"), Example(text="a", where="2", group="g"), Example(text="b")])
    assert moved.digests[0] == moved.digests[1] != moved.digests[2], "where a row stands is not what it is"
    assert example_digest(content_record(ODD[0])) == stored.digests[0]
    with pytest.raises(IndexError):
        stored[3]


def test_reading_between_writing_is_whole() -> None:
    refusals = Refusals()
    for number in range(5):
        refusals.append(Refusal(f"f: line {number}", "why", {"bytes": b"\x00", "number": number}))
        assert refusals[number].row == {"bytes": "b'\\x00'", "number": number}
    assert [each.where for each in refusals[1:3]] == ["f: line 1", "f: line 2"] and refusals[-1].row["number"] == 4
    with pytest.raises(IndexError):
        refusals[5]


def test_a_second_start_gives_the_same_and_reads_nothing(
    tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", mixed(80))
    first = everything(prepared(file, **POLICIES))
    assert {entry.name.partition("-")[0] for entry, _, _ in cache.entries()} == {"examples", "rows"}
    assert not list(small_cache.glob("luthier-data-*")), "nothing half made is left"
    account = first["account"]
    assert account["train"]["refused"] and account["validation"]["kept"] and account["test"]["kept"]
    monkeypatch.setattr("luthier.data.prepare.open_set", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr("luthier.data.encode.encode_piece", lambda *_: pytest.fail("tokenized again"))
    assert everything(prepared(file, **POLICIES)) == first
    again = prepared(file, **POLICIES)
    again.refusals.append(Refusal("x", "y", None))
    assert everything(prepared(file, **POLICIES)) == first, "what is kept is not written to"


@pytest.mark.parametrize("change", ["content", "seed", "tokenizer", "template", "length", "policy", "place"])
def test_what_decides_the_rows_makes_another_entry(tmp_path: Path, change: str) -> None:
    fields, length, special, template = dict(POLICIES), 64, ["<more>"], None
    file = write_jsonl(tmp_path / "a.jsonl", mixed(60))
    prepared(file, build_tokenizer(special=special), length, **fields)
    stamp = file.stat()
    if change == "content":  # as long as before, and with the same time
        text = file.read_text().replace("fox", "dog", 1)
        assert text != file.read_text()
        file.write_text(text)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert file.stat().st_size == stamp.st_size
    elif change == "seed":
        fields["seed"] = 7
    elif change == "tokenizer":
        special = ["<new>"]
    elif change == "template":
        template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    elif change == "length":
        length = 50
    elif change == "policy":
        fields["on_long_row"] = "truncate_answer"
    else:
        file = file.rename(tmp_path / "b.jsonl")
    kept, reread = (
        everything(prepared(file, build_tokenizer(special=special, template=template), length, cache=on, **fields))
        for on in (True, False)
    )
    assert kept == reread
    assert kept["train"][0][0].where.startswith(str(file))


def test_other_code_makes_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(write_jsonl(tmp_path / "a.jsonl", mixed(40)), **POLICIES)
    assert len(cache.entries()) == 2
    package = tmp_path / "tasks"
    package.mkdir()
    (package / "chat.py").write_text("# it encodes otherwise now")
    monkeypatch.setattr("luthier.tasks.__path__", [str(package)])
    cache.code.cache_clear()
    name = cache.key("examples", {})
    monkeypatch.undo()
    cache.code.cache_clear()
    assert cache.key("examples", {}) != name


def test_an_entry_that_is_not_whole_is_rebuilt(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", mixed(40))
    first = everything(prepared(file, **POLICIES))
    for folder, _, _ in cache.entries():
        largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
    assert everything(prepared(file, **POLICIES)) == first
    for folder, _, _ in cache.entries():
        (folder / cache.META).write_text("{")
    assert everything(prepared(file, **POLICIES)) == first
    assert everything(prepared(file, **POLICIES)) == first


def test_a_cache_that_may_not_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file/cache"))
    file = write_jsonl(tmp_path / "a.jsonl", mixed(40))
    assert everything(prepared(file, **POLICIES)) == everything(prepared(file, **POLICIES))
    assert cache.entries() == []


def test_small_data_is_not_kept(tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALLEST", 2**22)
    monkeypatch.setattr("luthier.data.encode.CACHED_FROM", 10_000)
    prepared(write_jsonl(tmp_path / "a.jsonl", mixed(40)), **POLICIES)
    assert not small_cache.exists()


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    for number in range(3):
        load(DataConfig(path=str(write_jsonl(tmp_path / f"{number}.jsonl", alpaca_rows(50 + number)))), None)
        newest = cache.entries()[0][0]
        os.utime(newest, (number, number))
    folders = [folder for folder, _, _ in cache.entries()]
    sizes = [size for _, size, _ in cache.entries()]
    assert cache.trim(sizes[0] + sizes[1]) == sizes[2]
    assert [folder for folder, _, _ in cache.entries()] == folders[:2]


@pytest.mark.slow
def test_the_cache_is_shown_and_cleared(tmp_path: Path, small_cache: Path) -> None:
    load(DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", alpaca_rows(50)))), None)
    shown = luthier("cache", cwd=tmp_path).stdout
    assert f"{small_cache}: 1 entries" in shown and "examples-" in shown
    assert "MiB freed" in luthier("cache", "--clear", cwd=tmp_path).stdout
    assert cache.entries() == [] and "0 entries" in luthier("cache", cwd=tmp_path).stdout


def test_two_processes_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.data.encode.PIECE", 7)
    file = write_jsonl(tmp_path / "a.jsonl", mixed(100))
    one, two = (everything(prepared(file, cache=False, workers=workers, **POLICIES)) for workers in (1, 2))
    assert one == two and one["account"]["train"]["refused"]
    for options in ({"on_bad_row": "skip"}, {"on_long_row": "skip"}):
        said = []
        for workers in (1, 2):
            with pytest.raises(DataError) as caught:
                prepared(file, cache=False, workers=workers, **options)
            said.append(str(caught.value))
        assert said[0] == said[1]
    with pytest.raises(DataError, match="rows are too long, the longest has"):
        prepared(file, on_bad_row="skip")


def test_lengths_without_a_limit(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "fox " * n} for n in (3, 40, 90, 200)])
    for policy in ("split", "skip", "truncate_answer"):
        whole = array("I")
        config = DataConfig(path=str(file), validation="none", on_long_row=policy)
        data = load(config, None)
        encode(data, Template(build_tokenizer()), config, 64, whole=whole)
        longest = [row for row in data.rows if row.where.endswith("line 4")]
        assert len(whole) == 4 and sorted(whole) == list(whole), policy
        assert {"split": len(longest) > 1, "skip": not longest, "truncate_answer": len(longest) == 1}[policy]


def _slow_death(piece: int) -> int:
    if piece == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


class _Refusing:
    def __call__(self, piece: int) -> int:
        if piece == 2:
            raise DataError("a: line 2: bad", fix="fix it")
        return piece


def test_a_process_that_is_killed_or_raises_is_told() -> None:
    with pytest.raises(InputError, match="memory ran out") as caught:
        list(in_order(_slow_death, range(50), 2))
    assert caught.value.fix == "data.workers=1"
    with pytest.raises(InputError, match="a: line 2: bad"):
        list(in_order(_Refusing(), range(50), 2))
    some = in_order(_Refusing(), iter(range(10**9)), 2)
    assert [next(some), next(some)] == [0, 1]
    some.close()  # and nothing hangs


def test_a_row_that_learns_nothing_is_refused(tmp_path: Path) -> None:
    class Silent(Chat):
        def encode(self, example: Example, *rest: Any) -> list[Row]:
            if "2" in example.answer:
                raise RowError("no")
            return [Row([1, 2], [-100, -100], example.where)]

    data = load(DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", alpaca_rows(10)))), None)
    made = encode_piece(Silent(), Template(build_tokenizer()), 64, "stop", False, next(pieces(data.examples)))
    assert {error.reason for error, _ in made.failures.values()} >= {"no token of the row carries loss"}
    assert len(made.failures) == len(data.examples) and not made.lengths


def test_test_rows_are_apart_from_both_others(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "rare" if i % 10 == 0 else "often", "who": i // 2} for i in range(200)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    data = prepared(file, validation=0.1, test=0.2)
    assert (len(data.examples), len(data.validation_examples), len(data.test_examples)) == (140, 20, 40)
    assert data.test.labels == {"often": 36, "rare": 4} and data.validation.labels == {"often": 18, "rare": 2}
    assert (data.train.read, data.validation.read, data.test.read) == (140, 20, 40)
    sides = [{e.text for e in data.side(name).examples} for name in ("train", "validation", "test")]
    assert len(set.union(*sides)) == 200 == sum(map(len, sides))
    grouped = prepared(file, validation=0.1, test=0.2, group="who", stratify=False)
    who = [set(grouped.side(name).examples.groups) for name in ("train", "validation", "test")]
    assert not who[0] & who[1] and not who[0] & who[2] and not who[1] & who[2] and len(set.union(*who)) == 100
    assert prepared(file, validation="none", test=0.5).validation.kept == 0
    assert prepared(file, test="none").test.source == ""
    with pytest.raises(InputError, match=r"data\.test=dev: .*a\.jsonl is one file, which has no splits"):
        prepared(file, test="dev")


def test_test_rows_of_a_file_that_train_too_are_told_dropped_or_stop(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(30))
    other = write_jsonl(tmp_path / "t.jsonl", [*alpaca_rows(2), *alpaca_rows(33)[30:]])
    told = prepared(file, test=str(other))
    assert (told.test.kept, told.test.in_training > 0, told.train.leaks) == (5, True, 0)
    data = prepared(file, test=str(other), on_leak="drop")
    assert data.test.kept == 5 and data.train.leaks == told.test.in_training
    assert "the same as the test row" in data.refusals[0].reason
    with pytest.raises(DataError, match="this test row is a training row too"):
        prepared(file, test=str(other), on_leak="stop")


@pytest.mark.slow
def test_the_end_is_measured_on_the_test_rows(tmp_path: Path) -> None:
    rows = [{"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": "pos" if i % 2 else "neg"} for i in range(60)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    done = luthier(
        "train",
        f"data={file}",
        "data.validation=0.2",
        "data.test=0.1",
        "model=builtin",
        "method=lora",
        "run=r",
        "train.steps=2",
        "task=classify",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r/result.json").read_text())
    assert result["measured_on"] == "test" and result["validation_examples"] == 6
    assert "6 test rows for the end (10% of the training rows, seed 42)" in done.stdout
    places = {json.loads(line)["where"] for line in (tmp_path / "r/predictions.jsonl").read_text().splitlines()}
    held = json.loads((tmp_path / "r/data.json").read_text())
    assert len(places) == 6 and held["validation"]["kept"] == 12 and held["test"]["kept"] == 6


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    from luthier.core.events import Progress

    told: list[str] = []

    class Listener(Progress):
        def note(self, text: str) -> None:
            told.append(text)

    for encoding in ("utf-8", "gb18030", "utf-16"):
        file = tmp_path / f"{encoding}.jsonl"
        rows = [
            {"instruction": f"你好，第{i}个问题是什么？", "output": "这个水壶漏水，已经退货了。"} for i in range(20)
        ]
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
        config = DataConfig(path=str(file), test=str(tmp_path / "utf-8.jsonl"))
        data = load(config, None)
        data.report(tmp_path, Listener())
        assert {"file": str(file), "encoding": encoding} in data.account()["files"]
        assert (f"{file} is read as {encoding}" in told) == (encoding != "utf-8")
    assert sum("is read as" in text for text in told) == 2


@pytest.mark.slow
def test_an_interrupt_while_rows_are_tokenized_leaves_nothing(tmp_path: Path, small_cache: Path) -> None:
    import time

    import psutil

    write_jsonl(tmp_path / "a.jsonl", alpaca_rows(60_000))
    process = Command(["check", "a.jsonl", "data.workers=2"], cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    process.wait_for(lambda: "tokenizing" in process.out)
    children = psutil.Process(process.pid).children
    process.wait_for(lambda: len(children()) >= 2)  # while it forks, Python drops what a signal raises
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    assert process.wait(60) == 75 and process.err.startswith("stopped; ")
    assert not list(tmp_path.glob("luthier-data-*")) and not list(small_cache.glob("luthier-data-*"))
