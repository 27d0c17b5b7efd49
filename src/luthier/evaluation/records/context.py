"""What an evaluation is given: the model, the held-out rows and their settings, and the greedy answers to the prompts.

Each prompt is answered once, for all evaluations that read answers. Rows with the same prompt are one question with
several references; its answer is in the record of the first of them, {"said", "answer", "references"}.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.events import Progress
from luthier.core.ranks import here
from luthier.data import cache
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
        found = self.computed("losses", self.rows, [len(row.ids) for row in self.rows], "held-out rows")
        for owner, (total, count) in zip(self.owner, found, strict=True):
            records[owner]["loss_sum"] += total
            records[owner]["targets"] += count
        return records

    def logits(self) -> "list[tuple[int, Tensor]]":
        """(number of its example, logits [labels] in float32) of each row, for models with a head for labels."""
        found = self.computed("logits", self.rows, [len(row.ids) for row in self.rows], "held-out rows")
        return list(zip(self.owner, found, strict=True))


def losses_of(context: EvalContext, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """(task's loss, summed; targets) of each row of a batch."""
    sums, targets = context.task.losses(context.model, context.batch(rows))
    return list(zip(sums.tolist(), targets.tolist(), strict=True))


def logits_of(context: EvalContext, rows: Sequence[Row]) -> "list[Tensor]":
    """Logits [labels] of each row of a batch, in float32."""
    batch = context.batch(rows)
    logits = context.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return list(logits.float().cpu())


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
    # A dialogue may have a row per answer (see Template.rows); only its last answer is generated.
    last = dict(zip(context.owner, context.rows, strict=True))
    learned: dict[int, list[int]] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(last):
        prompt, learned[number] = split_answer(last[number])
        groups.setdefault(tuple(prompt), []).append(number)
    asked = list(groups.items())[: context.settings.generate]
    longest = max(len(last[number].ids) - len(prompt) for prompt, numbers in asked for number in numbers)
    most = min(context.settings.max_new_tokens, longest + 2)
    answers = generate(context, [list(prompt) for prompt, _ in asked], most)
    records: list[Record] = [{} for _ in context.examples]
    for (_, numbers), (text, whole) in zip(asked, answers, strict=True):
        # What was learned, not the message: a template may add to the model's answer (Qwen3's think block).
        decode = context.template.tokenizer.decode
        references = [str(decode(learned[number], skip_special_tokens=True)) for number in numbers]
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


def split_answer(row: Row) -> tuple[list[int], list[int]]:
    """Token ids of the last learned stretch, the answer, and before it those of its prompt: (prompt, answer)."""
    stop = max(place for place, label in enumerate(row.labels) if label != IGNORED) + 1
    start = stop - 1
    while start > 0 and row.labels[start - 1] != IGNORED:
        start -= 1
    return row.ids[:start], row.labels[start:stop]


def generate(context: EvalContext, prompts: Sequence[list[int]], most: int) -> list[tuple[str, bool]]:
    """At most `most` tokens after each prompt (token ids), as text without the end token, and whether it ended."""
    return context.computed("answers", prompts, [len(prompt) + most for prompt in prompts], "answers", most=most)


def generated(context: EvalContext, prompts: Sequence[list[int]], most: int) -> list[tuple[str, bool]]:
    """As `generate`, of one batch."""
    import torch
    from transformers import GenerationConfig

    ends, pad = sorted(context.template.end_ids), context.pad
    greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=ends, pad_token_id=pad)
    width = max(map(len, prompts))
    # Padded on the left, so that all answers begin at the same position.
    rows = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    ids, mask = (torch.tensor(each, device=context.device) for each in (rows, masks))
    # Each rank answers prompts of its own and holds all weights: none waits for the others' longest answer.
    options = {"generation_config": greedy, "synced_gpus": False}
    made = context.model.generate(input_ids=ids, attention_mask=mask, **options)  # type: ignore[operator]
    decode = context.template.tokenizer.decode
    return [
        (str(decode(tokens, skip_special_tokens=True)), not context.template.end_ids.isdisjoint(tokens))
        for tokens in made[:, width:].tolist()
    ]


WORK: dict[str, Callable[..., list[Any]]] = {"losses": losses_of, "logits": logits_of, "answers": generated}
"""What a rank can compute of a batch of items, by name; `labels` adds its own."""
