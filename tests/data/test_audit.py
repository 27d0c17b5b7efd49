"""What the look at the data finds, each on a data set made for it; and what it must not find."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.core.events import Progress
from luthier.data.checks.audit import Audit, lenient, read_all, survey
from luthier.data.checks.duplicates import groups, near, normalized
from luthier.data.checks.languages import languages, script
from luthier.data.checks.mask import mask, refuse_endless
from luthier.data.prepare import load
from luthier.data.prepared import Prepared, Rows
from luthier.data.settings import DataConfig
from luthier.rendering.chat_template import Template
from luthier.rendering.row import IGNORED, Row
from luthier.tasks.base import TASKS
from tests.conftest import alpaca_rows, build_tokenizer, review_rows, write_jsonl

LONG = "The quick brown fox jumps over the lazy dog and says hello to number {} before it runs home again. "


def looked(path: Path, *, max_length: int = 256, task: str | None = None, **fields: Any) -> tuple[Audit, Prepared]:
    config = DataConfig(path=str(path), **fields)
    chosen = TASKS.parse(task) if task else None
    data = read_all(config, chosen)
    found = survey(config, chosen, data, Template(build_tokenizer()), max_length, Progress())
    json.dumps(asdict(found))
    return found, data


def distinct(count: int) -> list[dict[str, str]]:
    """Rows that are not alike: each has its own letters."""
    words = [chr(0x4E00 + 37 * i) * 7 + chr(0x5E00 + 41 * i) * 5 for i in range(count)]
    return [{"instruction": f"{word}?", "input": "", "output": f"{word[::-1]}!"} for word in words]


def what(found: Audit, level: str = "") -> set[str]:
    return {finding.what for finding in found.findings if level in ("", finding.level)}


def test_sound_data_has_no_finding_but_the_template(tmp_path: Path) -> None:
    found, data = looked(write_jsonl(tmp_path / "a.jsonl", distinct(30)))
    assert what(found) == {"template"} and not found.stops
    assert found.lengths["rows"] == 30 == data.train.kept + data.validation.kept
    assert found.account["files"] == [{"file": str(tmp_path / "a.jsonl"), "encoding": "utf-8"}]


def test_every_refused_row_is_named_and_the_first_stops_train(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in distinct(20)]
    lines[3], lines[12] = "{broken", '{"instruction": "x", "output": ""}'
    lines[15] = json.dumps({"instruction": "long " * 300, "output": "x"})
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    found, _ = looked(file)
    assert [refusal["where"].rpartition(" ")[2] for refusal in found.refusals] == ["4", "13", "16"]
    assert found.stops and "line 4: invalid JSON" in found.findings[0].text and "3 rows" in found.findings[0].text
    assert "empty" in what(found), "an empty answer is named as such"
    skipping, _ = looked(file, on_bad_row="skip", on_long_row="skip")
    assert not skipping.stops and len(skipping.refusals) == 3, "the recipe says so"
    half, _ = looked(file, on_bad_row="skip")
    assert half.stops and "max_length is 256" in half.findings[0].text, "only the long row would stop it"


def test_a_file_without_one_good_row_stops_with_the_first_reason(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "a", "output": ""}] * 3)
    with pytest.raises(DataError, match=r"line 1: .*empty"):
        looked(file)


def test_where_every_row_is_too_long_all_are_named(tmp_path: Path) -> None:
    found, _ = looked(write_jsonl(tmp_path / "a.jsonl", alpaca_rows(12)), max_length=8)
    assert found.stops and len(found.refusals) == 12 and not found.masks
    assert found.limits[0]["max_length"] == 8 and found.limits[0]["rows"] == 12 and found.limits[0]["share"] == 1


def test_lengths_are_those_before_a_limit(tmp_path: Path) -> None:
    rows = [*distinct(19), {"instruction": "fox " * 200, "input": "", "output": "dog"}]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    whole, _ = looked(file, max_length=4096)
    assert whole.lengths["p50"] <= whole.lengths["p90"] <= whole.lengths["p95"] < whole.lengths["max"]
    for policy in ("skip", "truncate_prompt"):
        found, data = looked(file, max_length=120, on_long_row=policy)
        assert {**found.lengths, "tokens": 0} == {**whole.lengths, "tokens": 0}
        (current,) = [limit for limit in found.limits if limit["current"]]
        assert current["max_length"] == 120 and current["rows"] == 1 and current["share"] == 1 / 20
        assert ("cut" in what(found)) == (policy == "truncate_prompt") == (data.train.cut + data.validation.cut == 1)
    text = write_jsonl(tmp_path / "t.jsonl", [{"text": "Hello dog. " * 50}])
    split, _ = looked(text, max_length=20, validation="none")
    assert split.lengths["max"] > 100 and split.lengths["rows"] == 1, "a split text counts once, as a whole"


def test_labels_of_classes_and_of_words(tmp_path: Path) -> None:
    rows = [{"text": f"film {i} " + chr(0x4E00 + i) * 9, "label": "bad" if i % 30 == 0 else "good"} for i in range(90)]
    found, _ = looked(write_jsonl(tmp_path / "a.jsonl", rows), validation="none")
    assert found.labels["train"] == {"good": 87, "bad": 3} and "labels" in what(found, "warn")
    words = [{"prompt": f"{i} " + chr(0x4E00 + i) * 9, "completion": "yes" if i % 2 else "no"} for i in range(60)]
    found, _ = looked(write_jsonl(tmp_path / "w.jsonl", words), validation="none")
    assert found.labels["train"] == {"no": 30, "yes": 30}
    assert not {"labels", "short answers", "repeated"} & what(found), "these answers are labels in words"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Hello, my name is 4.", "Latin"),
        ("Größe, naïve, Ångström", "Latin"),
        ("这部电影很好看", "Chinese"),
        ("この映画はとても面白い", "Japanese"),
        ("안녕하세요 123", "Korean"),
        ("Привет, мир", "Cyrillic"),
        ("مرحبا بالعالم", "Arabic"),
        ("नमस्ते", "Devanagari"),
        ("这部电影 is good", "mixed: Chinese, Latin"),
        ("12 + 30 = 42 🙂", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text: str, name: str) -> None:
    assert script(text) == name


@pytest.mark.slow
def test_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "en": "The kettle leaks and the shop would not take it back.",
        "zh": "这个水壶漏水，商店不肯退货。",
        "de": "Der Kessel ist undicht, und das Geschäft nimmt ihn nicht zurück.",
        "not sure": "ok 12",
    }
    assert languages(texts.values()) == dict.fromkeys(texts, 1)
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": f"{text} {i}"} for i in range(10) for text in texts.values()])
    found, _ = looked(file, validation="none")
    assert found.languages == dict.fromkeys(texts, 10) and "py3langid" in found.languages_how
    monkeypatch.setattr("luthier.data.checks.audit.MOST_TEXTS", 8)
    found, _ = looked(file, validation="none")
    assert sum(found.languages.values()) == 8 and "of 8 rows evenly spaced" in found.languages_how
    monkeypatch.setattr("luthier.data.checks.audit.available", lambda: False)
    found, _ = looked(file, validation="none")
    assert found.languages == {} and "pip install 'py3langid>=0.4'" in found.languages_how


def test_equal_rows_are_found_across_case_and_space(tmp_path: Path) -> None:
    rows = distinct(20)
    rows[7] = {"instruction": "Say  HELLO fox", "input": "", "output": "Hello"}
    rows[15] = {"instruction": "say hello fox", "input": "", "output": "hello"}
    found, _ = looked(write_jsonl(tmp_path / "a.jsonl", rows), validation="none")
    assert found.exact_rows == 1 and {"duplicates"} <= what(found, "warn")
    assert (found.exact[0].a[-6:], found.exact[0].b[-7:]) == ("line 8", "line 16")
    assert normalized("Ａ\u3000b\n C") == "a b c" and groups([3, 0, 5, 0, 3, 5]) == [[0, 4], [2, 5]]


def hashes(texts: list[str]) -> list[int]:
    return [1 + texts.index(text) for text in texts]


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path) -> None:
    base = "".join(LONG.format(i) for i in (3, 14, 159))
    half = base[: len(base) // 2] + "An entirely other ending, about kettles that leak and boots that last. " * 2
    keys = [normalized(text) for text in (base, base.replace("14", "15"), half, base[:-1] + "!", "你好，你是谁？")]
    result = near(keys.__getitem__, hashes(keys))
    assert {(a, b) for a, b, _ in result.pairs} == {(0, 1), (0, 3), (1, 3)} and result.whole and result.texts == 5
    assert all(0.8 <= similarity < 1 for _, _, similarity in result.pairs)
    assert near(keys.__getitem__, hashes(keys)).pairs == result.pairs, "the same every time"
    assert near(["ab", "ab", "", "abc"].__getitem__, [7, 7, 0, 8]).texts == 2 and near([].__getitem__, []).pairs == []
    rows = distinct(20)
    rows[4]["output"], rows[9]["output"] = base, base.replace("14", "15")
    rows[4]["instruction"] = rows[9]["instruction"] = "Tell me of the fox."
    found, _ = looked(write_jsonl(tmp_path / "a.jsonl", rows), validation="none", max_length=1024)
    assert found.near_pairs == 1 and {found.near[0].a[-6:], found.near[0].b[-7:]} == {"line 5", "line 10"}
    assert "80%" in found.near_how and "near duplicates" in what(found, "note")


def test_work_on_near_duplicates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.data.checks.duplicates.MOST_TEXTS", 20)
    monkeypatch.setattr("luthier.data.checks.duplicates.MOST_PAIRS", 30)
    alike = [normalized(LONG.format(i) + LONG.format(i + 1)) for i in range(400)]
    result = near(alike.__getitem__, hashes(alike))
    assert result.texts == 20 and not result.whole and len(result.pairs) <= 30
    texts = [chr(0x4E00 + 11 * i) * 8 + chr(0x5E00 + 7 * i) * 8 for i in range(60)]
    texts[41] = LONG.format(7) * 3
    texts[55] = LONG.format(7) * 3 + "!"
    assert [pair[:2] for pair in near(texts.__getitem__, hashes(texts), 41).pairs] == [(41, 55)], (
        "validation rows are all compared"
    )


def test_validation_rows_that_training_has(tmp_path: Path) -> None:
    rows = distinct(30)
    rows[5]["output"] = "".join(LONG.format(i) for i in range(5))
    held_out = [
        rows[2],
        {**rows[5], "output": rows[5]["output"].replace("number 3", "number 7")},
        {**rows[8], "output": "something else"},
        *distinct(40)[35:],
    ]
    other = write_jsonl(tmp_path / "v.jsonl", held_out)
    found, _ = looked(write_jsonl(tmp_path / "a.jsonl", rows), validation=str(other), max_length=1024)
    assert found.overlap_rows == {"same": 1, "same_prompt": 2, "near": 1}
    assert {"overlap", "conflicts"} <= what(found, "warn") and found.conflict_groups == 2
    assert {(p.a[-6:], p.b[-6:]) for p in found.overlap} == {("line 3", "line 1"), ("line 6", "line 2")}
    stopping, _ = looked(tmp_path / "a.jsonl", validation=str(other), max_length=1024, on_leak="stop")
    assert stopping.stops and "is a training row too" in stopping.findings[0].text


def test_short_answers_and_repeated_ones(tmp_path: Path) -> None:
    rows = distinct(30)
    for i in range(30):
        rows[i]["instruction"] = "You are asked the following, answer it with care and at length: " + rows[i]["output"]
    for i in range(0, 30, 3):
        rows[i]["output"] = "I cannot answer this question."
    rows[1]["output"] = "x"
    found, _ = looked(write_jsonl(tmp_path / "a.jsonl", rows), validation="none")
    assert {(each["what"], each["rows"]) for each in found.repeated} == {("prompts begin", 30), ("the answer is", 10)}
    assert found.repeated[0]["text"].strip().endswith("at length:") and "short answers" in what(found, "warn")
    places = next(finding.places for finding in found.findings if finding.what == "short answers")
    assert len(places) == 1 and places[0].endswith("line 2: 'x'")


def test_the_mask_shows_what_is_learned_and_never_a_prompt(tmp_path: Path) -> None:
    talk = [
        {"role": role, "content": text}
        for role, text in [
            ("system", "Be kind."),
            ("user", "你好，你是谁？"),
            ("assistant", "我叫琴匠。"),
            ("user", "Your name?"),
            ("assistant", "My name is Luthier."),
        ]
    ]
    found, _ = looked(write_jsonl(tmp_path / "a.jsonl", [{"messages": talk}] * 4), validation="none")
    shown = found.masks[0]
    text = "".join(piece for piece, _ in shown.pieces)
    assert text == (
        "<s>System:\nBe kind.\nUser:\n你好，你是谁？\nAssistant:\n我叫琴匠。</s>\nUser:\nYour name?\nAssistant:\n"
        "My name is Luthier.</s>\n"
    )
    runs: list[list[str]] = []
    for piece, kind in shown.pieces:
        if not runs or runs[-1][0] != kind:
            runs.append([kind, ""])
        runs[-1][1] += piece
    assert [run for run in runs if run[0] in ("learned", "end")] == [
        ["learned", "我叫琴匠。"],
        ["end", "</s>"],
        ["learned", "My name is Luthier."],
        ["end", "</s>"],
    ]
    assert runs[0] == ["special", "<s>"] and {run[0] for run in runs} == {"special", "plain", "learned", "end"}
    assert sum(kind in ("learned", "end") for _, kind in shown.pieces) <= shown.learned, "a piece may be several tokens"


def test_the_mask_of_a_class_a_window_and_a_long_row(tmp_path: Path) -> None:
    found, _ = looked(write_jsonl(tmp_path / "r.jsonl", review_rows(40)), validation="none")
    assert {mask.label for mask in found.masks} == {"0", "1"}
    assert not any(kind in ("learned", "end") for mask in found.masks for _, kind in mask.pieces)
    file = write_jsonl(tmp_path / "t.jsonl", [{"text": "The quick brown fox 看 jumps. " * 80}])
    found, data = looked(file, validation="none", max_length=4096)
    pieces = found.masks[0].pieces
    assert pieces[0][1] == "plain" and pieces[1][1] == "learned" and pieces[-1] == ("</s>", "end")
    (gap,) = [text for text, kind in pieces if kind == "gap"]
    assert "of them learned" in gap and len(pieces) < len(data.rows[0].ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text, _ in pieces)


def test_an_end_that_is_never_learned_stops_and_train_stops_as_well(tmp_path: Path) -> None:
    rows = [{**row, "output": "fox " * 100} for row in distinct(12)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    found, data = looked(file, max_length=100, validation="none", on_long_row="truncate_answer")
    assert found.stops and "ends an answer is learned in no row" in found.findings[0].text
    with pytest.raises(DataError, match="would never learn to stop"):
        refuse_endless(data, Template(build_tokenizer()))
    file = write_jsonl(tmp_path / "b.jsonl", rows + distinct(20)[15:])
    found, data = looked(file, max_length=100, validation="none", on_long_row="truncate_answer")
    assert not found.stops and "mask" in what(found, "warn")
    refuse_endless(data, Template(build_tokenizer()))


def put_rows(data: Prepared, rows: list[Row]) -> None:
    data.rows = Rows.of("train", data.examples, enumerate(rows))


def test_a_prompt_that_is_learned_stops(tmp_path: Path) -> None:
    from luthier.data.checks.audit import audit

    template = Template(build_tokenizer())
    _, data = looked(write_jsonl(tmp_path / "a.jsonl", distinct(12)), validation="none")
    row = data.rows[4]
    first = next(i for i, label in enumerate(row.labels) if label != IGNORED)
    wrong = replace(row, labels=[*row.labels[: first - 1], row.ids[first - 1], *row.labels[first:]])
    put_rows(data, [wrong if number == 4 else each for number, each in enumerate(data.rows)])
    found = audit(data, template, lengths=[10] * 12, max_length=256, workers=1, progress=Progress())
    assert found.stops and "prompt are learned in 1 of 12 rows" in found.findings[0].text
    assert found.findings[0].places == [row.where]
    assert mask(data.rows[4], "", data, template).learned == row.learned + 1
    put_rows(data, [replace(row, labels=[IGNORED] * len(row.ids)) for row in data.rows])
    found = audit(data, template, lengths=[10] * 12, max_length=256, workers=1, progress=Progress())
    assert any("no training row has a token that is learned" in finding.text for finding in found.findings)


def test_text_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(special=["[UNK]"])
    tokenizer.unk_token = "[UNK]"
    config = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", distinct(12))), validation="none")
    data = read_all(config, None)
    tokenizer.backend_tokenizer.pre_tokenizer = None  # no bytes any more: what has no token of its own is unknown
    tokenizer.backend_tokenizer.model.unk_token = "[UNK]"
    found = survey(config, None, data, Template(tokenizer), 256, Progress())
    assert "unknown" in what(found, "warn")


def test_the_check_changes_no_setting_but_the_stops() -> None:
    config = DataConfig(path="x", on_long_row="truncate_prompt", limit=3, on_leak="drop")
    assert lenient(config) == config.model_copy(update={"on_bad_row": "skip"})
    complete = TASKS.parse("complete")
    assert lenient(DataConfig(path="x"), complete).on_long_row is None, "long texts are split, as in training"
    assert lenient(DataConfig(path="x", on_long_row="stop"), complete).on_long_row == "skip"
    assert lenient(DataConfig(path="x", on_leak="stop")).on_leak == "warn"


def test_the_rows_are_those_that_train_reads(alpaca_file: Path) -> None:
    config = DataConfig(path=str(alpaca_file))
    assert read_all(config, None).fingerprint == load(config, None).fingerprint
