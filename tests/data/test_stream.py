"""Rows read while the run trains: in an order of their own, each once an epoch, and exact after a kill."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ConfigError, DataError, InputError
from luthier.data.encode import encode
from luthier.data.prepare import load
from luthier.data.prepared import Prepared
from luthier.recipe.config import DataConfig, RunConfig
from luthier.rendering.chat_template import Template
from tests.conftest import alpaca_rows, build_tokenizer, luthier, review_rows, write_jsonl


def streamed(path: Path, max_length: int = 64, buffer: int = 8, **fields: Any) -> Prepared:
    task = RunConfig.model_validate({"task": fields.pop("task")}).task if "task" in fields else None
    config = DataConfig(path=str(path), streaming=True, shuffle_buffer=buffer, **fields)
    data = load(config, task)
    encode(data, Template(build_tokenizer()), config, max_length)
    assert data.stream is not None and not data.rows and not data.examples
    return data


def places(rows: Iterator[Any], count: int) -> list[int]:
    return [int(row.where.rpartition(" ")[2]) for row in islice(rows, count)]


def mixed(count: int) -> list[dict[str, Any]]:
    rows = alpaca_rows(count)
    rows[4] = {**rows[4], "output": "fox " * 100}
    rows[9] = {**rows[9], "output": " "}
    return rows


def test_each_epoch_has_every_row_once_in_a_new_order(tmp_path: Path) -> None:
    data = streamed(write_jsonl(tmp_path / "a.jsonl", alpaca_rows(50)), validation="none")
    assert data.stream is not None
    rows = data.stream.rows()
    one, two = places(rows, 50), places(rows, 50)
    assert sorted(one) == sorted(two) == list(range(1, 51)) and one != two != sorted(two)
    assert all(place <= number + 8 for number, place in enumerate(one, 1)), (
        "no row comes before it can be in the buffer"
    )
    part = data.train
    assert (part.read, part.kept, part.refused) == (50, 50, 0) and part.tokens > part.learned > 0, "one epoch counts"
    again = streamed(tmp_path / "a.jsonl", validation="none", seed=43)
    assert again.stream is not None and places(again.stream.rows(), 50) != one
    whole = load(DataConfig(path=str(tmp_path / "a.jsonl"), validation="none"), None)
    encode(whole, Template(build_tokenizer()), DataConfig(path="x"), 64)
    assert part.tokens == whole.train.tokens and part.learned == whole.train.learned


@pytest.mark.parametrize("taken", [1, 7, 30, 47, 48, 49, 60, 120])
def test_it_goes_on_exactly_where_it_stood(tmp_path: Path, taken: int) -> None:
    texts = [{"text": f"number {i} " + "fox " * (40 * (i % 3))} for i in range(30)]  # some of several windows
    file = write_jsonl(tmp_path / "a.jsonl", texts)

    def fresh() -> Prepared:
        return streamed(file, max_length=32, validation="none", task="complete")

    data, other = fresh(), fresh()
    assert data.stream is not None and other.stream is not None
    rows = data.stream.rows()
    list(islice(rows, taken))
    state = json.loads(json.dumps(data.stream.state()))
    other.stream.go_on(state, iter(data.refusals))
    assert other.train == data.train
    assert list(islice(other.stream.rows(), 150)) == list(islice(rows, 150))
    assert other.train == data.train


def test_policies_hold_and_each_row_is_counted_once(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", mixed(20))
    data = streamed(file, validation="none", on_bad_row="skip", on_long_row="skip")
    assert data.stream is not None
    seen = Counter(places(data.stream.rows(), 54))
    assert seen == {place: 3 for place in range(1, 21) if place not in (5, 10)}
    assert (data.train.read, data.train.kept, data.train.refused) == (20, 18, 2) and len(data.refusals) == 2
    assert data.refusals[0].row["messages"][1]["content"].startswith("fox") and "tokens" in data.refusals[0].reason
    state = data.stream.state()
    again = streamed(file, validation="none", on_bad_row="skip", on_long_row="skip")
    assert again.stream is not None
    again.stream.go_on(state, iter(data.refusals))
    places(again.stream.rows(), 40)
    assert list(again.refusals) == list(data.refusals) and again.train == data.train
    for policy, line, fix in (
        ({"on_bad_row": "skip"}, "line 5", "data.on_long_row"),
        ({"on_long_row": "skip"}, "line 10", "data.on_bad_row=skip"),
    ):
        stopping = streamed(file, buffer=2, validation="none", **policy)
        assert stopping.stream is not None
        with pytest.raises(DataError, match=line) as caught:
            places(stopping.stream.rows(), 30)
        assert fix in caught.value.fix


def test_a_stream_without_a_usable_row_stops(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{**row, "output": " "} for row in alpaca_rows(3)])
    data = streamed(file, validation="none", on_bad_row="skip")
    assert data.stream is not None
    with pytest.raises(DataError, match=r"no row can be used, 3 were refused; the first: .*line 1"):
        next(data.stream.rows())


def test_rows_that_changed_are_noticed(tmp_path: Path) -> None:
    rows = alpaca_rows(30)
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    data = streamed(file, validation="none")
    assert data.stream is not None
    places(data.stream.rows(), 10)
    state = data.stream.state()
    write_jsonl(file, [*rows[:25], {**rows[25], "output": "later than what was read"}, *rows[26:]])
    later = streamed(file, validation="none")
    assert later.stream is not None
    later.stream.go_on(state, iter(()))
    for changed in ([{**rows[0], "output": "other"}, *rows[1:]], rows[:5], [rows[0], {"messages": 3}, *rows[2:]]):
        write_jsonl(file, changed)
        stream = streamed(file, validation="none", on_bad_row="skip").stream
        assert stream is not None
        with pytest.raises(InputError, match="the rows have changed since the run was started"):
            stream.go_on(state, iter(()))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mix": ({"path": "b.jsonl"},)}, r"data\.mix: not with data\.streaming=true"),
        ({"limit": 5}, r"data\.limit: .*train\.steps says how long"),
        ({"deduplicate": "exact"}, r"data\.deduplicate: .*remembered"),
        ({"stratify": True}, r"data\.stratify: .*no share"),
        ({"group": "who"}, r"data\.group: .*no share"),
        ({"weight": 2.0}, r"data\.weight: .*a mix"),
        ({"validation": 0.1}, r"data\.validation: no share can be held out of a stream"),
        ({"test": 0.1}, r"data\.test: no share can be held out of a stream"),
        ({"on_leak": "drop"}, r"data\.on_leak: .*not known before they train"),
    ],
)
def test_what_needs_all_rows_is_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(9))
    write_jsonl(tmp_path / "b.jsonl", alpaca_rows(9))
    if "mix" in fields:
        fields = {"mix": ({"path": str(tmp_path / "b.jsonl")},)}
    with pytest.raises(InputError, match=said):
        streamed(file, **fields)


def test_a_stream_needs_steps_and_a_classifier_its_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.streaming=true needs train\.steps"):
        RunConfig.load(None, ["data.path=a.jsonl", "data.streaming=true"])
    file = write_jsonl(tmp_path / "a.jsonl", review_rows(20))
    with pytest.raises(InputError, match=r"the labels are not known before the rows are read") as caught:
        streamed(file, task="classify")
    assert "task.labels" in caught.value.fix
    named = streamed(file, task={"name": "classify", "labels": ["0", "1"]})
    assert named.stream is not None and next(named.stream.rows()).labels[0] in (0, 1)


def test_validation_and_test_rows_are_read_first(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", alpaca_rows(30))
    write_jsonl(tmp_path / "dev.jsonl", alpaca_rows(12))
    other = write_jsonl(tmp_path / "other.jsonl", alpaca_rows(5))
    data = streamed(tmp_path, test=str(other), validation_limit=9)
    assert (data.validation.kept, data.test.kept, data.train.kept) == (9, 5, 0)
    assert data.train.source.endswith("read while training")


def test_a_hub_data_set_is_not_downloaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, subset: Any, **options: Any) -> Any:
        asked.append(options)
        return iter(alpaca_rows(40)) if options["streaming"] else list(alpaca_rows(4))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *_: ["train", "validation"])
    data = streamed(Path("someone/rows"))
    assert data.stream is not None and len(places(data.stream.rows(), 60)) == 60
    assert asked[0] == {"split": "train", "streaming": True} and asked[1] == {"split": "validation", "streaming": False}


RUN = (
    "data.streaming=true",
    "data.shuffle_buffer=16",
    "data.validation=dev.jsonl",
    "model=builtin",
    "method=lora",
    "train.steps=12",
    "train.batch_size=4",
    "train.micro_batch=2",
    "train.save_every=4",
    "train.evaluate_every=6",
    "evaluate.before=false",
    "evaluate.generate=2",
    "data.on_long_row=skip",
    "data.on_bad_row=skip",
)


def losses(run: Path) -> list[Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("validation_loss"), line.get("grad_norm")) for line in lines]


def die_behind_step_8() -> None:
    from luthier.training import trainer

    write = trainer.checkpoints.write_checkpoint

    def dying(target: Path, *rest: Any) -> None:
        write(target, *rest)
        if target.name == "step-000008":
            os._exit(9)

    trainer.checkpoints.write_checkpoint = dying


@pytest.mark.slow
@pytest.mark.matrix(packing=1)
@pytest.mark.parametrize("packing", [False, True])
def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path: Path, packing: bool) -> None:
    write_jsonl(tmp_path / "a.jsonl", mixed(30))
    write_jsonl(tmp_path / "dev.jsonl", alpaca_rows(6))
    own = [*RUN, f"train.packing={packing}"]
    whole = luthier("train", "data=a.jsonl", *own, "run=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "rows to train on are read while training" in whole.stdout
    killed = luthier("train", "data=a.jsonl", *own, "run=killed", cwd=tmp_path, before=die_behind_step_8)
    assert killed.returncode == 9, killed.stderr
    again = luthier("train", "data=a.jsonl", *own, "run=killed", cwd=tmp_path)
    assert again.returncode == 0 and "resuming from step 8 of 12" in again.stdout, again.stderr
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    for name in ("refused.jsonl", "data.json", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    result, data = (json.loads((tmp_path / "whole" / name).read_text()) for name in ("result.json", "data.json"))
    assert result["epochs"] == pytest.approx(48 / 29) and data["train"]["kept"] == 29 and data["train"]["refused"] == 1


@pytest.mark.slow
def test_a_row_that_stops_the_run_costs_no_step(tmp_path: Path) -> None:
    rows = alpaca_rows(60)
    write_jsonl(tmp_path / "a.jsonl", [*rows[:40], {**rows[40], "output": " "}, *rows[41:]])
    write_jsonl(tmp_path / "dev.jsonl", alpaca_rows(6))
    own = [option for option in RUN if "on_bad_row" not in option and "save_every" not in option]
    stopped = luthier("train", "data=a.jsonl", *own, "run=r", cwd=tmp_path)
    assert stopped.returncode == 2 and "a.jsonl: line 41: " in stopped.stderr, stopped.stderr
    write_jsonl(tmp_path / "a.jsonl", rows)
    fixed = luthier("train", "data=a.jsonl", *own, "run=r", cwd=tmp_path)
    assert fixed.returncode == 0 and "resuming from step 6 of 12" in fixed.stdout, fixed.stdout + fixed.stderr
    luthier("train", "data=a.jsonl", *own, "run=whole", cwd=tmp_path)
    assert losses(tmp_path / "r") == losses(tmp_path / "whole"), "as if the row had been right from the start"
