"""One way to evaluate a model on held-out rows; prints what it cost and found as a line of JSON.

    python -m benchmarks.evaluation.arm WAY MODEL ROWS OVERRIDE...     # WAY: luthier, transformers or harness

All ways get the same model and the same tokens, and count what their evaluation alone takes: processor seconds, calls of
the model, and the tokens of these calls with padding.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import torch
import torch.nn.functional as F

from luthier.core.events import Progress
from luthier.evaluation.records.context import EvalContext, labelled, split_answer
from luthier.evaluation.scores import measure
from luthier.pipeline.measure import subject_of
from luthier.pipeline.prepare import load_base, on_this_machine, prepare_data, tokenize
from luthier.recipe.config import RunConfig
from luthier.rendering.row import Row

BATCH = 16
Found = dict[str, list[Any]]


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def opened(model: str, rows: str, overrides: list[str]) -> EvalContext:
    config = RunConfig.load(None, [f"model={model}", f"data={rows}", "task=chat", "data.validation=none", *overrides])
    config = on_this_machine(config)
    tokens = tokenize(config, prepare_data(config, Progress()), Progress())
    tokens.data.hold_out_all()
    context = subject_of(load_base(config, tokens))
    assert context is not None
    return context


def luthier(context: EvalContext) -> Found:
    records = measure(context)
    found = {key: [each[key] for each in records if key in each] for key in ("said", "chosen")}
    return {**found, "losses": [each["loss_sum"] for each in records]}


def pairs(context: EvalContext) -> list[tuple[str, list[int], list[int]]]:
    """(text of the answer, tokens of the prompt, tokens of the answer): each row with each label, else with its own."""
    found = []
    by_label = {each.answer: split_answer(row)[1] for each, row in zip(context.examples, context.rows, strict=True)}
    for each, row in zip(context.examples, context.rows, strict=True):
        prompt, own = split_answer(row)
        found += (
            [(n, prompt, by_label[n]) for n in context.labels] if labelled(context) else [(each.answer, prompt, own)]
        )
    return found


def chosen_of(context: EvalContext, sums: list[float]) -> Found:
    """What `luthier` returns of them, from the losses of all pairs."""
    if not labelled(context):
        return {"losses": sums, "chosen": []}
    count, names = len(context.labels), list(context.labels)
    each = [sums[at : at + count] for at in range(0, len(sums), count)]
    own = [names.index(str(example.label)) for example in context.examples]
    chosen = [names[row.index(min(row))] for row in each]
    return {"losses": [row[at] for row, at in zip(each, own, strict=True)], "chosen": chosen}


def longest(context: EvalContext) -> int:
    answers = max(len(row.ids) - len(split_answer(row)[0]) for row in context.rows)
    return min(context.settings.max_new_tokens, answers + 2)


def transformers(context: EvalContext) -> Found:
    """Batches of rows of like length, as a careful user writes them; the loss is that of the row's own label."""
    model: Any = context.model.eval()
    asked = pairs(context)
    sums = [0.0] * len(asked)
    order = sorted(range(len(asked)), key=lambda at: len(asked[at][1]) + len(asked[at][2]))
    said: list[str] = [""] * len(context.rows)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            rows = [Row(p + a, [-100] * len(p) + a, "") for _, p, a in (asked[at] for at in numbers)]
            batch = context.batch(rows)
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch).logits[:, :-1]
            each = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none").sum(1).tolist()
            for at, value in zip(numbers, each, strict=True):
                sums[at] = value
        prompts = [split_answer(row)[0] for row in context.rows]
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            width = max(len(prompts[at]) for at in numbers)
            ids = torch.tensor([[context.pad] * (width - len(prompts[at])) + prompts[at] for at in numbers])
            mask = torch.tensor([[0] * (width - len(prompts[at])) + [1] * len(prompts[at]) for at in numbers])
            options = {"max_new_tokens": longest(context), "do_sample": False, "pad_token_id": context.pad}
            options["eos_token_id"] = sorted(context.template.end_ids)
            made = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
            for at, text in zip(
                numbers, context.template.tokenizer.batch_decode(made, skip_special_tokens=True), strict=True
            ):
                said[at] = text
    return {**chosen_of(context, sums), "said": said}


def harness(context: EvalContext) -> Found:
    """lm-evaluation-harness: requests for the likelihood of each pair, and for an answer to each prompt."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer: Any = context.template.tokenizer
    wrapped: Any = HFLM(pretrained=context.model, tokenizer=tokenizer, batch_size=BATCH, add_bos_token=False)
    texts = [(tokenizer.decode(prompt), tokenizer.decode(answer)) for _, prompt, answer in pairs(context)]
    asked = [Instance("loglikelihood", {}, text, number) for number, text in enumerate(texts)]
    sums = [-value for value, _ in wrapped.loglikelihood(asked, disable_tqdm=True)]
    ends = [tokenizer.decode([each]) for each in context.template.end_ids]
    until = {"until": ends, "max_gen_toks": longest(context), "do_sample": False}
    prompts = [tokenizer.decode(split_answer(row)[0]) for row in context.rows]
    asked = [Instance("generate_until", {}, (prompt, until), number) for number, prompt in enumerate(prompts)]
    return {**chosen_of(context, sums), "said": wrapped.generate_until(asked, disable_tqdm=True)}


def main() -> None:
    way, model, rows, *overrides = sys.argv[1:]
    torch.set_num_threads(1)
    context = opened(model, rows, overrides)
    counts = {"passes": 0, "tokens": 0}

    def count(module: Any, arguments: Any, options: Any) -> None:
        counts["passes"] += 1
        counts["tokens"] += (options["input_ids"] if "input_ids" in options else arguments[0]).numel()

    context.model.register_forward_pre_hook(count, with_kwargs=True)
    began = processor_seconds()
    found = {"luthier": luthier, "transformers": transformers, "harness": harness}[way](context)
    print(json.dumps({"seconds": processor_seconds() - began, **counts, **found}))


if __name__ == "__main__":
    main()
