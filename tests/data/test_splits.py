"""Which rows train and which are held out: by label, by group, without doubles, and every row in the account."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ConfigError, DataError, InputError
from luthier.data.encode import encode
from luthier.data.prepare import load, split
from luthier.data.prepared import Prepared, SplitCounts
from luthier.data.store import Examples
from luthier.recipe.config import DataConfig, RunConfig
from luthier.recipe.identity import run_path
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example
from tests.conftest import alpaca_rows, build_tokenizer, review_rows, write_jsonl


def prepared(path: Path, **fields: Any) -> Prepared:
    config = DataConfig(path=str(path), **fields)
    data = load(config, None)
    encode(data, Template(build_tokenizer()), config, 256)
    return data


def adds_up(part: SplitCounts) -> bool:
    return part.read == part.kept + part.refused + part.duplicates + part.over_limit + part.leaks


def examples(labels: dict[str, int]) -> list[Example]:
    return [Example(text=f"{label} {i}", label=label) for label, count in labels.items() for i in range(count)]


def parted(rows: list[Example], *given: Any, **named: Any) -> tuple[list[Example], list[Example]]:
    train, other = split(Examples.of(rows), *given, **named)
    return list(train), list(other)


def counts(side: Iterable[Example]) -> dict[str | None, int]:
    return dict(Counter(example.label for example in side))


@pytest.mark.parametrize(
    ("labels", "share", "held_out"),
    [
        ({"a": 90, "b": 10}, 0.1, {"a": 9, "b": 1}),
        ({"a": 50, "b": 30, "c": 20}, 0.2, {"a": 10, "b": 6, "c": 4}),
        ({"a": 98, "b": 2}, 0.1, {"a": 9, "b": 1}),  # b's share is less than a row, and it is in both sides
        ({"a": 99, "b": 1}, 0.1, {"a": 10}),  # one row alone trains, else the class would not be known
        ({"a": 1, "b": 1, "c": 1}, 0.5, {}),
        ({"a": 2, "b": 2}, 0.9, {"a": 1, "b": 1}),
        ({str(i): 4 for i in range(11)}, 0.1, {str(i): 1 for i in (0, 1, 10, 2)}),  # the share counts, not the classes
    ],
)
def test_each_label_gives_its_share(labels: dict[str, int], share: float, held_out: dict[str, int]) -> None:
    for seed in range(5):
        train, other = parted(examples(labels), share, seed)
        assert counts(other) == held_out
        assert Counter(train) + Counter(other) == Counter(examples(labels)), "each row is on one side"


def test_without_labels_the_split_is_a_plain_shuffle_and_the_same_for_the_same_seed() -> None:
    rows = [Example(text=f"row {i}") for i in range(50)]
    first = parted(rows, 0.1, 42)
    assert first == parted(rows, 0.1, 42) != parted(rows, 0.1, 43)
    assert len(first[1]) == 5
    labelled = examples({"a": 45, "b": 5})
    assert parted(labelled, 0.1, 42) == parted(labelled, 0.1, 42)
    sides = {counts(parted(labelled, 0.1, seed, stratify=False)[1]).get("b", 0) for seed in range(20)}
    assert len(sides) > 1, "data.stratify=false leaves the labels to chance"
    mixed = [*examples({"a": 5}), Example(text="none")]
    assert len(parted(mixed, 0.2, 0)[1]) == 1, "auto needs a label on every row"


def test_stratify_is_the_default_for_labels_and_refused_without(tmp_path: Path, alpaca_file: Path) -> None:
    rows = [{"text": f"text {i}", "label": "rare" if i % 20 == 0 else "often"} for i in range(100)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    data = prepared(file, validation=0.2)
    assert data.validation.labels == {"often": 19, "rare": 1} and data.train.labels == {"often": 76, "rare": 4}
    assert data.fingerprint == prepared(file, validation=0.2, stratify=True).fingerprint
    with pytest.raises(InputError, match=r"data\.stratify: .*line 1 has no label"):
        prepared(alpaca_file, stratify=True)
    assert prepared(alpaca_file, stratify=False).fingerprint == prepared(alpaca_file).fingerprint


def spoken(count: int, speakers: int) -> list[dict[str, Any]]:
    return [{**row, "speaker": i % speakers} for i, row in enumerate(alpaca_rows(count))]


def speakers_of(side: Iterable[Example], made: list[dict[str, Any]]) -> set[Any]:
    return {made[int(example.where.rpartition(" ")[2]) - 1]["speaker"] for example in side}


def test_a_group_stays_on_one_side(tmp_path: Path) -> None:
    made = spoken(60, 20)
    file = write_jsonl(tmp_path / "a.jsonl", made)
    data = prepared(file, validation=0.1, group="speaker")
    train, held_out = (speakers_of(side, made) for side in (data.examples, data.validation_examples))
    assert len(data.validation_examples) == 6 and len(held_out) == 2 and not train & held_out
    assert data.validation.source == "10% of the training rows, seed 42, by speaker"
    plain = prepared(file, validation=0.1)
    assert speakers_of(plain.examples, made) & speakers_of(plain.validation_examples, made), "by chance they mix"


def test_equal_rows_of_two_groups_join_them() -> None:
    rows = [
        Example(text=text, group=group) for text, group in [("a", "1"), ("b", "1"), ("a", "2"), ("c", "2"), ("d", "3")]
    ]
    for seed in range(10):
        train, held_out = parted(rows, 0.4, seed)
        assert [example.text for example in held_out] == ["d"] and len(train) == 4


def test_groups_and_labels_together() -> None:
    rows = [Example(text=f"{i}", group=str(i // 5), label="rare" if i // 5 % 4 == 0 else "often") for i in range(200)]
    _, held_out = parted(rows, 0.2, 42)
    assert counts(held_out) == {"often": 30, "rare": 10}
    assert all(size == 5 for size in Counter(example.group for example in held_out).values())


def test_groups_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", spoken(40, 2))
    with pytest.raises(
        DataError, match=r"no group of data\.group fits into the 4 rows to hold out: the smallest has 20"
    ):
        prepared(file, group="speaker")
    with pytest.raises(DataError, match=r"line 1: there is no column 'speakr' \(did you mean 'speaker'\?\)"):
        prepared(file, group="speakr")
    missing = write_jsonl(tmp_path / "b.jsonl", [*spoken(40, 20), {**alpaca_rows(1)[0], "speaker": None}])
    data = prepared(missing, group="speaker", on_bad_row="skip", validation=0.2)
    assert [refusal.reason for refusal in data.refusals] == ["speaker is empty, and data.group goes by it"]


def test_a_setting_of_the_split_where_nothing_is_split(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", spoken(40, 20))
    other = write_jsonl(tmp_path / "v.jsonl", alpaca_rows(3))
    with pytest.raises(InputError, match=r"data\.group: the validation rows come from .*v\.jsonl, so no share"):
        prepared(file, group="speaker", validation=str(other))
    with pytest.raises(InputError, match=r"data\.stratify: data\.validation is none"):
        prepared(file, stratify=True, validation="none")
    with pytest.raises(InputError, match=r"data\.validation=dev: .*a\.jsonl is one file, which has no splits"):
        prepared(file, validation="dev")


def test_doubles_stay_by_default_and_are_left_out_on_demand(tmp_path: Path) -> None:
    rows = [*alpaca_rows(10), *alpaca_rows(3), {**alpaca_rows(1)[0], "output": "another answer"}]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    other = write_jsonl(tmp_path / "v.jsonl", [{"instruction": "Q", "output": "A"}] * 2)
    kept = prepared(file, validation=str(other))
    assert (kept.train.kept, kept.train.duplicates, len(kept.refusals)) == (14, 0, 0)
    data = prepared(file, validation=str(other), deduplicate="exact")
    assert (data.train.read, data.train.kept, data.train.duplicates) == (14, 11, 3), "another answer is no double"
    assert (data.validation.read, data.validation.kept, data.validation.duplicates) == (2, 1, 1)
    assert adds_up(data.train) and adds_up(data.validation)
    assert [(r.where, r.reason) for r in data.refusals[:1]] == [(f"{file}: line 11", f"the same as {file}: line 1")]
    assert data.refusals[0].row == rows[10], "kept whole"


def leaking(tmp_path: Path) -> tuple[Path, Path]:
    train = write_jsonl(tmp_path / "t.jsonl", [*alpaca_rows(20), alpaca_rows(20)[4]])
    held_out = write_jsonl(tmp_path / "v.jsonl", [alpaca_rows(20)[4], alpaca_rows(20)[9], *alpaca_rows(22)[20:]])
    return train, held_out


def test_a_leak_is_told_dropped_from_training_or_stops(tmp_path: Path) -> None:
    train, held_out = leaking(tmp_path)
    told = prepared(train, validation=str(held_out))
    assert (told.train.kept, told.train.leaks, told.validation.kept, told.validation.in_training) == (21, 0, 4, 2)
    data = prepared(train, validation=str(held_out), on_leak="drop")
    assert (data.train.kept, data.train.leaks, data.validation.kept) == (18, 3, 4), "the validation rows stay"
    assert list(data.validation_examples) == list(told.validation_examples)
    assert not {e.messages for e in data.examples} & {e.messages for e in data.validation_examples}
    assert [r.where.rpartition(" ")[2] for r in data.refusals] == ["5", "10", "21"]
    assert data.refusals[0].reason == f"the same as the validation row {held_out}: line 1"
    assert data.refusals[0].row["messages"][1]["content"] == alpaca_rows(20)[4]["output"]
    assert adds_up(data.train) and adds_up(data.validation)
    with pytest.raises(DataError) as caught:
        prepared(train, validation=str(held_out), on_leak="stop")
    assert f"{held_out}: line 1: this validation row is a training row too, at {train}: line 5; 2 of 4 are" in (
        caught.value.message
    )
    assert "data.on_leak=drop" in caught.value.fix


def test_no_leak_is_found_where_the_answers_differ_or_a_share_is_held_out(tmp_path: Path) -> None:
    train, _ = leaking(tmp_path)
    other = write_jsonl(tmp_path / "o.jsonl", [{**alpaca_rows(5)[4], "output": "another"}])
    assert prepared(train, validation=str(other), on_leak="stop").validation.in_training == 0
    assert prepared(train, on_leak="stop").validation.in_training == 0, "equal rows stay on one side"


def test_every_policy_at_once_adds_up(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in [*alpaca_rows(40), *alpaca_rows(5)]]
    lines.insert(3, "{broken")
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    held_out = write_jsonl(tmp_path / "v.jsonl", alpaca_rows(44)[34:])
    options: dict[str, Any] = {"deduplicate": "exact", "on_bad_row": "skip", "limit": 30, "seed": 1}
    data = prepared(file, validation=str(held_out), on_leak="drop", validation_limit=8, **options)
    part = data.train
    assert (part.read, part.refused, part.duplicates, part.over_limit) == (46, 1, 5, 10) and part.leaks > 0
    assert adds_up(part) and adds_up(data.validation) and data.validation.over_limit == 2
    assert len(data.refusals) == part.refused + part.duplicates + part.leaks
    account = data.account()
    assert account["train"]["duplicates"] == 5 and account["train"]["leaks"] == part.leaks
    share = prepared(file, **options)
    assert share.train.read + share.validation.read == 46
    assert adds_up(share.train) and adds_up(share.validation)


def test_a_label_split_keeps_equal_rows_together(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", review_rows(20) * 3)
    data = prepared(file, validation=0.2)
    assert data.validation.labels == {"0": 6, "1": 6}
    assert not {e.text for e in data.examples} & {e.text for e in data.validation_examples}


@pytest.mark.parametrize("override", ["data.deduplicate=fuzzy", "data.on_leak=ignore", "data.stratify=maybe"])
def test_settings_that_are_none(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        RunConfig.load(None, [override])
    assert RunConfig.load(None, ["data.stratify=auto", "data.group=speaker"]).data.stratify is None


def test_the_default_folder_of_a_run_names_the_subset() -> None:
    assert run_path(RunConfig.load(None, ["data=some/sets", "data.subset=small"]), None) == Path("runs/sets-small-lora")
