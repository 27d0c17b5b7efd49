"""Several sets in one training: each stands in an epoch as often as its weight says, and has its own account."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ConfigError, InputError
from luthier.data.encode import encode
from luthier.data.prepare import load
from luthier.data.prepared import Prepared
from luthier.recipe.config import DataConfig, RunConfig
from luthier.rendering.chat_template import Template
from tests.conftest import alpaca_rows, build_tokenizer, review_rows, write_jsonl


def files(tmp_path: Path) -> tuple[Path, Path]:
    main = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(20))
    turns = [
        {"messages": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": f"A{i}"}]}
        for i in range(10)
    ]
    return main, write_jsonl(tmp_path / "b.jsonl", turns)


def prepared(path: Path, *more: dict[str, Any], task: Any = None, **fields: Any) -> Prepared:
    mix = [{**one, "path": str(one["path"])} for one in more]
    config = DataConfig.model_validate({"path": str(path), "validation": "none", "mix": mix, **fields})
    data = load(config, task)
    encode(data, Template(build_tokenizer()), config, 256)
    return data


def copies(data: Prepared, file: Path) -> Counter[int]:
    """How many rows of a file stand in the epoch how often."""
    return Counter(Counter(e.where for e in data.examples if e.where.startswith(f"{file}: ")).values())


def adds_up(data: Prepared) -> bool:
    parts = [(p, p.kept + p.over_limit + p.leaks) for p in (data.train, data.validation)]
    portions = [(p, p.rows + p.held_out) for p in data.portions]
    return all(p.read + p.repeated == p.refused + p.duplicates + p.by_weight + rest for p, rest in [*parts, *portions])


@pytest.mark.parametrize(
    ("weight", "other", "expected", "expected_other"),
    [
        (1, 1, {1: 20}, {1: 10}),
        (1, 3, {1: 20}, {3: 10}),
        (1, 0.5, {1: 20}, {1: 5}),
        (1, 1.3, {1: 20}, {1: 7, 2: 3}),
        (2.5, 0.1, {2: 10, 3: 10}, {1: 1}),
    ],
)
def test_a_weight_says_how_often_rows_stand_in_an_epoch(
    tmp_path: Path, weight: float, other: float, expected: dict[int, int], expected_other: dict[int, int]
) -> None:
    main, second = files(tmp_path)
    data = prepared(main, {"path": second, "weight": other}, weight=weight)
    assert (copies(data, main), copies(data, second)) == (Counter(expected), Counter(expected_other))
    assert len(data.rows) == data.train.kept == sum(portion.rows for portion in data.portions)
    assert adds_up(data)
    again = prepared(main, {"path": second, "weight": other}, weight=weight)
    assert data.fingerprint == again.fingerprint


def test_the_seed_chooses_the_rows_of_a_weight_below_one(tmp_path: Path) -> None:
    main, second = files(tmp_path)
    chosen = {prepared(main, {"path": second, "weight": 0.3}, seed=seed).fingerprint for seed in range(4)}
    assert len(chosen) > 1


def test_each_set_has_its_own_format_and_account(tmp_path: Path) -> None:
    main, second = files(tmp_path)
    with second.open("a") as stream:
        stream.write('{"broken\n')
    data = prepared(main, {"path": second, "weight": 2}, on_bad_row="skip", validation=0.2)
    first, other = data.account()["mix"]
    assert (first["format"]["name"], other["format"]["name"]) == ("alpaca", "messages")
    assert (first["source"], other["source"]) == (str(main), str(second))
    assert (first["read"], other["read"], other["refused"]) == (20, 11, 1)
    assert first["held_out"] + other["held_out"] == 6 == data.validation.kept == data.validation.read
    assert other["rows"] == 2 * (10 - other["held_out"]) and data.train.source == f"{main} + {second}"
    assert adds_up(data) and "mix" in json.dumps(data.account())
    assert not {e.where for e in data.examples} & {e.where for e in data.validation_examples}
    assert max(Counter(e.where for e in data.validation_examples).values()) == 1, "held-out rows have no copies"


def test_policies_go_over_all_sets(tmp_path: Path) -> None:
    main, second = files(tmp_path)
    third = write_jsonl(tmp_path / "c.jsonl", [*alpaca_rows(5), {"instruction": "new", "output": "row"}])
    held_out = write_jsonl(tmp_path / "v.jsonl", alpaca_rows(2))
    data = prepared(
        main,
        {"path": second},
        {"path": third, "weight": 2},
        validation=str(held_out),
        deduplicate="exact",
        on_leak="drop",
        limit=25,
    )
    assert data.train.duplicates == data.portions[2].duplicates == 5
    assert data.refusals[0].reason == f"the same as {main}: line 1"
    assert data.train.over_limit == 20 + 10 + 2 - 25 and adds_up(data)


def test_one_set_alone_has_a_weight_and_none_no_account_of_a_mix(tmp_path: Path) -> None:
    main, _ = files(tmp_path)
    assert prepared(main, weight=0.5).train.kept == 10 == prepared(main, weight=0.5).train.by_weight
    assert prepared(main).account()["mix"] == []


def test_a_mix_that_cannot_be(tmp_path: Path) -> None:
    main, second = files(tmp_path)
    with pytest.raises(InputError, match=r"data\.mix: .*a\.jsonl is there twice"):
        prepared(main, {"path": second}, {"path": main})
    reviews = write_jsonl(tmp_path / "r.jsonl", review_rows(10))
    with pytest.raises(
        InputError, match=r"is for task chat, .*r\.jsonl \(classification\) for task classify"
    ) as caught:
        prepared(main, {"path": reviews})
    assert "task=chat" in caught.value.fix
    from luthier.tasks.base import TASKS

    assert len(prepared(main, {"path": reviews}, task=TASKS.parse("chat")).examples) == 30
    for mix in ("[{weight: 2}]", "[{path: a, weight: 0}]", "[{path: a, wieght: 2}]"):
        with pytest.raises(ConfigError, match=r"data\.mix"):
            RunConfig.load(None, ["data=x.jsonl", f"data.mix={mix}"])


def test_sets_of_a_dataset_info_are_mixed_by_name(tmp_path: Path) -> None:
    main, second = files(tmp_path)
    columns = {"messages": "messages"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    table = {
        "one": {"file_name": main.name},
        "two": {"file_name": second.name, "formatting": "sharegpt", "columns": columns, "tags": tags},
        "few": {"file_name": second.name, "num_samples": 3},
        "same": {"file_name": main.name},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(table))
    data = prepared(tmp_path, {"path": tmp_path, "subset": "two"}, subset="one")
    assert (len(data.examples), data.portions[1].format["name"]) == (30, "sharegpt")
    with pytest.raises(InputError, match="is there twice"):
        prepared(tmp_path, {"path": tmp_path, "subset": "same"}, subset="one")
    with pytest.raises(InputError, match=r"num_samples of .* is not used in a mix"):
        prepared(tmp_path, {"path": tmp_path, "subset": "few"}, subset="one")


def test_the_recipe_of_a_mix_is_written_and_read_again(tmp_path: Path) -> None:
    config = RunConfig.load(
        None, ["data=a.jsonl", "data.mix=[{path: b.jsonl, weight: 2, format: alpaca}, {path: c.csv}]"]
    )
    file = tmp_path / "r.yaml"
    file.write_text(config.dump())
    assert RunConfig.load(file) == config and [one.weight for one in config.data.mix] == [2.0, 1.0]
