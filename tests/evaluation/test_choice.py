"""Reading a prompt once and its labels behind it gives the sums of reading every pair, for each kind of model and tuner."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from luthier.evaluation.metrics import labels as choice
from luthier.evaluation.metrics.labels import bytes_of_shared, most_likely, sums_of_rows, sums_of_shared
from luthier.evaluation.records.context import EvalContext, split_answer
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.methods.base import METHODS
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, Message
from luthier.rendering.row import IGNORED, Row
from luthier.tasks.base import TASKS
from tests.conftest import TEXT, build_tokenizer, model_config

LABELS = ["good", "bad", "a kettle that leaks", "very good film", "自然"]


def context_of(model: Any, count: int = 6, labels: list[str] = LABELS) -> EvalContext:
    template = Template(build_tokenizer())
    task = TASKS.parse("chat")
    examples = [
        Example(
            messages=(
                Message("user", TEXT[7 * i : 13 * i + 9]),
                Message("assistant", labels[i % len(labels)], learn=True),
            ),
            label=labels[i % len(labels)],
        )
        for i in range(count)
    ]
    rows = [task.encode(example, template, 256, "stop")[0] for example in examples]
    settings = EvaluateConfig(batch_size=4)
    return EvalContext(model, template, task, examples, rows, list(range(count)), 256, settings, labels=sorted(labels))


def model_of(kind: str, method: str | dict[str, Any] | None = None) -> Any:
    torch.manual_seed(2)
    model = t.AutoModelForCausalLM.from_config(model_config(kind)).eval()
    if method is None:
        return model
    tuned = METHODS.parse(method).attach(model, steps=1, classify=False).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return tuned


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
def test_the_shared_prompt_gives_the_sums_of_whole_rows(kind: str) -> None:
    context = context_of(model_of(kind))
    prompts = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22, 23, 24, 25, 26, 27]]
    tails = [[[3, 1], [4, 5, 6, 1], [9]], [[3, 1], [4, 5, 6, 1], [9]], [[30, 1], [31, 32, 1], [33, 34]]]
    with torch.inference_mode():
        shared, plain = (way(context, prompts, tails) for way in (sums_of_shared, sums_of_rows))
    assert torch.tensor(shared).sub(torch.tensor(plain)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        "prefix",
        "prompt",
        "p_tuning",
        "ia3",
        "parallel_adapter",
        "unipelt",
        {"name": "lora", "targets": ["q_proj", "lm_head"]},
    ],
    ids=lambda m: m if isinstance(m, str) else "lora on the head",
)
def test_whatever_the_tuner_the_choice_is_that_of_whole_rows(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(model_of("llama", method))
    with torch.inference_mode():
        shares = bytes_of_shared(context, [[5, 6, 7], [8, 9, 10, 11]], [[[3, 1], [4, 5, 6, 1]]] * 2) > 0
    assert shares == (method in ("lora", "prefix", "ia3", "parallel_adapter", "unipelt")), "PEFT's prompts cannot"
    chosen = most_likely(context)
    monkeypatch.setattr(choice, "bytes_of_shared", lambda *_: 0)
    assert chosen == most_likely(context)


def test_a_cache_that_slides_is_found_out_and_goes_the_plain_way() -> None:
    context = context_of(model_of("mistral"))  # its window is 8 tokens
    prompts = [list(range(5, 45)), list(range(5, 12))]
    tails = [[[3, 4, 1], [7, 8, 9, 1]]] * 2
    with torch.inference_mode():
        assert bytes_of_shared(context, prompts, tails) == 0


def test_few_bytes_for_the_cache_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(model_of("llama"), 8)
    chosen = most_likely(context)
    monkeypatch.setattr(choice, "CACHE_BYTES", 1)
    assert most_likely(context) == chosen


def test_the_tokens_of_the_labels_are_made_once_unless_a_row_has_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    encode = choice._tail
    monkeypatch.setattr(choice, "_tail", lambda *asked: made.append(asked[1]) or encode(*asked))
    context = context_of(model_of("llama"))
    whole = most_likely(context)
    assert len(made) == len(LABELS)
    row = context.rows[2]
    end = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    context.rows = [*context.rows[:2], Row(row.ids[:end], row.labels[:end], row.where, cut=1), *context.rows[3:]]
    assert most_likely(context) == whole and 2 in made[len(LABELS) :], "a row whose end was cut off"


@pytest.mark.shared
def test_150_labels_are_affordable(shared: Path) -> None:
    import json

    rows = [json.loads(line) for line in (shared / "clinc150" / "test.jsonl").read_text().splitlines()]
    labels = sorted({row["label_text"] for row in rows})
    assert len(labels) == 150
    context = context_of(model_of("llama"), 40, labels)
    begun = time.perf_counter()
    chosen = most_likely(context)
    took = time.perf_counter() - begun
    prompts = [split_answer(row)[0] for row in context.rows]
    tails = [[choice._tail(context, 0, label) for label in labels]] * 3
    begun = time.perf_counter()
    with torch.inference_mode():
        plain = sums_of_rows(context, prompts[:3], tails)
    assert [labels[sums.index(min(sums))] for sums in plain] == chosen[:3]
    assert took / 40 < (time.perf_counter() - begun) / 3, "the shared way should be cheaper for each prompt"
