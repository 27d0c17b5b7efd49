"""Greedy answers to the held-out prompts, each prompt asked once, for all evaluations that read answers.

Rows with the same prompt are one question with several references: E2E NLG has up to a dozen texts for one meaning.
The answer stands in the record of the first of them, {"said", "answer", "references"}; the others have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.events import Progress
from luthier.evaluation.records.context import EvalContext, Record, by_length
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.evaluation.records.words import words
from luthier.rendering.chat_template import IGNORED, Template

if TYPE_CHECKING:
    from torch import nn

    from luthier.rendering.row import Row

MOST_LABELS = 500
"""More different labels than this are taken for answers in free words, not for classes."""
SHORT = 5
"""Words (Chinese: characters) up to which nine of ten references must stay for answers to count as short and closed."""


def asks(subject: EvalContext) -> bool:
    """Are answers to be generated for these rows?"""
    return subject.task.name == "chat" and subject.settings.generate > 0


def labelled(subject: EvalContext) -> bool:
    """Has every row one of a set of labels?"""
    return 1 < len(subject.labels) <= MOST_LABELS and all(example.label is not None for example in subject.examples)


def open_answers(subject: EvalContext) -> bool:
    """Are the references texts of more than a few words, so that a share of a right answer means something?"""
    if labelled(subject):
        return False
    lengths = sorted(len(words(example.answer)) for example in subject.examples[:1000])
    return bool(lengths) and lengths[int(0.9 * (len(lengths) - 1))] > SHORT


def answered(subject: EvalContext) -> list[Record]:
    """A record per example, with the model's answer where it was asked; the model is asked at most once."""
    if subject.answers is not None:
        return subject.answers
    # A dialogue may have a row per answer (see Template.rows); it is asked for its last one.
    last = dict(zip(subject.owner, subject.rows, strict=True))
    starts = {number: answer_start(row) for number, row in last.items()}
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(last):
        groups.setdefault(tuple(last[number].ids[: starts[number]]), []).append(number)
    asked = list(groups.items())[: subject.settings.generate]
    longest = max(len(last[number].ids) - starts[number] for _, numbers in asked for number in numbers)
    said = generate(
        subject.model,
        subject.template,
        [list(prompt) for prompt, _ in asked],
        max_new_tokens=min(subject.settings.max_new_tokens, longest + 2),
        settings=subject.settings,
        progress=subject.progress,
    )
    records: list[Record] = [{} for _ in subject.examples]
    for (_, numbers), (text, whole) in zip(asked, said, strict=True):
        references = []
        for number in numbers:
            # What was learned, not the message: a template may put more into the model's mouth (Qwen3's think block).
            learned = [label for label in last[number].labels[starts[number] :] if label != IGNORED]
            references.append(str(subject.template.tokenizer.decode(learned, skip_special_tokens=True)))
        record: Record = {"answer": references[0], "said": text}
        if len(set(references)) > 1:
            record["references"] = list(dict.fromkeys(references))
        if not whole:
            record["cut"] = True
        records[numbers[0]] = record
    subject.counts["answers"] = len(asked)
    subject.counts["cut answers"] = sum(not whole for _, whole in said)
    subject.answers = records
    return records


def references_of(record: Record) -> list[str]:
    """All texts that would be right."""
    return list(record.get("references") or [record["answer"]])


def answer_start(row: Row) -> int:
    """Place of the first token of the last learned stretch: everything before it is the prompt."""
    place = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    while place > 0 and row.labels[place - 1] != IGNORED:
        place -= 1
    return place


def generate(
    model: nn.Module,
    template: Template,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    settings: EvaluateConfig,
    progress: Progress,
) -> list[tuple[str, bool]]:
    """The model's answer to each prompt (token ids) without the end token, and whether it came to its end."""
    import torch
    from transformers import GenerationConfig

    pad = template.tokenizer.pad_token_id or 0
    ends = sorted(template.end_ids)
    options = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad)
    where = next(model.parameters()).device
    answers = [("", True)] * len(prompts)
    model.eval()
    done = 0
    with torch.inference_mode():
        for numbers in by_length([len(prompt) + max_new_tokens for prompt in prompts], settings):
            width = max(len(prompts[i]) for i in numbers)
            # Padded on the left, so that all answers begin at the same place.
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in numbers], device=where)
            mask = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in numbers], device=where
            )
            made = model.generate(input_ids=ids, attention_mask=mask, generation_config=options)  # type: ignore[operator]
            for i, tokens in zip(numbers, made[:, width:].tolist(), strict=True):
                text = str(template.tokenizer.decode(tokens, skip_special_tokens=True))
                answers[i] = text, not template.end_ids.isdisjoint(tokens)
            done += len(numbers)
            progress.measured("answers", done, len(prompts))
    return answers
