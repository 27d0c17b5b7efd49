"""Data with tools from the command line to the report: trained and asked with its tools, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.pipeline.check import check
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.rendering.example import Message
from luthier.rendering.tools import read_tools
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.requests import SamplingParams
from tests.conftest import ROOT, build_tokenizer, luthier, model_config, write_jsonl
from tests.rendering.test_template_families import IM, TAGS

TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}}
SMALL = ["train.max_steps=2", "train.batch_size=2", "train.max_length=8192", "train.log_every=1"]


def adding(count: int) -> list[dict[str, Any]]:
    """Half of the rows end with the call, as an answer to learn."""
    rows = []
    for i in range(count):
        call = {"type": "function", "function": {"name": "add", "arguments": json.dumps({"a": i, "b": 1})}}
        turns = [
            {"role": "user", "content": f"What is {i} and 1?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": str(i + 1)},
            {"role": "assistant", "content": f"It is {i + 1}."},
        ]
        rows.append({"messages": turns[: 2 if i % 2 else 4], "tools": [TOOL]})
    return rows


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model whose chat template knows tools."""
    import torch
    from tokenizers import AddedToken
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("qwen")
    config = model_config("qwen2")
    config.max_position_embeddings = 8192
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    template = (ROOT / "tests" / "rendering" / "templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(template=template, special=IM)
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in TAGS])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_base_without_tools_in_its_template_refuses_them_and_names_the_row(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "tools.jsonl", adding(10))
    done = luthier("train", "--data", file, cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "runs").is_dir()
    said = " ".join(done.stderr.split())
    assert "tools.jsonl: line" in said
    assert "the chat template does not support tools: it renders a dialogue with tools as if there were none" in said
    assert "use a model whose chat template takes tools, or give the tokenizer such a chat_template" in said


def test_rows_with_tools_are_trained_on_and_asked_with_their_tools(
    tmp_path: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import luthier.evaluation.records.context as asking

    prompts: list[str] = []
    ask = asking.generate

    def listen(context: Any, ids: Any, most: int) -> Any:
        prompts.extend(context.template.tokenizer.decode(each) for each in ids)
        return ask(context, ids, most)

    monkeypatch.setattr(asking, "generate", listen)
    file = write_jsonl(tmp_path / "tools.jsonl", adding(20))
    settings = [f"model={qwen}", f"data={file}", f"run={tmp_path / 'run'}", "evaluate.max_new_tokens=4", *SMALL]
    result = train(RunConfig.load(None, settings))
    assert result["steps"] == 2 and "exact_match" in result["tuned"]
    assert prompts and all('"name": "add"' in prompt and prompt.endswith("assistant\n") for prompt in prompts)
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    calls = [record for record in records if record["answer"].startswith("[{")]
    assert calls and all(json.loads(record["answer"])[0]["function"]["name"] == "add" for record in calls)
    assert all("<tool_call>" in record["tuned"]["answer"] for record in calls), (
        "what was learned, as the template has it"
    )
    engine = Engine.open([str(tmp_path / "run")])
    seen = []
    template = engine.models["run"].template
    encode = template.encode_text
    monkeypatch.setattr(template, "encode_text", lambda text: seen.append(text) or encode(text))
    assert list(
        engine.stream(
            [Message("user", "What is 1 and 1?")],
            tools=read_tools([TOOL], "tools"),
            sampling=SamplingParams(max_tokens=2),
        )
    )
    assert '"description": "Adds."' in seen[0], "use shows the tools as training did"
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["train"]["refused"] == 0 and data["train"]["cut"] == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_check_shows_the_mask_of_a_call(tmp_path: Path, qwen: Path) -> None:
    rows = adding(12)
    rows[5]["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{"
    file = write_jsonl(tmp_path / "tools.jsonl", rows)
    settings = [f"model={qwen}", f"data={file}", "data.on_bad_row=skip", "train.max_length=8192"]
    found = check(RunConfig.load(None, settings), tmp_path / "check")
    assert not found["stops"]
    (refusal,) = found["refusals"]
    assert refusal["where"].endswith("line 6") and "arguments of tool call 1 of turn 2 is not JSON" in refusal["reason"]
    learned = ["".join(text for text, kind in mask["pieces"] if kind in ("learned", "end")) for mask in found["masks"]]
    assert all(text.count("<tool_call>") == 1 and "Adds." not in text for text in learned)


@pytest.mark.shared
def test_real_tools_are_trained_on(shared: Path, tmp_path: Path, qwen: Path) -> None:
    demos = shared / "llamafactory_demos"
    rows = [f"data={demos}", "data.subset=glaive_toolcall_en_demo"]
    settings = [
        "data.limit=12",
        "data.validation_limit=2",
        "evaluate.max_new_tokens=4",
    ]
    result = train(RunConfig.load(None, [f"model={qwen}", *rows, *settings, f"run={tmp_path / 'run'}", *SMALL]))
    assert result["steps"] == 2 and result["train_rows"] == 12
    with pytest.raises(
        DataError, match=r"glaive_toolcall_en_demo.json: row \d+: the chat template does not support tool"
    ):
        train(RunConfig.load(None, [*rows, f"run={tmp_path / 'refused'}"]))
