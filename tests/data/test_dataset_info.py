"""LLaMA-Factory's dataset_info.json: what it names is found, read as there, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from luthier.core.errors import DataError, InputError
from luthier.data.dataset_info import resolve_name
from luthier.data.prepare import load
from luthier.data.prepared import Prepared
from luthier.recipe.config import DataConfig, RunConfig
from tests.conftest import alpaca_rows, write_jsonl

TURNS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def folder(path: Path, **entries: Any) -> Path:
    (path / "dataset_info.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return path


def read(path: Path, name: str, **fields: Any) -> Prepared:
    return load(DataConfig(**{"path": str(path), "subset": name, "validation": "none", **fields}), None)


def dialogue(data: Prepared) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in data.examples[0].messages]


def test_a_file_beside_the_table_in_the_default_layout(tmp_path: Path) -> None:
    rows = [{**row, "system": "not named in columns"} for row in alpaca_rows(4)]
    write_jsonl(tmp_path / "a.json", rows)
    folder(tmp_path, mine={"file_name": "a.json"}, other={"file_name": "b.json"})
    data = read(tmp_path, "mine")
    assert data.format.name == "alpaca" and data.format_why == f"given by {tmp_path / 'dataset_info.json'}"
    assert data.train.source == str(tmp_path / "a.json") and data.examples[0].where == f"{tmp_path / 'a.json'}: line 1"
    assert [role for role, _ in dialogue(data)] == ["user", "assistant"], "a column that is not named is not read"
    assert read(tmp_path / "dataset_info.json", "mine").fingerprint == data.fingerprint
    named = RunConfig.load(None, [f"data={tmp_path}", "data.subset=mine", "data.validation=none"]).data
    assert load(named, None).fingerprint == data.fingerprint


def test_columns_of_alpaca(tmp_path: Path) -> None:
    row = {"frage": "Q", "stoff": "M", "antwort": "A", "rolle": "S", "davor": [["a", "b"]], "input": "not named"}
    write_jsonl(tmp_path / "a.jsonl", [row])
    columns = {"prompt": "frage", "query": "stoff", "response": "antwort", "system": "rolle", "history": "davor"}
    folder(tmp_path, mine={"file_name": "a.jsonl", "columns": columns})
    assert dialogue(read(tmp_path, "mine")) == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Q\nM"),
        ("assistant", "A"),
    ]
    folder(tmp_path, mine={"file_name": "a.jsonl", "columns": {"prompt": "frage", "response": "antwort"}})
    assert dialogue(read(tmp_path, "mine")) == [("user", "Q"), ("assistant", "A")]
    folder(tmp_path, mine={"file_name": "a.jsonl", "columns": {"prompt": "frage"}})
    data = read(tmp_path, "mine")
    assert (data.format.name, data.task.name, data.examples[0].text) == ("text", "complete", "Q")


def test_turns_with_tags(tmp_path: Path) -> None:
    made = [("sys", "S"), ("kunde", "Q"), ("haus", "A")]
    write_jsonl(tmp_path / "a.jsonl", [{"log": [{"who": who, "says": says} for who, says in made]}])
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "kunde", "assistant_tag": "haus", "system_tag": "sys"}
    entry = {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"messages": "log"}, "tags": tags}
    folder(tmp_path, mine=entry)
    assert dialogue(read(tmp_path, "mine")) == [("system", "S"), ("user", "Q"), ("assistant", "A")]
    write_jsonl(
        tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}]
    )
    for more in ({"formatting": "sharegpt", "tags": TURNS}, {"formatting": "openai"}):
        folder(tmp_path, mine={"file_name": "a.jsonl", "columns": {"messages": "messages"}, **more})
        assert dialogue(read(tmp_path, "mine")) == [("user", "Q"), ("assistant", "A")]


def test_tools_under_other_names(tmp_path: Path) -> None:
    call = '{"name": "f", "arguments": {}}'
    made = [("human", "Q"), ("ruf", call), ("echo", "R"), ("gpt", "A")]
    row = {"conversations": [{"from": who, "value": says} for who, says in made], "werkzeug": '[{"name": "f"}]'}
    write_jsonl(tmp_path / "a.jsonl", [row])
    tags = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "function_tag": "ruf",
        "observation_tag": "echo",
    }
    columns = {"messages": "conversations", "tools": "werkzeug"}
    entry = {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    folder(tmp_path, mine=entry)
    (example,) = read(tmp_path, "mine").examples
    assert [message.role for message in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert '"name": "f"' in example.messages[1].tool_calls and '"name": "f"' in example.tools
    folder(tmp_path, mine={**entry, "columns": {"messages": "conversations"}})
    assert read(tmp_path, "mine").examples[0].tools == "", "a column that is not named is not read"
    row["conversations"][1]["value"] = "f()"
    write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError, match="line 1: the tool call of turn 2 is not JSON"):
        read(tmp_path, "mine")
    write_jsonl(tmp_path / "b.jsonl", [{"instruction": "Q", "output": "A", "werkzeug": [{"name": "f"}]}])
    columns = {"prompt": "instruction", "response": "output", "tools": "werkzeug"}
    folder(tmp_path, mine={"file_name": "b.jsonl", "columns": columns})
    assert '"name": "f"' in read(tmp_path, "mine").examples[0].tools


def judged(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "p.jsonl", [{"instruction": "Q", "input": "M", "chosen": "good", "rejected": "bad"}])
    made = {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    }
    write_jsonl(tmp_path / "s.jsonl", [made])
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    write_jsonl(tmp_path / "k.jsonl", [{"messages": turns, "ok": True}, {"messages": turns, "ok": False}])
    answers = {"chosen": "chosen", "rejected": "rejected"}
    return folder(
        tmp_path,
        pairs={
            "file_name": "p.jsonl",
            "ranking": True,
            "columns": {"prompt": "instruction", "query": "input", **answers},
        },
        turns={
            "file_name": "s.jsonl",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", **answers},
        },
        kto={
            "file_name": "k.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "ok"},
            "tags": TURNS,
        },
        own={
            "file_name": "s.jsonl",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", **answers},
            "tags": {**TURNS, "user_tag": "kunde"},
        },
        none={"file_name": "p.jsonl", "ranking": True},
    )


@pytest.mark.parametrize(("name", "form", "asked"), [("pairs", "preference", "Q\nM"), ("turns", "preference", "Q")])
def test_preference_pairs(tmp_path: Path, name: str, form: str, asked: str) -> None:
    config, _ = resolve_name(DataConfig(path=str(judged(tmp_path)), subset=name))
    assert config.format is not None and config.format.name == form
    row = json.loads(Path(config.path).read_text())
    example = config.format.read(row)
    assert [m.content for m in example.messages] == [asked, "good"] and example.rejected[-1].content == "bad"
    with pytest.raises(InputError, match="pairs of a better and a worse answer"):
        read(tmp_path, name)


def test_judged_answers_and_tags_that_are_not_read_there(tmp_path: Path) -> None:
    path = judged(tmp_path)
    with pytest.raises(InputError, match="answers that are judged good or bad"):
        read(path, "kto")
    config, _ = resolve_name(DataConfig(path=str(path), subset="kto"))
    assert config.format is not None
    assert [config.format.read(json.loads(line)).label for line in (path / "k.jsonl").read_text().splitlines()] == [
        "true",
        "false",
    ]
    with pytest.raises(DataError, match="own: has tags of its own"):
        read(path, "own")
    with pytest.raises(DataError, match="none: columns names no 'chosen'"):
        read(path, "none")


def test_another_data_set_of_the_table_for_validation(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", alpaca_rows(6))
    write_jsonl(tmp_path / "b.jsonl", [{"q": f"Q{i}", "a": "A"} for i in range(4)])
    held_out = {"file_name": "b.jsonl", "columns": {"prompt": "q", "response": "a"}, "num_samples": 3}
    folder(tmp_path, mine={"file_name": "a.jsonl", "num_samples": 5}, dev=held_out)
    data = read(tmp_path, "mine", validation="dev")
    assert (len(data.examples), data.train.over_limit) == (5, 1)
    assert (len(data.validation_examples), data.validation.over_limit) == (3, 1)
    assert data.validation.source == str(tmp_path / "b.jsonl") and data.validation_examples[0].answer == "A"
    assert len(read(tmp_path, "mine", limit=2, validation="dev", validation_limit=1).validation_examples) == 1
    assert len(read(tmp_path, "mine", validation=0.5).validation_examples) == 3


def test_a_format_in_the_recipe_goes_before(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": "A"}])
    folder(tmp_path, mine={"file_name": "a.jsonl"})
    data = load(
        RunConfig.load(
            None, [f"data={tmp_path}", "data.subset=mine", "data.validation=none", "data.format=prompt_completion"]
        ).data,
        None,
    )
    assert data.format.name == "prompt_completion" and data.format_why == "given in the recipe"


@pytest.mark.parametrize(
    ("hub", "entry", "found"),
    [
        ("huggingface", {"hf_hub_url": "h/x", "ms_hub_url": "m/x"}, ("h/x", "huggingface", "train", "")),
        ("modelscope", {"hf_hub_url": "h/x", "ms_hub_url": "m/x"}, ("m/x", "modelscope", "train", "")),
        ("huggingface", {"ms_hub_url": "m/x", "file_name": "a"}, ("m/x", "modelscope", "train", "")),
        ("modelscope", {"hf_hub_url": "h/x", "split": "dev", "subset": "en"}, ("h/x", "huggingface", "dev", "en")),
    ],
)
def test_hub_ids(tmp_path: Path, hub: Any, entry: dict[str, str], found: tuple[str, ...]) -> None:
    folder(tmp_path, mine=entry)
    config, _ = resolve_name(DataConfig(path=str(tmp_path), subset="mine", hub=hub))
    assert (config.path, config.hub, config.split, config.subset) == found


def test_a_hub_id_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{"q": "Q", "a": "A"}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    folder(tmp_path, mine={"hf_hub_url": "h/x", "subset": "en", "columns": {"prompt": "q", "response": "a"}})
    assert dialogue(read(tmp_path, "mine")) == [("user", "Q"), ("assistant", "A")]
    assert asked == [(("h/x", "en"), {"split": "train", "streaming": False})]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"file_name": "a", "columns": {"messages": "m", "images": "pics"}}, "mine: has images (column 'pics')"),
        ({"file_name": "a", "columns": {"videos": "v"}}, "has videos"),
        ({"file_name": "a", "columns": {"audios": "v"}}, "has audios"),
        ({"file_name": "a", "columns": {"promt": "q"}}, "unknown key 'promt' in columns (did you mean 'prompt'?)"),
        ({"file_name": "a", "tags": {"role": "q"}}, "unknown key 'role' in tags"),
        ({"file_name": "a", "colums": {}}, "unknown key 'colums' (did you mean 'columns'?)"),
        ({"file_name": "a", "formatting": "sharegpt4"}, "unknown formatting 'sharegpt4' (did you mean 'sharegpt'?)"),
        ({"file_name": "a", "columns": ["q"]}, "columns should be an object, not list"),
        ({"file_name": "a", "columns": {"prompt": 1}}, "prompt should be text, not int"),
        ({"file_name": "a", "num_samples": 0}, "num_samples should be a number of rows, not 0"),
        ({"file_name": ["a"]}, "file_name should be text, not list"),
        ({"script_url": "x"}, "has script_url, and neither file_name, hf_hub_url nor ms_hub_url"),
        ({"hf_hub_url": "x", "folder": "python"}, "takes one folder of a hub data set"),
        ({"formatting": "alpaca"}, "has no place, and neither"),
        ("a.json", "should be an object, not str"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(tmp_path: Path, entry: Any, said: str) -> None:
    folder(tmp_path, mine=entry, other={"file_name": "b.json"})
    with pytest.raises(DataError) as caught:
        read(tmp_path, "mine")
    assert caught.value.message.startswith(f"{tmp_path / 'dataset_info.json'}: mine: ")
    assert said in caught.value.message and caught.value.fix


def test_an_unknown_name_and_none(tmp_path: Path) -> None:
    folder(tmp_path, alpaca_en={"file_name": "a.json"}, identity={"file_name": "b.json"})
    with pytest.raises(DataError, match=r"no data set is named 'alpaca_e' \(did you mean 'alpaca_en'\?\)"):
        read(tmp_path, "alpaca_e")
    with pytest.raises(DataError, match="there are alpaca_en, identity") as caught:
        read(tmp_path, "")
    assert caught.value.fix == "name one with data.subset=NAME"
    with pytest.raises(DataError, match=r"a\.json: no such file"):
        read(tmp_path, "alpaca_en")


def test_a_table_that_is_damaged_or_of_another_tool(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", alpaca_rows(3))
    folder(tmp_path, mine={"file_name": "train.jsonl"})
    assert read(tmp_path, "").format_why.startswith("3 of the first 3 rows"), "a folder with its splits stays one"
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(saved)
    config = DataConfig(path=str(saved), split="data")
    for block in (config, DataConfig(path=str(saved)), DataConfig(path=str(saved), subset="mine")):
        assert resolve_name(block) == (block, ""), "datasets' own file of that name is another thing"
    assert load(config.model_copy(update={"validation": "none"}), None).format.name == "text"
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_info\.json: invalid JSON"):
        read(tmp_path, "mine")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "form", "rows"),
    [
        ("identity", "alpaca", 91),
        ("alpaca_en_demo", "alpaca", 999),
        ("alpaca_zh_demo", "alpaca", 1000),
        ("c4_demo", "text", 300),
        ("wiki_demo", "text", 1),  # 30 lines without an empty one: one document
    ],
)
def test_real_data_sets(shared: Path, name: str, form: str, rows: int) -> None:
    data = read(shared / "llamafactory_demos", name, on_bad_row="skip")
    assert data.format.name == form and data.train.read == rows == len(data.examples) + data.train.refused
    assert len(data.examples) > 0.99 * rows, data.refusals[:3]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "learn"), [("dpo_en_demo", "chosen"), ("dpo_zh_demo", "chosen"), ("kto_en_demo", "good")]
)
def test_real_judgements(shared: Path, name: str, learn: str) -> None:
    path = shared / "llamafactory_demos"
    with pytest.raises(InputError, match=f"data.format.learn={learn}"):
        read(path, name)
    config, _ = resolve_name(DataConfig(path=str(path), subset=name))
    assert config.format is not None
    data = read(path, name, format=config.format.model_copy(update={"learn": learn}), on_bad_row="skip")
    assert data.train.read == 300 == len(data.examples) + data.train.refused
    reasons = {refusal.reason for refusal in data.refusals if "judged bad" not in refusal.reason}
    assert len(data.examples) >= 145 and len(reasons) <= 2, reasons


@pytest.mark.shared
@pytest.mark.parametrize(("name", "offered", "calls", "refused"), [("en", 191, 211, 0), ("zh", 198, 216, 2)])
def test_real_tools(shared: Path, name: str, offered: int, calls: int, refused: int) -> None:
    data = read(shared / "llamafactory_demos", f"glaive_toolcall_{name}_demo", on_bad_row="skip")
    examples = [*data.examples, *data.validation_examples]
    assert len(examples) == 300 - refused and sum(bool(example.tools) for example in examples) == offered
    turns = [message for example in examples for message in example.messages]
    assert sum(bool(turn.tool_calls) for turn in turns) == calls == sum(turn.role == "tool" for turn in turns)
    # In those the assistant tells of a call in words, and an observation follows.
    assert [r.reason for r in data.refusals] == ["turn 3: a tool result without a call before it"] * refused


@pytest.mark.shared
def test_real_images_are_refused(shared: Path) -> None:
    with pytest.raises(DataError, match="mllm_demo: has images"):
        read(shared / "llamafactory_demos", "mllm_demo")


@pytest.mark.shared
def test_every_entry_of_the_real_table_is_found_or_refused_by_name(shared: Path) -> None:
    path = shared / "llamafactory_demos"
    refused = {}
    for name in json.loads((path / "dataset_info.json").read_text()):
        try:
            resolve_name(DataConfig(path=str(path), subset=name))
        except DataError as error:
            refused[name] = error.message.partition(f"{name}: ")[2]
    assert all(reason.startswith(("has ", "takes one folder", "columns names no")) for reason in refused.values()), (
        refused
    )
    assert {"mllm_demo", "starcoder_python", "nectar_rm"} <= refused.keys() and len(refused) < 20
