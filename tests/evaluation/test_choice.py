"""Reading a prompt once gives the losses of whole rows and transformers' own answers, for each kind of model and tuner."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from luthier.evaluation.metrics.labels import most_likely, sums_of_rows
from luthier.evaluation.records import context as records
from luthier.evaluation.records import reading
from luthier.evaluation.records.context import EvalContext, answered, generated, losses_of, read_once, tails_of_labels
from luthier.evaluation.records.reading import PromptQuery, Tree, read
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.methods.base import METHODS
from luthier.models import load
from luthier.models.settings import ModelConfig
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
    settings = EvaluateConfig(batch_size=4, max_new_tokens=8)
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


def questions() -> list[PromptQuery]:
    """Prompts that begin alike, with an earlier answer in one, and continuations that branch."""
    front = [7, 8, 9, 10]
    prompts = [[*front, 5, 6, 7, 8, 9], [*front, 11, 12], [*front, 20, 21, 22, 23, 24, 25, 26, 27]]
    tails = [[[3, 1], [4, 5, 6, 1], [9], [4, 5, 30, 2], [4, 1]], [[3, 4, 5, 6, 7, 1]], [[30, 1], [30, 31, 1], [33, 34]]]
    labels = [[IGNORED] * len(prompt) for prompt in prompts]
    labels[2][5:7] = prompts[2][5:7]
    parts = zip(prompts, labels, tails, strict=True)
    return [PromptQuery(prompt, label, tail, answers=True) for prompt, label, tail in parts]


def plain(context: EvalContext, question: PromptQuery) -> list[float]:
    """The loss of each whole row."""
    rows = [Row(question.prompt + tail, question.labels + tail, "") for tail in question.continuations]
    return [loss for loss, _ in losses_of(context, rows)]


def unread(context: EvalContext) -> EvalContext:
    """The same rows and model, for which every row is a row."""
    context.reads_once, context.read, context.answers = False, None, None
    return context


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "gpt2", "mistral"])
@pytest.mark.parametrize("tokens", [1024, 1])
def test_one_pass_gives_the_losses_and_answers_of_whole_rows(
    kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reading.PASS_TOKENS, "cpu", tokens)
    model = model_of(kind)  # Mistral's window is 8 tokens
    context = context_of(model)
    with torch.inference_mode():
        found = read(model, questions(), (1,), 7)
        for question, one in zip(questions(), found, strict=True):
            whole = torch.tensor(plain(context, question))
            assert (torch.tensor(one.continuations) + one.loss - whole).abs().max() < 1e-4
            greedy = t.GenerationConfig(do_sample=False, max_new_tokens=7, eos_token_id=1, pad_token_id=0)
            made = model.generate(torch.tensor([question.prompt]), generation_config=greedy)
            assert one.answer == made[0, len(question.prompt) :].tolist()


def test_a_token_of_a_tree_sees_what_leads_to_it_and_nothing_else() -> None:
    tree = Tree([[4, 5, 1], [4, 6, 7, 1], [8]])
    assert tree.tokens == [4, 5, 6, 7] and tree.parents == [0, 0, 1, 1, 3] and tree.branches
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4], [0]]
    assert tree.sees.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert not Tree([[4, 5, 6]]).branches


def test_an_answer_that_is_in_the_tree_costs_no_step_and_is_the_generated_one() -> None:
    model = model_of("llama")
    context = context_of(model)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    (first,) = questions()[:1]
    with torch.inference_mode():
        (answer,) = generated(context, [first.prompt], 6)
        read(model, [first], (), 1)  # the head is tried once
        del passes[:]
        for kept in (6, 3, 2):  # the whole answer, or the beginning of it, then another token
            wrong = (answer[kept - 1] + 1) % 50 if kept < 6 else answer[-1]
            first.continuations = [[2, 3], [*answer[: kept - 1], wrong], [9, 9, 9]]
            (found,) = read(model, [first], context.template.end_ids, 6)
            assert found.answer == answer
            # The prompt but for its last token may be read first; behind the first wrong token come the others.
            assert len(passes) == 2 + (6 - kept)
            del passes[:]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_losses_labels_and_answers_of_a_context_are_those_of_rows(kind: str) -> None:
    context = context_of(model_of(kind), 9)
    context.settings = EvaluateConfig(batch_size=4, generate=7, max_new_tokens=5)
    losses, chosen, answers = context.losses(), most_likely(context), answered(context)
    assert context.read is not None
    unread(context)
    assert chosen == most_likely(context) and answers == answered(context) and sum("said" in a for a in answers) == 7
    for one, other in zip(losses, context.losses(), strict=True):
        assert one["targets"] == other["targets"] and one["loss_sum"] == pytest.approx(other["loss_sum"], rel=1e-5)


def test_rows_with_one_prompt_are_read_together_and_long_ones_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(model_of("llama"), 8)
    rng = random.Random(1)
    prompt = context.rows[3].ids[:12]
    answers = [[rng.randrange(5, 50) for _ in range(9)] for _ in range(7)]
    answers.append(answers[0])
    context.labels = []
    context.rows = [Row(prompt + each, [IGNORED] * 12 + each, "") for each in answers]
    for most, expected in ((records.MOST_BEHIND, 1), (20, 3)):
        monkeypatch.setattr(records, "MOST_BEHIND", most)
        asked, places = records.questions_of(context, {tuple(prompt)})
        assert len(asked) == expected and [each.answers for each in asked] == [True, *[False] * (expected - 1)]
        assert [asked[place].continuations[reference] for place, reference, _ in places] == answers
        context.read = None
        losses = context.losses()
        assert [one["loss_sum"] for one in losses] == pytest.approx(
            [one["loss_sum"] for one in unread(context).losses()], rel=1e-5
        )
        context.reads_once = True


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
def test_whatever_the_tuner_all_is_as_in_whole_rows(method: Any) -> None:
    context = context_of(model_of("llama", method))
    losses, chosen, answers = context.losses(), most_likely(context), answered(context)
    assert (read_once(context) is not None) == (method in ("lora", "prefix", "ia3", "parallel_adapter", "unipelt")), (
        method
    )
    unread(context)
    assert chosen == most_likely(context) and answers == answered(context)
    for one, other in zip(losses, context.losses(), strict=True):
        assert one["loss_sum"] == pytest.approx(other["loss_sum"], rel=1e-4)


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"quantize": "int8"}], ids=["bfloat16", "int8"])
def test_rounded_weights_are_read_once_and_a_wrong_mask_is_seen(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig.model_validate({"path": "builtin", "device": "cpu", **settings})
    source = load.locate(config)
    tokenizer = load.load_tokenizer(config, source)
    model = load.load_model(config, source, labels=None, tokenizer=tokenizer).eval()
    context = context_of(model)
    context.template = Template(tokenizer)
    context.rows = [context.task.encode(example, context.template, 256, "stop")[0] for example in context.examples]
    states: list[Any] = [module.state for module in model.modules() if hasattr(module, "state")]
    thresholds = [state.threshold for state in states]
    losses = context.losses()
    assert context.read is not None, "its losses are those of rows but for rounding"
    assert thresholds == [state.threshold for state in states]
    for one, other in zip(losses, unread(context).losses(), strict=True):
        assert one["loss_sum"] == pytest.approx(other["loss_sum"], rel=0.05)
    monkeypatch.setattr(Tree, "sees", property(lambda tree: torch.ones(2 * (len(tree.tokens),)).tril().bool()))
    context.reads_once = True
    assert read_once(context) is None


def test_few_bytes_for_the_cache_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(model_of("llama"), 8)
    chosen = most_likely(context)
    monkeypatch.setattr(records, "CACHE_BYTES", 1)
    context.read = None
    assert most_likely(context) == chosen


def test_the_tokens_of_the_labels_are_made_once_unless_a_row_has_others(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(model_of("llama"))
    whole = most_likely(context)
    made = []
    encode = Template.encode
    monkeypatch.setattr(Template, "encode", lambda self, *asked: made.append(asked) or encode(self, *asked))
    context.read = None
    assert most_likely(context) == whole and len(made) == len(LABELS)
    row = context.rows[2]
    end = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    context.rows = [*context.rows[:2], Row(row.ids[:end], row.labels[:end], row.where, cut=1), *context.rows[3:]]
    context.read = None
    assert most_likely(context) == whole and len(made) > 2 * len(LABELS), "a row whose end was cut off"
    assert context.losses()[2]["targets"] == sum(label != IGNORED for label in row.labels) - 1


@pytest.mark.shared
def test_150_labels_are_affordable(shared: Path) -> None:
    import json

    rows = [json.loads(line) for line in (shared / "clinc150" / "test.jsonl").read_text().splitlines()]
    labels = sorted({row["label_text"] for row in rows})
    assert len(labels) == 150
    context = context_of(model_of("llama"), 40, labels)
    context.settings = EvaluateConfig(generate=0)
    begun = time.process_time()
    chosen = most_likely(context)
    took = time.process_time() - begun
    few = context_of(context.model, 3, labels)
    few.labels = context.labels
    begun = time.process_time()
    sums = sums_of_rows(few)
    assert [context.labels[each.index(min(each))] for each in sums.values()] == chosen[:3]
    assert took / 40 < (time.process_time() - begun) / 3, "one pass should be cheaper for each prompt"
    assert len(next(iter(tails_of_labels(few).values()))) == 150
