"""What an evaluation is given: the model, the held-out rows and their settings, and the greedy answers to the prompts.

Each prompt is answered once, for all evaluations that read answers. Rows with the same prompt are one question with
several references; its answer is in the record of the first of them, {"said", "answer", "references"}.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from luthier.core.events import Progress
from luthier.core.ranks import here
from luthier.data import cache
from luthier.evaluation.records.reading import PromptQuery, PromptReading, passes, read
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example
from luthier.rendering.row import IGNORED, Row
from luthier.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

Record = dict[str, Any]
"""What was measured on one example: numbers, and the model's own words."""

MOST_LABELS = 500
"""With more different labels than this, they are free text, not classes."""
SHORT = 5
"""Words (Chinese: characters) that nine of ten references must not exceed for answers to count as short and closed."""
CACHE_BYTES = 2**31
"""Most bytes of KV cache for a batch of prompts with what follows them."""
MOST_BEHIND = 512
"""Tokens of references behind one prompt beyond which more of them are read by a question of their own."""
NEAR, NEAR_ROUNDED = 1e-4, 5e-3
"""Share of a row's loss within which two ways to compute it are the same; the second for weights of 16 or 8 bits.

On SmolLM2 in bfloat16 and int8 the loss of all tokens of a row differs by at most 0.0035 of it between two right ways,
and by 0.014 or more where a token sees what it must not.
"""
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
THAI = "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # with Lao, Burmese and Khmer: no spaces either
_WORD = re.compile(rf"[{HAN}{KANA}{THAI}]|[^\W_{HAN}{KANA}{THAI}]+")


def restored_records(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Records as they were before JSON, which stores NaN and infinity as null."""
    return [{key: math.nan if value is None else value for key, value in each.items()} for each in records]


@dataclass(slots=True)
class EvalContext:
    """A model and the held-out rows to evaluate it on."""

    model: "nn.Module"
    template: Template
    task: Task
    examples: Sequence[Example]
    rows: Sequence[Row]
    owner: Sequence[int]
    """For each row the number of its example: a long text has several rows."""
    max_length: int
    settings: EvaluateConfig = field(default_factory=EvaluateConfig)
    labels: Sequence[str] = ()
    """All labels of the data, including training rows, sorted."""
    progress: Progress = field(default_factory=Progress)
    answers: list[Record] | None = None
    """The generated answers, once there are any (see answered)."""
    read: "Read | None" = None
    """What was made of all prompts, once they are read (see read_once)."""
    reads_once: bool = True
    """Whether they can be read like that, as far as is known."""
    counts: dict[str, int] = field(default_factory=dict)
    """What failed or was cut, by name, for the report."""

    @property
    def device(self) -> Any:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def pad(self) -> int:
        """Token id for padding."""
        return self.template.tokenizer.pad_token_id or 0

    def recall(self, kind: str, decides: Mapping[str, Any]) -> Any:
        """What `keep` stored under `decides`; None if there is nothing, or `evaluate.cache` is off."""
        found = cache.find(cache.key(kind, decides)) if self.settings.cache else None
        return found[1]["value"] if found else None

    def keep(self, kind: str, decides: Mapping[str, Any], value: Any) -> None:
        """Keep a JSON value in the cache of this machine, under everything that decides what it is."""
        if self.settings.cache:
            name = cache.key(kind, decides)
            cache.forget(name)  # a judge's grades grow
            cache.keep(name, cache.begin(), {"value": value}, {})

    def by_length(self, lengths: Sequence[int], what: str = "", tokens: int | None = None) -> Iterator[list[int]]:
        """Places of similar length together, in batches of at most `batch_size` rows and `batch_tokens` padded tokens.

        Progress is reported in terms of `what`, if it is given. `tokens` takes the place of `batch_tokens`.
        """
        batches: list[list[int]] = [[]]
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            full = (len(batches[-1]) + 1) * lengths[place] > (tokens or self.settings.batch_tokens)
            if batches[-1] and (full or len(batches[-1]) == self.settings.batch_size):
                batches.append([])
            batches[-1].append(place)
        done = 0
        for batch in filter(None, batches):
            yield batch
            done += len(batch)
            if what:
                self.progress.measured(what, done, len(lengths))

    def batches(self, rows: Sequence[Row], what: str = "") -> "Iterator[tuple[list[int], dict[str, Tensor]]]":
        """(row numbers, batch on the model's device), rows of similar length together, as in `by_length`."""
        for numbers in self.by_length([len(row.ids) for row in rows], what):
            yield numbers, self.batch([rows[i] for i in numbers])

    def batch(self, rows: Sequence[Row]) -> "dict[str, Tensor]":
        """Rows as tensors on the model's device."""
        return {key: value.to(self.device) for key, value in self.task.collate(rows, self.pad).items()}

    def computed(
        self, work: str, items: Sequence[Any], lengths: Sequence[int], what: str, tokens: int | None = None, **more: Any
    ) -> list[Any]:
        """What the function `WORK[work]` returns for each item, in batches by length; each rank of the run takes some.

        The batches are those of one process, so the results are the same numbers. `more` goes to the function.
        """
        ranks = here()
        order = list(self.by_length(lengths, "", tokens))
        shares = [order[rank :: ranks.world] for rank in range(ranks.world)]
        parts = [(work, [[items[i] for i in batch] for batch in share], more) for share in shares]
        _, mine, _ = ranks.share("compute", parts)
        total, done = sum(map(len, shares[0])), 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            self.progress.measured(what, round(done * len(items) / max(1, total)), len(items))

        found = ranks.results(lambda: self.compute(work, mine, more, report))
        results: list[Any] = [None] * len(items)
        for place, batch in enumerate(order):
            for number, value in zip(batch, found[place % ranks.world][place // ranks.world], strict=True):
                results[number] = value
        return results

    def compute(
        self, work: str, batches: Sequence[list[Any]], more: Mapping[str, Any], report: Callable[[int], None]
    ) -> list[list[Any]]:
        """The results of one rank's batches."""
        import torch

        self.model.eval()
        made = []
        if here().several:
            from luthier.models.sharding import without_gradients
        with without_gradients(self.model) if here().several else torch.inference_mode():
            for batch in batches:
                made.append(WORK[work](self, batch, **more))
                report(len(batch))
        return made

    def losses(self) -> list[Record]:
        """For each example the task's own loss, summed over its targets, and their number."""
        records: list[Record] = [{"loss_sum": 0.0, "targets": 0} for _ in self.examples]
        read = read_once(self)
        found = read.losses if read else self.computed("losses", self.rows, lengths_of(self.rows), "held-out rows")
        for owner, (total, count) in zip(self.owner, found, strict=True):
            records[owner]["loss_sum"] += total
            records[owner]["targets"] += count
        return records

    def logits(self) -> "list[tuple[int, Tensor]]":
        """(number of its example, logits [labels] in float32) of each row, for models with a head for labels."""
        found = self.computed("logits", self.rows, lengths_of(self.rows), "held-out rows")
        return list(zip(self.owner, found, strict=True))


def lengths_of(rows: Sequence[Row]) -> list[int]:
    """The tokens of each row."""
    return [len(row.ids) for row in rows]


def losses_of(context: EvalContext, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """(task's loss, summed; targets) of each row of a batch."""
    found: list[tuple[float, int]] = []
    for first, stop in passes(lengths_of(rows), context.device.type):
        sums, targets = context.task.losses(context.model, context.batch(rows[first:stop]))
        found += zip(sums.tolist(), targets.tolist(), strict=True)
    return found


def logits_of(context: EvalContext, rows: Sequence[Row]) -> "list[Tensor]":
    """Logits [labels] of each row of a batch, in float32."""
    found: list[Tensor] = []
    for first, stop in passes(lengths_of(rows), context.device.type):
        batch = context.batch(rows[first:stop])
        logits = context.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        found += logits.float().cpu()
    return found


def words(text: str) -> list[str]:
    """Lower-case words of letters and digits; each character of a script without spaces is one, as in sacrebleu's `zh`.

    For text in ASCII they are those of rouge-score's default tokenizer, which keeps nothing but a-z and 0-9 of others.
    """
    return _WORD.findall(text.lower())


def bleu_splitter(references: Iterable[str]) -> str:
    """Sacrebleu's tokenizer for a whole set: `zh` for Chinese, `char` for Japanese, Thai and their kin, else `13a`."""
    text = "".join(references)
    letters = max(1, sum(character.isalpha() for character in text))
    if len(re.findall(f"[{KANA}{THAI}]", text)) / letters > 0.1:
        return "char"
    return "zh" if len(re.findall(f"[{HAN}]", text)) / letters > 0.3 else "13a"


def asks(context: EvalContext) -> bool:
    """Whether answers are generated for these rows."""
    return context.task.name == "chat" and context.settings.generate > 0


def labelled(context: EvalContext) -> bool:
    """Whether every row has one of a set of labels."""
    return 1 < len(context.labels) <= MOST_LABELS and all(example.label is not None for example in context.examples)


def open_answers(context: EvalContext) -> bool:
    """Whether answers are generated and references are longer than a few words, so that overlap means something."""
    if not asks(context) or labelled(context):
        return False
    lengths = sorted(len(words(example.answer)) for example in context.examples[:1000])
    return bool(lengths) and lengths[int(0.9 * (len(lengths) - 1))] > SHORT


def answered(context: EvalContext) -> list[Record]:
    """A record per example, with the model's answer if one was generated; this happens at most once."""
    if context.answers is not None:
        return context.answers
    asked, most = prompts_to_answer(context)
    answers = generate(context, [list(prompt) for prompt in asked], most)
    last = dict(zip(context.owner, context.rows, strict=True))
    records: list[Record] = [{} for _ in context.examples]
    for numbers, (text, whole) in zip(asked.values(), answers, strict=True):
        # What was learned, not the message: a template may add to the model's answer (Qwen3's think block).
        decode = context.template.tokenizer.decode
        learned = [split_answer(last[number])[1] for number in numbers]
        references = [str(decode(each, skip_special_tokens=True)) for each in learned]
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


def prompts_to_answer(context: EvalContext) -> tuple[dict[tuple[int, ...], list[int]], int]:
    """({prompt: its examples}, most tokens of an answer), of the prompts that are to be answered."""
    # A dialogue may have a row per answer (see Template.rows); only its last answer is generated.
    last = dict(zip(context.owner, context.rows, strict=True))
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(last):
        groups.setdefault(tuple(split_answer(last[number])[0]), []).append(number)
    asked = dict(list(groups.items())[: context.settings.generate])
    longest = max(len(last[number].ids) - len(prompt) for prompt, numbers in asked.items() for number in numbers)
    return asked, min(context.settings.max_new_tokens, longest + 2)


def references_of(record: Record) -> list[str]:
    """All texts that would be right."""
    return list(record.get("references") or [record["answer"]])


def split_answer(row: Row) -> tuple[list[int], list[int]]:
    """Token ids of the last learned stretch, the answer, and before it those of its prompt: (prompt, answer)."""
    stop = max(place for place, label in enumerate(row.labels) if label != IGNORED) + 1
    start = stop - 1
    while start > 0 and row.labels[start - 1] != IGNORED:
        start -= 1
    return row.ids[:start], row.labels[start:stop]


def generate(context: EvalContext, prompts: Sequence[list[int]], most: int) -> list[tuple[str, bool]]:
    """At most `most` tokens after each prompt (token ids), as text without the end token, and whether it ended."""
    if read := read_once(context):
        made = [read.answers[tuple(prompt)] for prompt in prompts]
    else:
        made = context.computed("answers", prompts, [len(prompt) + most for prompt in prompts], "answers", most=most)
    decode, ends = context.template.tokenizer.decode, context.template.end_ids
    return [(str(decode(each, skip_special_tokens=True)), not ends.isdisjoint(each)) for each in made]


def generated(context: EvalContext, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
    """At most `most` tokens after each prompt of a batch, by transformers: for models that cannot be read otherwise."""
    import torch
    from transformers import GenerationConfig

    ends, pad = sorted(context.template.end_ids), context.pad
    greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=ends, pad_token_id=pad)
    width = max(map(len, prompts))
    # Padded on the left, so that all answers begin at the same position.
    rows = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    ids, mask = (torch.tensor(each, device=context.device) for each in (rows, masks))
    # Each rank answers prompts of its own: none waits for the others' longest answer.
    options = {"generation_config": greedy, "synced_gpus": False}
    made: list[list[int]] = context.model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:].tolist()  # type: ignore[operator]
    return made


@dataclass(frozen=True, slots=True)
class Read:
    """What one pass over each prompt has found."""

    losses: list[tuple[float, int]]
    """(sum of -log p, targets) of each row."""
    labels: dict[int, list[float]]
    """-log p of each label of the data, for each example of labelled data."""
    answers: dict[tuple[int, ...], list[int]]
    """Token ids behind each prompt that is to be answered."""


def read_once(context: EvalContext) -> Read | None:
    """Losses, labels and answers from one pass over each prompt; None where the model cannot be read like that."""
    if context.reads_once and context.read is None:
        context.read = _read(context)
        context.reads_once = context.read is not None
    return context.read


def _read(context: EvalContext) -> Read | None:
    if context.task.name != "chat":
        return None
    asked, most = prompts_to_answer(context) if asks(context) else ({}, 0)
    questions, places = questions_of(context, set(asked))
    size = cache_bytes(context, questions) if questions else 0
    if not size:
        return None
    lengths = [sum(map(len, (each.prompt, *each.continuations))) + most * each.answers for each in questions]
    tokens = min(context.settings.batch_tokens, max(1, CACHE_BYTES // size))
    found: list[PromptReading] = context.computed("read", questions, lengths, "held-out rows", tokens, most=most)
    losses, labels = [], {}
    for row, number, (place, reference, choices) in zip(context.rows, context.owner, places, strict=True):
        reading = found[place]
        targets = sum(label != IGNORED for label in row.labels[1:])
        losses.append((reading.loss + reading.continuations[reference], targets))
        if choices:
            labels[number] = reading.continuations[:choices]
    answers = {tuple(q.prompt): r.answer for q, r in zip(questions, found, strict=True) if r.answer is not None}
    return Read(losses, labels, answers)


def questions_of(
    context: EvalContext, asked: set[tuple[int, ...]]
) -> tuple[list[PromptQuery], list[tuple[int, int, int]]]:
    """Each prompt with all that follows it, and for each row its question, its own continuation, its number of labels.

    The labels are the first of the continuations. Nothing where a row has no prompt.
    """
    questions: list[PromptQuery] = []
    places: list[tuple[int, int, int]] = []
    last = dict(zip(context.owner, context.rows, strict=True))
    tails = tails_of_labels(context) if labelled(context) else {}
    known: dict[tuple[tuple[int, ...], ...], int] = {}
    waiting = set(asked)
    for row, number in zip(context.rows, context.owner, strict=True):
        prompt, answer = split_answer(row)
        if not prompt:
            return [], []
        choices = tails.get(number, []) if row is last[number] else []
        wanted = choices if answer in choices else [*choices, answer]
        key = tuple(prompt), tuple(row.labels[: len(prompt)])
        place = known.get(key)
        if place is not None and wanted is not (own := questions[place].continuations):
            if choices or sum(map(len, own)) > MOST_BEHIND:
                place = None
            elif answer not in own:
                own.append(answer)
        if place is None:
            place = known[key] = len(questions)
            questions.append(PromptQuery(prompt, list(key[1]), wanted))
        if key[0] in waiting:
            waiting.remove(key[0])
            questions[place].answers = True
        places.append((place, questions[place].continuations.index(answer), len(choices)))
    return questions, places


def tails_of_labels(context: EvalContext) -> dict[int, list[list[int]]]:
    """For each example the tokens of each label as its answer: one list for all whose own label has the same there."""
    last = dict(zip(context.owner, context.rows, strict=True))  # a dialogue is judged by its last answer

    def tail(number: int, label: str) -> list[int]:
        example = context.examples[number]
        turn = replace(example.messages[-1], content=label, tool_calls="")
        return split_answer(context.template.encode([*example.messages[:-1], turn], example.tools))[1]

    first = min(last)
    common = [tail(first, label) for label in context.labels]
    own = dict(zip(context.labels, common, strict=True))
    return {
        number: common
        if split_answer(row)[1] == own.get(context.examples[number].label or "")
        else [tail(number, label) for label in context.labels]
        for number, row in last.items()
    }


def cache_bytes(context: EvalContext, questions: Sequence[PromptQuery]) -> int:
    """Bytes of KV cache for a token; 0 if reading the longest and the shortest question gives other losses than rows.

    Some tuners put tokens in front, some models have caches or masks of their own.
    """
    ordered = sorted(questions, key=lambda each: len(each.prompt))
    made = _halves if _rounded(context.model) else partial(replace, answers=False)
    return int(context.computed("trial", [[made(ordered[0]), made(ordered[-1])]], [1], "")[0])


def _rounded(model: "nn.Module") -> bool:
    """Whether it has weights in 16 bits, or in 8 with products that are rounded (LLM.int8())."""
    return any(each.dtype.itemsize == 2 or str(each.dtype) == "torch.int8" for each in model.parameters())


def _halves(question: PromptQuery) -> PromptQuery:
    """A question's tokens cut in the middle, all of which count; with labels the second half follows itself backwards.

    Where weights are rounded, the few tokens of a label say little: an improbable one may differ by tenths of a nat.
    """
    whole = question.prompt + question.continuations[-1]
    middle = len(whole) // 2
    others = [whole[: middle - 1 : -1]] if len(question.continuations) > 1 else []
    return PromptQuery(whole[:middle], whole[:middle], [*others, whole[middle:]])


def read_trials(context: EvalContext, trials: Sequence[Sequence[PromptQuery]]) -> list[int]:
    """What `cache_bytes` returns, for each list of questions."""
    return [_bytes_where_equal(context, trial) for trial in trials]


def _bytes_where_equal(context: EvalContext, trial: Sequence[PromptQuery]) -> int:
    # The first and the last continuation: the last stands behind all others, and must not see them.
    pairs = [(each, place) for each in trial for place in dict.fromkeys((0, len(each.continuations) - 1))]
    rows = [Row(q.prompt + q.continuations[i], q.labels + q.continuations[i], "") for q, i in pairs]
    sizes: list[int] = []
    with _no_outlier_columns(context.model):
        try:
            found = read(context.model, trial, (), sizes=sizes)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
            return 0  # whatever the model or the tuner raised: rows by themselves always work
        plain = [loss for loss, _ in losses_of(context, rows)]
    once = [found[trial.index(q)].loss + found[trial.index(q)].continuations[i] for q, i in pairs]
    bound = NEAR_ROUNDED if _rounded(context.model) else NEAR
    near = all(abs(a - b) < bound * max(10.0, abs(b)) for a, b in zip(once, plain, strict=True))
    return max(1, sizes[0]) if near else 0


@contextmanager
def _no_outlier_columns(model: "nn.Module") -> Iterator[None]:
    """Without the columns of large inputs that LLM.int8() computes apart.

    Which columns those are depends on all rows of a pass (arXiv 2208.07339, section 3.2), so any two ways to batch rows
    differ by up to 0.04 of a row's loss.
    """
    states: list[Any] = [getattr(each, "state", None) for each in model.modules()]
    states = [each for each in states if hasattr(each, "threshold")]
    thresholds = [each.threshold for each in states]
    for each in states:
        each.threshold = 0.0
    try:
        yield
    finally:
        for each, threshold in zip(states, thresholds, strict=True):
            each.threshold = threshold


def read_batch(context: EvalContext, questions: Sequence[PromptQuery], *, most: int) -> list[PromptReading]:
    """What the model makes of a batch of questions."""
    return read(context.model, questions, context.template.end_ids, most)


WORK: dict[str, Callable[..., list[Any]]] = {
    "losses": losses_of,
    "logits": logits_of,
    "answers": generated,
    "read": read_batch,
    "trial": read_trials,
}
"""What a rank can compute of a batch of items, by name."""
