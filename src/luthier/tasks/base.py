"""What a task is: how an example becomes tokens, and a batch a loss."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias

from luthier.core.registry import Family, Plugin
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, RowError
from luthier.rendering.row import EVEN, IGNORED, LongRow, Row, even_length

Tensor: TypeAlias = Any
"""A torch.Tensor; torch takes seconds to import, so no task imports it before there is something to compute."""
Model: TypeAlias = Any
Batch: TypeAlias = dict[str, Tensor]


class Task(Plugin):
    """What to learn."""

    required: ClassVar[tuple[str, ...]] = ("encode",)

    model_class: ClassVar[Literal["causal", "classification"]] = "causal"
    """Which auto class of transformers loads the base model."""
    splits_long_rows: ClassVar[bool] = False
    """The default for rows over the length limit is to split them, which loses nothing."""
    numeric: ClassVar[bool] = False
    """Labels are numbers on a scale, not classes."""

    def fitted(self, labels: Sequence[str | None]) -> Self:
        """The task with what it must know from the training data: the label of each of its rows."""
        return self

    def encode(self, example: Example, template: Template, max_length: int, on_long: LongRow) -> list[Row]:
        """Rows of at most `max_length` tokens, or RowError (`long`, `bad`)."""
        raise NotImplementedError

    def losses(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Per row, the sum of -log p over its targets, and their number: [B], [B].

        The sums are not divided: a step does that once, by the targets of all of its batches. A target is the next
        token where the row has a label. Prompt methods put virtual tokens in front, so only the last T positions count.
        """
        import torch.nn.functional as F

        from luthier.kernels.cross_entropy import linear_cross_entropy, without_head

        labels = batch["labels"]  # [B, T]
        # With a mask transformers would not look at the positions, and packed rows would see one another.
        key = "position_ids" if "position_ids" in batch else "attention_mask"
        with without_head(model) as head:  # [B, virtual + T, H or vocab]
            made = model(input_ids=batch["input_ids"], use_cache=False, **{key: batch[key]}).logits
        kept = labels[:, 1:] != IGNORED  # [B, T - 1]
        targets = labels[:, 1:][kept]
        made = made[:, -labels.size(1) :][:, :-1][kept]  # [targets, H or vocab]
        if head is not None:
            each = linear_cross_entropy(made, head, targets)  # [targets]
        else:
            each = F.cross_entropy(made.float(), targets, reduction="none")
        return each.new_zeros(labels.size(0)).index_add(0, kept.nonzero()[:, 0], each), kept.sum(1)

    def targets(self, batch: Batch) -> Tensor:
        """Number of targets in the batch, a scalar."""
        labels = batch["labels"]
        return (labels[:, 1:] != IGNORED).sum() if self.model_class == "causal" else labels[:, 0].isfinite().sum()

    def collate(self, rows: Sequence[Row], pad_id: int, even: int | None = None) -> Batch:
        """Pad on the right to the longest row: input_ids, attention_mask, labels, each [B, T].

        Padding is masked by its place, never by its id: with pad = eos, the end token of a row stays a target. With
        `even` T is one of eight lengths in each octave, but at most `even`: as in `pack`, for oneDNN's sake.
        """
        import torch

        longest = max(len(row.ids) for row in rows)
        longest = longest if even is None else even_length(longest, even)
        return {
            "input_ids": torch.tensor([row.ids + [pad_id] * (longest - len(row.ids)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows]),
            "labels": torch.tensor([row.labels + [IGNORED] * (longest - len(row.labels)) for row in rows]),
        }

    def label_of(self, row: Row) -> str:
        """The label of a classifier's row, as text."""
        raise NotImplementedError

    def pack(self, rows: Sequence[Row], *, even: bool = False) -> Batch:
        """The rows in one sequence without padding: input_ids, position_ids, attention_mask, labels, each [1, T].

        Positions restart with each row, so attention does not cross; a row's first token is not a target: it would be
        predicted from the row before. With `even` a row without targets fills a long sequence up to a multiple of EVEN
        tokens: for each length oneDNN would compile kernels and keep them, half a megabyte apiece.
        """
        import torch

        tokens = sum(len(row.ids) for row in rows)
        fill = -tokens % EVEN if even and tokens >= 8 * EVEN else 0
        filled = [*rows, Row([0] * fill, [IGNORED] * fill, "")] if fill else rows
        return {
            "input_ids": torch.tensor([[token for row in filled for token in row.ids]]),
            "position_ids": torch.tensor([[place for row in filled for place in range(len(row.ids))]]),
            "attention_mask": torch.tensor([[1] * tokens + [0] * fill]),
            "labels": torch.tensor([[label for row in filled for label in (IGNORED, *row.labels[1:])]]),
        }


def encode_texts(example: Example, template: Template, max_length: int, on_long: LongRow, label: int) -> Row:
    """The row of a text, or of a pair as the tokenizer joins it, with its label."""
    text = example.text or example.messages[0].content
    if not text.strip():
        raise RowError("the text is empty")
    tokenizer, pair = template.tokenizer, example.pair or None
    if pair and tokenizer.num_special_tokens_to_add(pair=True) <= tokenizer.num_special_tokens_to_add(pair=False):
        text, pair = f"{text}\n{pair}", None
    ids = list(tokenizer(text, pair)["input_ids"])
    if len(ids) <= max_length:
        return Row(ids, [label], example.where)
    if on_long not in ("truncate_prompt", "truncate_answer"):
        raise RowError(f"{len(ids)} tokens, but train.max_length is {max_length}", kind="long")
    short = list(tokenizer(text, pair, truncation=True, max_length=max_length)["input_ids"])
    return Row(short, [label], example.where, cut=len(ids) - len(short))


TASKS = Family(Task, "task")
