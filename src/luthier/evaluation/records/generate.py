"""Greedy answers to the held-out prompts, each prompt answered once, for all evaluations that read answers.

Rows with the same prompt are one question with several references: E2E NLG has up to a dozen texts for one meaning.
The answer is in the record of the first of them, {"said", "answer", "references"}; the others have none.
"""

from collections.abc import Sequence

from luthier.evaluation.records.context import EvalContext, Record, by_length
from luthier.evaluation.records.words import words
from luthier.rendering.chat_template import IGNORED
from luthier.rendering.row import Row

MOST_LABELS = 500
"""With more different labels than this, they are free text, not classes."""
SHORT = 5
"""Words (Chinese: characters) that nine of ten references must not exceed for answers to count as short and closed."""


def asks(context: EvalContext) -> bool:
    """Whether answers are generated for these rows."""
    return context.task.name == "chat" and context.settings.generate > 0


def labelled(context: EvalContext) -> bool:
    """Whether every row has one of a set of labels."""
    return 1 < len(context.labels) <= MOST_LABELS and all(example.label is not None for example in context.examples)


def open_answers(context: EvalContext) -> bool:
    """Whether references are texts of more than a few words, so that overlap with a right answer means something."""
    if labelled(context):
        return False
    lengths = sorted(len(words(example.answer)) for example in context.examples[:1000])
    return bool(lengths) and lengths[int(0.9 * (len(lengths) - 1))] > SHORT


def answered(context: EvalContext) -> list[Record]:
    """A record per example, with the model's answer if one was generated; this happens at most once."""
    if context.answers is not None:
        return context.answers
    # A dialogue may have a row per answer (see Template.rows); only its last answer is generated.
    last = dict(zip(context.owner, context.rows, strict=True))
    starts = {number: answer_start(row) for number, row in last.items()}
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(last):
        groups.setdefault(tuple(last[number].ids[: starts[number]]), []).append(number)
    asked = list(groups.items())[: context.settings.generate]
    longest = max(len(last[number].ids) - starts[number] for _, numbers in asked for number in numbers)
    most = min(context.settings.max_new_tokens, longest + 2)
    answers = generate(context, [list(prompt) for prompt, _ in asked], most)
    records: list[Record] = [{} for _ in context.examples]
    for (_, numbers), (text, whole) in zip(asked, answers, strict=True):
        references = []
        for number in numbers:
            # What was learned, not the message: a template may add to the model's answer (Qwen3's think block).
            learned = [label for label in last[number].labels[starts[number] :] if label != IGNORED]
            references.append(str(context.template.tokenizer.decode(learned, skip_special_tokens=True)))
        record = records[numbers[0]]
        record |= {"answer": references[0], "said": text}
        if len(set(references)) > 1:
            record["references"] = list(dict.fromkeys(references))
        if not whole:
            record["cut"] = True
    context.counts["answers"] = len(asked)
    context.counts["cut answers"] = sum(not whole for _, whole in answers)
    context.answers = records
    return records


def references_of(record: Record) -> list[str]:
    """All texts that would be right."""
    return list(record.get("references") or [record["answer"]])


def answer_start(row: Row) -> int:
    """Position of the first token of the last learned stretch: everything before it is the prompt."""
    place = max(i for i, label in enumerate(row.labels) if label != IGNORED)
    while place > 0 and row.labels[place - 1] != IGNORED:
        place -= 1
    return place


def generate(context: EvalContext, prompts: Sequence[list[int]], most: int) -> list[tuple[str, bool]]:
    """At most `most` tokens after each prompt (token ids), as text without the end token, and whether it ended."""
    import torch
    from transformers import GenerationConfig

    ends, pad = sorted(context.template.end_ids), context.pad
    options = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=ends, pad_token_id=pad)
    answers = [("", True)] * len(prompts)
    context.model.eval()
    done = 0
    with torch.inference_mode():
        for numbers in by_length([len(prompt) + most for prompt in prompts], context.settings):
            width = max(len(prompts[i]) for i in numbers)
            # Padded on the left, so that all answers begin at the same position.
            rows = [[pad] * (width - len(prompts[i])) + prompts[i] for i in numbers]
            masks = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in numbers]
            ids, mask = (torch.tensor(each, device=context.device) for each in (rows, masks))
            made = context.model.generate(input_ids=ids, attention_mask=mask, generation_config=options)  # type: ignore[operator]
            for i, tokens in zip(numbers, made[:, width:].tolist(), strict=True):
                text = str(context.template.tokenizer.decode(tokens, skip_special_tokens=True))
                answers[i] = text, not context.template.end_ids.isdisjoint(tokens)
            done += len(numbers)
            context.progress.measured("answers", done, len(prompts))
    return answers
