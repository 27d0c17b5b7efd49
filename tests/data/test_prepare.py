"""From rows to tokens: every row is counted, none is lost unseen, and the held-out side stays apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, InputError
from luthier.data.batches import micro_batches, step_numbers, steps_per_epoch
from luthier.data.encode import encode
from luthier.data.prepare import load
from luthier.data.prepared import Prepared
from luthier.recipe.config import DataConfig
from luthier.rendering.chat_template import Template
from luthier.rendering.row import IGNORED
from luthier.tasks.base import TASKS
from tests.conftest import alpaca_rows, build_tokenizer, review_rows, write_jsonl


def prepared(path: Path, *, max_length: int = 256, task: str | None = None, **fields: Any) -> Prepared:
    config = DataConfig(path=str(path), **fields)
    data = load(config, TASKS.parse(task) if task else None)
    encode(data, Template(build_tokenizer()), config, max_length)
    return data


def test_ten_percent_are_held_out_by_default_and_always_the_same(alpaca_file: Path) -> None:
    first, second = prepared(alpaca_file), prepared(alpaca_file)
    assert (len(first.examples), len(first.validation_examples)) == (36, 4)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != prepared(alpaca_file, seed=43).fingerprint
    assert not {e.where for e in first.examples} & {e.where for e in first.validation_examples}
    assert first.validation.source == "10% of the training rows, seed 42"


def test_equal_rows_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(20) * 5)
    data = prepared(file, validation=0.3)
    train, held_out = ({e.messages for e in side} for side in (data.examples, data.validation_examples))
    assert held_out and not train & held_out


def test_a_split_that_comes_with_the_data_is_taken(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", alpaca_rows(8))
    write_jsonl(tmp_path / "dev.jsonl", alpaca_rows(3))
    assert len(prepared(tmp_path).validation_examples) == 3
    assert len(prepared(tmp_path, validation=0.25).validation_examples) == 2
    assert not prepared(tmp_path, validation="none").validation_examples
    other = write_jsonl(tmp_path / "other.jsonl", alpaca_rows(5))
    assert len(prepared(tmp_path, validation=str(other)).validation_examples) == 5


def test_a_limit_takes_from_both_classes_of_sorted_data(tmp_path: Path) -> None:
    rows = sorted(review_rows(200), key=lambda row: row["label"])
    data = prepared(write_jsonl(tmp_path / "a.jsonl", rows), limit=50, validation_limit=10)
    assert len(data.examples) == 50 and len(data.validation_examples) == 10
    assert min(data.train.labels.values()) > 15
    assert data.train.over_limit == 130 and data.validation.over_limit == 10


def test_every_row_is_in_the_account(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in alpaca_rows(30)]
    lines[10] = '{"instruction": "broken'
    lines[20] = json.dumps({"instruction": "no answer", "output": ""})
    lines[25] = json.dumps({"instruction": "long " * 500, "output": "x"})
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    data = prepared(file, on_bad_row="skip", on_long_row="skip")
    reasons = {refusal.where.rpartition(" ")[2]: refusal.reason for refusal in data.refusals}
    assert set(reasons) == {"11", "21", "26"}
    assert "invalid JSON" in reasons["11"] and "is empty" in reasons["21"] and "max_length is 256" in reasons["26"]
    assert data.refusals[0].row == {"raw": lines[10]}, "a refused row is kept whole"
    kept = data.train.kept + data.validation.kept
    assert data.train.read + data.validation.read == 30 == kept + data.train.refused + data.validation.refused


@pytest.mark.parametrize(
    ("line", "said"),
    [("{broken", "line 4: invalid JSON"), ('{"instruction": "a"}', "line 4: there is no column 'output'")],
)
def test_a_bad_row_stops_by_default_and_names_its_line(tmp_path: Path, line: str, said: str) -> None:
    lines = [json.dumps(row) for row in alpaca_rows(6)]
    lines[3] = line
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        prepared(file)
    assert f"{file}: {said}" in str(caught.value) and "fix:" in str(caught.value)


def long_rows(tmp_path: Path) -> Path:
    rows = alpaca_rows(10)
    rows[4]["instruction"] = "Hello dog " * 100
    rows[4]["output"] = "the answer stays"
    return write_jsonl(tmp_path / "long.jsonl", rows)


def test_a_long_row_stops_by_default_and_says_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(long_rows(tmp_path), max_length=100, validation="none")
    text = str(caught.value)
    assert "line 5" in text and "1 of 10 rows are too long" in text and "data.on_long_row=truncate_prompt" in text


def test_truncating_the_prompt_keeps_the_whole_answer(tmp_path: Path) -> None:
    data = prepared(long_rows(tmp_path), max_length=100, validation="none", on_long_row="truncate_prompt")
    (row,) = [row for row in data.rows if row.cut]
    tokenizer = build_tokenizer()
    learned = tokenizer.decode([label for label in row.labels if label != IGNORED])
    assert learned == "the answer stays</s>" and 90 < len(row.ids) <= 100
    assert tokenizer.decode(row.ids).startswith("<s>User:\nHello dog Hello dog")
    assert data.train.cut == 1 and data.train.cut_tokens == row.cut > 0


def test_an_answer_cut_away_altogether_stops(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the whole answer is cut away"):
        prepared(long_rows(tmp_path), max_length=100, validation="none", on_long_row="truncate_answer")


def test_splitting_plain_text_learns_every_token_once(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "The quick brown fox jumps over the lazy dog. " * 30}])
    whole = prepared(file, max_length=10_000, validation="none").rows[0]
    parts = prepared(file, max_length=33, validation="none").rows
    assert len(parts) > 5 and all(len(row.ids) <= 33 for row in parts)
    assert [token for row in parts for token in row.ids[1:]] == whole.ids[1:]
    assert sum(row.learned for row in parts) == whole.learned == len(whole.ids) - 1
    assert whole.ids[-1] == build_tokenizer().eos_token_id, "where a text ends is learned as well"


def test_a_chat_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="task chat cannot split a row"):
        prepared(long_rows(tmp_path), max_length=100, on_long_row="split")


def test_completions_without_a_template_learn_the_completion_alone(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Hello, ", "completion": "dog"}])
    row = prepared(file, task="complete", validation="none").rows[0]
    tokenizer = build_tokenizer()
    assert tokenizer.decode(row.ids) == "Hello, dog</s>"
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "dog</s>"


def test_classes_are_taken_from_the_training_rows_in_order(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": i % 11} for i in range(44)]
    data = prepared(write_jsonl(tmp_path / "a.jsonl", rows), validation="none")
    assert data.task.model_dump()["labels"] == tuple(str(i) for i in range(11)), "10 comes after 9"
    assert [row.labels for row in data.rows[:2]] == [[0], [1]]


def test_classification_needs_two_classes_and_known_labels(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a", "label": 1}] * 3)
    with pytest.raises(DataError, match="at least two labels"):
        prepared(one, validation="none")
    train = write_jsonl(tmp_path / "t.jsonl", review_rows(8))
    odd = write_jsonl(tmp_path / "v.jsonl", [{"text": "a", "label": 7}])
    with pytest.raises(DataError, match="label '7' is none of the classes 0, 1"):
        prepared(train, validation=str(odd))


def test_task_and_data_that_do_not_fit(tmp_path: Path, alpaca_file: Path) -> None:
    with pytest.raises(DataError, match="at least two labels"):
        prepared(alpaca_file, task="classify")
    text = write_jsonl(tmp_path / "t.jsonl", [{"text": "plain"}])
    with pytest.raises(DataError, match="task=complete learns plain text"):
        prepared(text, task="chat", validation="none")


def test_an_epoch_visits_every_row_once_in_a_new_order() -> None:
    lengths = [(7 * i) % 13 + 1 for i in range(53)]
    steps = steps_per_epoch(53, 8)

    def numbers(index: int) -> list[int]:
        return step_numbers(53, index, batch_size=8, seed=5)

    epochs = [[row for i in range(steps) for row in numbers(e * steps + i)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(53)) and epochs[0] != epochs[1]
    assert numbers(3) == numbers(3), "a pure function: a resumed run sees the same"
    own = [lengths[row] for row in numbers(3)]
    micro = micro_batches(own, micro_batch=3, by_length=True)
    flat = [own[row] for m in micro for row in m]
    assert flat == sorted(flat, reverse=True) and [len(m) for m in micro] == [3, 3, 2]
    plain = micro_batches(own, micro_batch=3, by_length=False)
    assert sorted(r for m in plain for r in m) == sorted(r for m in micro for r in m), "length changes no step"
